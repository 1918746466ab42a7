"""Train, evaluate and look at image classifiers.

  python main.py --config=configs/simple_cnn.py           train; the same again goes on
  python main.py --config=configs/resnet.py:20 --config.optimizer.learning_rate=0.05
  python main.py --mode=evaluate --workdir=runs/simple_cnn
  python main.py --mode=report --workdir=runs/simple_cnn  pictures, in runs/simple_cnn/report

Exit codes: 0 done, 1 the run had to stop, 2 wrong input, 130 saved after Ctrl-C, 143 saved after
SIGTERM (the same command goes on).
"""

import difflib
import io
import logging
import os
import re
import sys
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_flags

from cifar_jax import workdir as workdir_lib
from cifar_jax.errors import UserError

FLAGS = flags.FLAGS

config_flags.DEFINE_config_file(
    "config",
    None,
    "what to train: a file, with its argument behind a colon if it takes one; "
    "--config.FIELD=VALUE overrides a field (all of them: configs/default.py)",
)
flags.DEFINE_string("workdir", None, "the run's folder; training's default is runs/CONFIG")
flags.DEFINE_enum("mode", "train", ["train", "evaluate", "report"], "what to do")
flags.DEFINE_string(
    "checkpoint", "last", "evaluate, report: last, best (on the validation split) or a step"
)
flags.DEFINE_string(
    "split", "test", "evaluate, report: train, validation, test or the set's own name"
)
flags.DEFINE_string("dataset", None, "evaluate: another set with the same classes")
flags.DEFINE_string(
    "data_dir", None, "evaluate, report: where the data lie, if not where training had them"
)
flags.DEFINE_integer("batch_size", None, "evaluate, report: images of a step", lower_bound=1)
EVALUATE_FLAGS = ("checkpoint", "split", "dataset", "data_dir", "batch_size")


def train() -> int:
    """Trains what `--config` says, in a folder of its own."""
    if not FLAGS["config"].present:
        raise UserError("--config is missing: for example --config=configs/digits.py")
    if given := [name for name in EVALUATE_FLAGS if FLAGS[name].present]:
        raise UserError(f"--{given[0]} belongs to --mode=evaluate; training takes --config.FIELD")
    if FLAGS.workdir == "":
        raise UserError("--workdir is empty: leave it out, or name a folder")
    name = default_name(config_flags.get_config_filename(FLAGS["config"]))
    workdir = user_path(FLAGS.workdir or f"runs/{name}").absolute()
    with workdir_lib.lock(workdir), workdir_lib.Signals() as signals:
        from cifar_jax import config as config_lib
        from cifar_jax import fields
        from configs import default

        fields.check(FLAGS.config, default.get_config())
        config_lib.check(FLAGS.config)
        from cifar_jax import train as train_lib

        return train_lib.train(FLAGS.config, workdir, signals)


def evaluate() -> int:
    """Scores the model of `--workdir`."""
    workdir = _finished_workdir()
    from cifar_jax import evaluate as evaluate_lib

    evaluate_lib.evaluate(workdir, **_answer_options())
    return 0


def report() -> int:
    """Draws the run of `--workdir`."""
    workdir = _finished_workdir()
    if FLAGS["dataset"].present:
        raise UserError("--dataset belongs to --mode=evaluate; a report is of the run's own set")
    from cifar_jax import report as report_lib

    report_lib.report(workdir, **_answer_options())
    return 0


def _finished_workdir() -> Path:
    if FLAGS.workdir is None:
        raise UserError(f"--workdir is missing: the folder of the run to {FLAGS.mode}")
    if FLAGS["config"].present:
        raise UserError(f"--mode={FLAGS.mode} takes no --config: the workdir has the run's own")
    return user_path(FLAGS.workdir)


def _answer_options() -> dict[str, Any]:
    return {
        "split": FLAGS.split,
        "checkpoint": FLAGS.checkpoint,
        "dataset_name": FLAGS.dataset,
        "data_dir": FLAGS.data_dir,
        "batch_size": FLAGS.batch_size,
    }


MODES = {"train": train, "evaluate": evaluate, "report": report}


def user_path(text: str) -> Path:
    """Returns the path that a user means, "~" included, which a shell leaves behind an "="."""
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise UserError(f"{text}: {error}") from error


def default_name(config: str) -> str:
    """Returns a run's name from its `--config`: configs/resnet.py:20 gives resnet_20."""
    file, _, option = config.partition(":")
    return re.sub(r"[^\w.+-]+", "_", Path(file).stem + (f"_{option}" if option else ""))


def parse(argv: list[str]) -> None:
    """Reads the flags and the config file.

    Raises:
      UserError: a flag or field is unknown or its value has the wrong type, or the config file
        cannot be read.
    """
    try:
        _check_file(argv)
        rest = FLAGS(argv)[1:]
        if FLAGS["config"].present:
            getattr(FLAGS.config, "is_locked", None)  # a file that could not be loaded raises here
    except UserError:
        raise
    except flags.Error as error:
        raise UserError(_one_line(error)) from error
    except (AttributeError, KeyError) as error:
        raise UserError(_unknown_field(argv, error) or f"--config: {_one_line(error)}") from error
    except Exception as error:  # a config file is a program: anything may come out of it
        raise UserError(f"--config: {_one_line(error)}") from error
    if rest:
        raise UserError(f"what does {rest[0]!r} mean? Flags look like --name=value")


def _check_file(argv: list[str]) -> None:
    for place, argument in enumerate(argv):
        name, equals, value = argument.partition("=")
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


def _one_line(error: BaseException) -> str:
    text = str(error)
    if "Traceback (most recent call last)" in text:
        text = text.partition("Error whilst")[0] + text.splitlines()[-1]
    return " ".join(text.split()) or type(error).__name__


def _unknown_field(argv: list[str], error: Exception) -> str | None:
    """Returns words for an override whose field the config does not have, with the nearest ones."""
    from cifar_jax import fields
    from configs import default

    known = [name for name, _ in fields.flatten(default.get_config())]
    for argument in argv:
        name = argument.lstrip("-").partition("=")[0].removeprefix("config.")
        leaf = name.rpartition(".")[2]
        if argument.lstrip("-").startswith("config.") and leaf in str(error):
            leaves = [field for field in known if field.rpartition(".")[2] == leaf]
            near = leaves or difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean --config.{near[0]}?" if near else "; see configs/default.py"
            return f"--config.{name}: there is no such field{hint}"
    return None


def _check_environment() -> None:
    """Checks what JAX would answer with a traceback when it is imported."""
    value = os.environ.get("JAX_NUM_CPU_DEVICES", "1")
    if not value.removeprefix("-").isdecimal():
        raise UserError(f"JAX_NUM_CPU_DEVICES is {value!r}: unset it or make it a number")


def _show_log() -> None:
    """Lets the package's own messages through to the console."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    log = logging.getLogger("cifar_jax")
    log.handlers, log.propagate = [handler], False
    log.setLevel(logging.INFO)


def main(argv: list[str]) -> int:
    """Runs the program; returns the exit code."""
    if {"--help", "-help", "-h"} & set(argv):
        print(__doc__ + FLAGS.main_module_help())
        return 0
    _show_log()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal that lacks a letter
    try:
        parse(argv)
        _check_environment()
        return MODES[FLAGS.mode]()
    except UserError as error:
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        return error.exit_code
    except OSError as error:  # a full disk, a pipe that nobody reads, a file that may not be read
        place = f": {error.filename}" if error.filename else ""
        print(f"error: {error.strerror or error}{place}", file=sys.stderr)
        if isinstance(error, BrokenPipeError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv))
