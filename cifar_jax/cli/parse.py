"""Reads the command line and reports each mistake in it in one line. Imports no JAX."""

import difflib
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from absl import flags

from cifar_jax import files
from cifar_jax.cli.flags import ARGV, FLAGS, MODE_FLAGS, WITH_REST
from cifar_jax.config import shipped
from cifar_jax.config.shipped import run_name as run_name
from cifar_jax.errors import UserError
from cifar_jax.text import printable


def parse(argv: list[str]) -> list[str]:
    """Reads the flags and the config file; returns the arguments without a flag.

    Args:
      argv: the program's name and its arguments.

    Raises:
      UserError: a flag or field is unknown, has a wrong value or belongs to another mode; or the
        config file cannot be read.
    """
    try:
        argv = _find_shipped(FLAGS.read_flags_from_files(argv, force_gnu=False))
    except (flags.Error, OSError, UnicodeError) as error:
        raise UserError(f"--flagfile: {_one_line(error).removeprefix('ERROR:: ')}") from error
    ARGV[:] = argv
    file = _check_file(argv)
    try:
        with shipped.importable():
            rest = FLAGS(argv)[1:]
            if FLAGS["config"].present:
                getattr(FLAGS.config, "is_locked", None)  # raises if the file could not be loaded
    except UserError:
        raise
    except flags.Error as error:
        raise UserError(_one_line(error)) from error
    except (Exception, SystemExit) as error:  # a config file is a program: anything may come out
        raise UserError(f"--config={file}: {_one_line(error)}") from error
    _check_mode()
    if rest and FLAGS.mode not in WITH_REST:
        raise UserError(f"unexpected argument {rest[0]!r}: flags look like --name=value")
    return rest


def _check_mode() -> None:
    """Checks that the mode takes all flags that are given."""
    taken = MODE_FLAGS[FLAGS.mode]
    for name in dict.fromkeys(name for names in MODE_FLAGS.values() for name in names):
        if FLAGS[name].present and name not in taken:
            owners = ", ".join(f"--mode={mode}" for mode in MODE_FLAGS if name in MODE_FLAGS[mode])
            advice = "; training takes --config.FIELD" if FLAGS.mode == "train" else ""
            if name == "config" and "workdir" in taken:
                advice = ": the run's own is in its workdir"
            raise UserError(
                f"--mode={FLAGS.mode} does not take --{name}, which belongs to {owners}{advice}"
            )


def _find_shipped(argv: Sequence[str]) -> list[str]:
    """Returns the arguments with the names of shipped configs replaced by their files."""
    found = list(argv)
    for place, argument in enumerate(argv):
        name, equals, value = argument.partition("=")
        if name in ("--config", "-config") and equals:
            found[place] = f"{name}={shipped.find_config(os.path.expanduser(value))}"
        elif name in ("--config", "-config") and place + 1 < len(argv):
            found[place + 1] = shipped.find_config(os.path.expanduser(argv[place + 1]))
    return found


def _check_file(argv: list[str]) -> str:
    """Returns the config file or ""; checks that it exists and comes before its overrides."""
    file = ""
    for place, argument in enumerate(argv):
        name, equals, value = argument.partition("=")
        if name.startswith(("--config.", "-config.")) and not file:
            words = "a finished run has its own; train, explore, search and audit take one"
            raise UserError(f"{name} must come after a --config=FILE: {words}")
        if name not in ("--config", "-config"):
            continue
        file = (value if equals else "".join(argv[place + 1 : place + 2])).partition(":")[0]
        if not Path(file).is_file():
            known = [f"configs/{path.name}" for path in shipped.list_files()]
            near = difflib.get_close_matches(file, [*known, *(Path(x).stem for x in known)], n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
            raise UserError(f"--config: there is no file {file!r}; {hint}")
    return file


def _one_line(error: BaseException) -> str:
    text = str(error)
    if "Traceback (most recent call last)" in text:
        text = text.partition("Error whilst")[0] + text.splitlines()[-1]
    elif not isinstance(error, flags.Error):
        text = f"{type(error).__name__} {text}"
    return " ".join(text.split())


def run_path(text: str) -> Path:
    """Returns the path of a run's folder, which must be UTF-8 because of its checkpoints."""
    path = files.user_path(text)
    try:
        str(path.absolute()).encode()
    except UnicodeEncodeError as error:
        words = "checkpoints cannot be in a folder whose name is not UTF-8"
        raise UserError(f"--workdir {printable(str(path))}: {words}") from error
    return path


def split_paths(texts: Sequence[str]) -> Iterator[Path]:
    """Yields the paths in texts that may hold several, separated by commas.

    A text that is the name of an existing file is one path, with or without commas.
    """
    for text in texts:
        whole = text and os.path.lexists(files.user_path(text))
        yield from map(files.user_path, [text] if whole else filter(None, text.split(",")))


def show_log() -> None:
    """Shows the package's own log messages on the console."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    log = logging.getLogger("cifar_jax")
    log.handlers, log.propagate = [handler], False
    log.setLevel(logging.INFO)
