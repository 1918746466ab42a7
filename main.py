"""Train, evaluate and use image classifiers.

  python main.py --config=configs/simple_cnn.py           train; the same again goes on
  python main.py --config=configs/resnet.py:20 --config.optimizer.learning_rate=0.01
  python main.py --mode=evaluate --workdir=runs/simple_cnn
  python main.py --mode=report --workdir=runs/simple_cnn  pictures, in runs/simple_cnn/report
  python main.py --mode=explore --dataset=cifar100        images and counts of each class
  python main.py --mode=predict --workdir=runs/simple_cnn --images photos/*.jpg
  python main.py --mode=compare --workdirs=runs/simple_cnn,runs/resnet_20

Exit codes: 0 done, 1 the run had to stop or a picture could not be read, 2 wrong input, 130 saved
after Ctrl-C, 143 saved after SIGTERM (the same command goes on).
"""

import io
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cifar_jax import allocator

if __name__ == "__main__":
    allocator.restart()
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback out of the imports below

from absl import flags
from ml_collections import config_flags

from cifar_jax import command
from cifar_jax import signals as signals_lib
from cifar_jax import workdir as workdir_lib
from cifar_jax.errors import UserError

FLAGS = flags.FLAGS

# What `--distributed` takes where JAX does not find it out.
JOB = ("coordinator", "num_processes", "process_id")
# The flags that each mode takes.
MODE_FLAGS = {
    "train": ("config", "workdir", "distributed", *JOB),
    "evaluate": ("workdir", "checkpoint", "split", "dataset", "data_dir", "batch_size", "seed"),
    "report": ("workdir", "checkpoint", "split", "data_dir", "batch_size", "seed"),
    "explore": ("config", "dataset", "data_dir", "seed", "output"),
    "predict": ("workdir", "images", "checkpoint", "resize", "batch_size", "seed", "output"),
    "compare": ("workdirs", "output"),
}
# What a shell makes of `--images photos/*`: one value of the flag, then arguments without one.
WITH_REST = ("predict", "compare")

config_flags.DEFINE_config_file(
    "config",
    None,
    "what to train (or explore): a file, with its argument behind a colon if it takes one; "
    "--config.FIELD=VALUE overrides a field (all of them: configs/default.py)",
)
flags.DEFINE_enum("mode", "train", list(MODE_FLAGS), "what to do")
flags.DEFINE_string("workdir", None, "the run's folder; training's default is runs/CONFIG")
flags.DEFINE_string(
    "checkpoint",
    "last",
    "evaluate, report, predict: last, best (on the validation split) or a step",
)
flags.DEFINE_string(
    "split", "test", "evaluate, report: train, validation, test or the set's own name"
)
flags.DEFINE_string(
    "dataset", None, "evaluate: another set with the same classes; explore: any set (cifar10)"
)
flags.DEFINE_string(
    "data_dir", None, "evaluate, report, explore: where the data lie, if not where the config says"
)
flags.DEFINE_integer(
    "batch_size", None, "evaluate, report, predict: images of a step", lower_bound=1
)
flags.DEFINE_multi_string(
    "images", [], "predict: files, folders or patterns, with commas in between or one by one"
)
flags.DEFINE_enum(
    "resize", "crop", ["crop", "squeeze"], "predict: how pictures get the model's proportions"
)
flags.DEFINE_multi_string("workdirs", [], "compare: the folders of the runs, likewise")
flags.DEFINE_integer(
    "seed",
    None,
    "explore: of the images shown (0); evaluate, report, predict: of several seeds that were "
    "trained together this one, not all of them (evaluate) or the first",
    lower_bound=0,
    upper_bound=2**32 - 1,
)
flags.DEFINE_bool("distributed", False, "train: together with the job's other processes")
flags.DEFINE_string("coordinator", None, "... HOST:PORT of the first process, if not found by JAX")
flags.DEFINE_integer("num_processes", None, "... how many there are, likewise", lower_bound=1)
flags.DEFINE_integer("process_id", None, "... which one this is, from 0, likewise", lower_bound=0)
flags.DEFINE_string("output", None, "explore, predict, compare: the folder to write to")


def train() -> int:
    """Trains what `--config` says, in a folder of its own."""
    if not FLAGS["config"].present:
        raise UserError("--config is missing: for example --config=configs/digits.py")
    if FLAGS.workdir == "":
        raise UserError("--workdir is empty: leave it out, or name a folder")
    name = command.run_name(config_flags.get_config_filename(FLAGS["config"]))
    workdir = command.run_path(FLAGS.workdir or f"runs/{name}").absolute()
    if FLAGS.distributed:
        _check_config()  # before the others are waited for
        from cifar_jax import distributed

        return distributed.train(FLAGS.config, workdir, *(FLAGS[name].value for name in JOB))
    if found := [name for name in JOB if FLAGS[name].present]:
        raise UserError(f"--{found[0]} has a meaning with --distributed only")
    with workdir_lib.lock(workdir), signals_lib.Signals() as signals:
        _check_config()
        from cifar_jax import train as train_lib

        return train_lib.train(FLAGS.config, workdir, signals)


def _check_config() -> None:
    from cifar_jax import config as config_lib
    from cifar_jax import fields
    from configs import default

    fields.check(FLAGS.config, default.get_config())
    config_lib.check(FLAGS.config)


def evaluate() -> int:
    """Scores the model of `--workdir`."""
    workdir = _finished_workdir()
    from cifar_jax import evaluate as evaluate_lib

    evaluate_lib.evaluate(workdir, dataset_name=FLAGS.dataset, **_answer_options())
    return 0


def report() -> int:
    """Draws the run of `--workdir`."""
    workdir = _finished_workdir()
    from cifar_jax import report as report_lib

    report_lib.report(workdir, **_answer_options())
    return 0


def _finished_workdir() -> Path:
    if FLAGS.workdir is None:
        raise UserError(f"--workdir is missing: the folder of the run to {FLAGS.mode}")
    return command.run_path(FLAGS.workdir)


def _answer_options() -> dict[str, Any]:
    names = ("split", "checkpoint", "data_dir", "batch_size", "seed")
    return {name: FLAGS[name].value for name in names}


def explore() -> int:
    """Shows the data set of `--config` or `--dataset`."""
    from cifar_jax import explore as explore_lib

    if FLAGS["config"].present:
        for name in ("dataset", "seed"):
            if FLAGS[name].present:
                raise UserError(f"--{name} beside --config: leave one of them out")
        _check_config()
        data, seed = FLAGS.config.data, FLAGS.config.seed
        place = FLAGS.data_dir or data.data_dir
        explore_lib.explore(data.name, place, _output(), seed, data.validation_examples)
    else:
        name = FLAGS.dataset or "cifar10"
        explore_lib.explore(name, FLAGS.data_dir, _output(), FLAGS.seed or 0)
    return 0


def predict(*images: str) -> int:
    """Predicts the pictures of `--images` by the model of `--workdir`."""
    workdir = _finished_workdir()
    from cifar_jax import predict as predict_lib

    return predict_lib.predict(
        workdir,
        command.split_paths([*FLAGS.images, *images]),
        output=_output(),
        checkpoint=FLAGS.checkpoint,
        resize=FLAGS.resize,
        batch_size=FLAGS.batch_size,
        seed=FLAGS.seed,
    )


def compare(*workdirs: str) -> int:
    """Compares the runs of `--workdirs`."""
    from cifar_jax import compare as compare_lib

    found = compare_lib.find(command.split_paths([*FLAGS.workdirs, *workdirs]))
    compare_lib.compare(found, _output() or Path("comparison"))
    return 0


def _output() -> Path | None:
    if FLAGS.output == "":
        raise UserError("--output is empty: leave it out, or name a folder")
    return command.user_path(FLAGS.output) if FLAGS.output else None


MODES: dict[str, Callable[..., int]] = {
    "train": train,
    "evaluate": evaluate,
    "report": report,
    "explore": explore,
    "predict": predict,
    "compare": compare,
}


def main(argv: list[str]) -> int:
    """Runs the program; returns the exit code."""
    if {"--help", "-help", "-h"} & set(argv):
        print(__doc__ + FLAGS.main_module_help())
        return 0
    command.show_log()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal that lacks a letter
    try:
        rest = command.parse(argv, MODE_FLAGS, WITH_REST)
        command.check_environment()
        return MODES[FLAGS.mode](*rest)
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
    except RuntimeError as error:
        if "out of memory" not in str(error).lower():
            raise
        words = " ".join(str(error).split())
        print(f"error: {words}: make the model or the batch smaller", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(main(sys.argv))
