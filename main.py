"""Train and evaluate image classifiers.

  python main.py --config=configs/simple_cnn.py           train; the same again goes on
  python main.py --config=configs/resnet.py:20 --config.optimizer.learning_rate=0.05
  python main.py --mode=evaluate --workdir=runs/simple_cnn

Exit codes: 0 done, 1 the run had to stop, 2 wrong input, 130 saved after Ctrl-C, 143 saved after
SIGTERM (the same command goes on).
"""

import difflib
import sys
from pathlib import Path

from absl import flags, logging
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
flags.DEFINE_enum("mode", "train", ["train", "evaluate"], "what to do")
flags.DEFINE_string(
    "checkpoint", "last", "evaluate: last, best (on the validation split) or a step"
)
flags.DEFINE_string("split", "test", "evaluate: train, validation, test or the set's own name")
flags.DEFINE_string("dataset", None, "evaluate: another set with the same classes")
flags.DEFINE_string(
    "data_dir", None, "evaluate: where the data lie, if not where training had them"
)
flags.DEFINE_integer("batch_size", None, "evaluate: images of a step", lower_bound=1)


def train() -> int:
    """Trains what `--config` says, in a folder of its own."""
    if FLAGS["config"].value is None:
        raise UserError("--config is missing: for example --config=configs/digits.py")
    from cifar_jax import config as config_lib

    workdir = Path(FLAGS.workdir or Path("runs") / default_name(sys.argv[1:])).absolute()
    with workdir_lib.lock(workdir), workdir_lib.Signals() as signals:
        config_lib.check(FLAGS.config)
        from cifar_jax import train as train_lib

        return train_lib.train(FLAGS.config, workdir, signals)


def evaluate() -> int:
    """Scores the model of `--workdir`."""
    if FLAGS.workdir is None:
        raise UserError("--workdir is missing: the folder of the run to evaluate")
    if FLAGS["config"].value is not None:
        raise UserError("--mode=evaluate takes no --config: the workdir has the run's own")
    from cifar_jax import evaluate as evaluate_lib

    evaluate_lib.evaluate(
        Path(FLAGS.workdir),
        checkpoint=FLAGS.checkpoint,
        split=FLAGS.split,
        dataset_name=FLAGS.dataset,
        data_dir=FLAGS.data_dir,
        batch_size=FLAGS.batch_size,
    )
    return 0


MODES = {"train": train, "evaluate": evaluate}


def config_argument(arguments: list[str]) -> tuple[Path, str] | None:
    """Returns the file of `--config` and what stands behind its colon; None if unset."""
    for place, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name in ("--config", "-config"):
            value = value if equals else "".join(arguments[place + 1 : place + 2])
            file, _, option = value.partition(":")
            return Path(file), option
    return None


def default_name(arguments: list[str]) -> str:
    """Returns a run's name from its `--config`: configs/resnet.py:20 gives resnet_20."""
    file, option = config_argument(arguments) or (Path("run"), "")
    return file.stem + (f"_{option}" if option else "")


def parse(argv: list[str]) -> None:
    """Reads the flags and the config file.

    Raises:
      UserError: a flag or field is unknown or its value has the wrong type, or the config file
        cannot be read.
    """
    try:
        _check_file(argv)
        rest = FLAGS(argv)[1:]
        if FLAGS["config"].value is not None:
            FLAGS.config.is_locked  # noqa: B018  (a file that could not be loaded raises here)
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
    given = config_argument(argv)
    if given and not given[0].is_file():
        known = sorted(str(path) for path in Path("configs").glob("[!_]*.py"))
        near = difflib.get_close_matches(str(given[0]), known, n=1)
        hint = f"; did you mean {near[0]}?" if near else f"; there are {', '.join(known)}"
        raise UserError(f"--config: there is no file {given[0]}{hint}")


def _one_line(error: BaseException) -> str:
    text = str(error)
    if "Traceback (most recent call last)" in text:
        text = text.partition("Error whilst")[0] + text.splitlines()[-1]
    return " ".join(text.split()) or type(error).__name__


def _unknown_field(argv: list[str], error: Exception) -> str | None:
    """Returns words for an override whose field the config does not have, with the nearest ones."""
    from cifar_jax import config as config_lib
    from configs import default

    known = [name for name, _ in config_lib.flatten(default.get_config())]
    for argument in argv:
        name = argument.lstrip("-").partition("=")[0].removeprefix("config.")
        leaf = name.rpartition(".")[2]
        if argument.lstrip("-").startswith("config.") and leaf in str(error):
            leaves = [field for field in known if field.rpartition(".")[2] == leaf]
            near = leaves or difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean --config.{near[0]}?" if near else "; see configs/default.py"
            return f"--config.{name}: there is no such field{hint}"
    return None


def main(argv: list[str]) -> int:
    """Runs the program; returns the exit code."""
    if {"--help", "-help", "-h"} & set(argv):
        print(__doc__ + FLAGS.main_module_help())
        return 0
    logging.set_verbosity(logging.WARNING)
    try:
        parse(argv)
        return MODES[FLAGS.mode]()
    except UserError as error:
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv))
