"""Reads a command line, and finds words for what is wrong with it. Imports no JAX."""

import contextlib
import difflib
import logging
import os
import re
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

from absl import flags

from cifar_jax import workdir as workdir_lib
from cifar_jax.errors import UserError
from cifar_jax.tables import printable

FLAGS = flags.FLAGS


def parse(
    argv: list[str], taking: Mapping[str, Sequence[str]], with_rest: Collection[str]
) -> list[str]:
    """Reads the flags and the config file.

    Args:
      argv: the program's name and its arguments.
      taking: the flags that each mode takes.
      with_rest: the modes that take arguments which are no flags.

    Returns:
      The arguments that are no flags.

    Raises:
      UserError: a flag or field is unknown, its value has the wrong type, or it belongs to another
        mode; or the config file cannot be read.
    """
    file = _check_file(argv)
    try:
        rest = FLAGS(argv)[1:]
        if FLAGS["config"].present:
            getattr(FLAGS.config, "is_locked", None)  # a file that could not be loaded raises here
    except UserError:
        raise
    except flags.Error as error:
        raise UserError(_one_line(error)) from error
    except (AttributeError, KeyError) as error:
        words = _unknown_field(argv, error) or f"--config={file}: {_one_line(error)}"
        raise UserError(words) from error
    except (Exception, SystemExit) as error:  # a config file is a program: anything may come out
        raise UserError(f"--config={file}: {_one_line(error)}") from error
    _check_mode(taking)
    if rest and FLAGS.mode not in with_rest:
        raise UserError(f"what does {rest[0]!r} mean? Flags look like --name=value")
    return rest


def _check_mode(taking: Mapping[str, Sequence[str]]) -> None:
    """Checks that the mode takes the flags that are given."""
    for name in dict.fromkeys(name for names in taking.values() for name in names):
        if FLAGS[name].present and name not in taking[FLAGS.mode]:
            owners = ", ".join(f"--mode={mode}" for mode, names in taking.items() if name in names)
            advice = "; training takes --config.FIELD" if FLAGS.mode == "train" else ""
            if name == "config" and "workdir" in taking[FLAGS.mode]:
                advice = ": the workdir has the run's own"
            raise UserError(
                f"--mode={FLAGS.mode} takes no --{name}, which belongs to {owners}{advice}"
            )


def _check_file(argv: list[str]) -> str:
    """Returns the config file, "" without one; checks that it is there, before its overrides."""
    file = ""
    for place, argument in enumerate(argv):
        name, equals, value = argument.partition("=")
        if name.startswith(("--config.", "-config.")) and not file:
            words = "only training and exploring take one, a finished run has its own"
            raise UserError(f"{name} must stand behind a --config=FILE: {words}")
        if name not in ("--config", "-config"):
            continue
        file = (value if equals else "".join(argv[place + 1 : place + 2])).partition(":")[0]
        if not Path(file).is_file():
            known = sorted(str(path) for path in Path("configs").glob("[!_]*.py"))
            near = difflib.get_close_matches(file, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else f"; there are {', '.join(known)}"
            if not known:
                hint = f" in {Path.cwd()}: start main.py from its own folder"
            raise UserError(f"--config: there is no file {file!r}{hint}")
    return file


def _one_line(error: BaseException) -> str:
    text = str(error)
    if "Traceback (most recent call last)" in text:
        text = text.partition("Error whilst")[0] + text.splitlines()[-1]
    elif not isinstance(error, flags.Error):
        text = f"{type(error).__name__} {text}"
    return " ".join(text.split())


def _unknown_field(argv: list[str], error: Exception) -> str | None:
    """Returns words for an override whose field the config does not have, with the nearest ones."""
    from cifar_jax import fields
    from configs import default

    known = [name for name, _ in fields.flatten(default.get_config())]
    for argument in argv:
        name = argument.lstrip("-").partition("=")[0].removeprefix("config.")
        leaf = name.rpartition(".")[2]
        if not argument.lstrip("-").startswith("config.") or name in known:
            continue
        if any(re.search(rf"\b{re.escape(part)}\b", str(error)) for part in name.split(".")):
            leaves = [field for field in known if field.rpartition(".")[2] == leaf]
            near = leaves or difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean --config.{near[0]}?" if near else "; see configs/default.py"
            return f"--config.{name}: there is no such field{hint}"
    return None


def user_path(text: str) -> Path:
    """Returns the path that a user means, "~" included, which a shell leaves behind an "="."""
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise UserError(f"{text}: {error}") from error


def run_path(text: str) -> Path:
    """Returns the path of a run's folder, whose checkpoints take UTF-8 only."""
    path = user_path(text)
    try:
        str(path.absolute()).encode()
    except UnicodeEncodeError as error:
        words = "a run's checkpoints cannot lie in a folder whose name is not UTF-8"
        raise UserError(f"--workdir {printable(str(path))}: {words}") from error
    return path


def split_paths(texts: Sequence[str]) -> Iterator[Path]:
    """Yields the paths in texts that may hold several, with commas in between.

    What exists as it stands is one path, commas or not.
    """
    for text in texts:
        whole = text and os.path.lexists(user_path(text))
        yield from map(user_path, [text] if whole else filter(None, text.split(",")))


@contextlib.contextmanager
def output_folder(folder: Path) -> Iterator[None]:
    """Makes the folder that a command writes to; it goes again if nothing was put into it.

    Raises:
      UserError: it cannot be written.
    """
    with workdir_lib.take_back_empty(folder):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise UserError(
                f"{folder} cannot be written ({error.strerror}): choose another with --output"
            ) from error
        yield


def check_environment() -> None:
    """Checks what JAX would answer with a traceback when it is imported."""
    value = os.environ.get("JAX_NUM_CPU_DEVICES", "1")
    if not value.removeprefix("-").isdecimal():
        raise UserError(f"JAX_NUM_CPU_DEVICES is {value!r}: unset it or make it a number")


def run_name(config: str) -> str:
    """Returns a run's name from its `--config`: configs/resnet.py:20 gives resnet_20."""
    file, _, option = config.partition(":")
    return re.sub(r"[^\w.+-]+", "_", Path(file).stem + (f"_{option}" if option else ""))


def show_log() -> None:
    """Lets the package's own messages through to the console."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    log = logging.getLogger("cifar_jax")
    log.handlers, log.propagate = [handler], False
    log.setLevel(logging.INFO)
