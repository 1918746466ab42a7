"""Train, evaluate and use image classifiers.

  python main.py --config=configs/simple_cnn.py           train; the same command resumes
  python main.py --config=configs/resnet.py:20 --config.optimizer.learning_rate=0.01
  python main.py --mode=evaluate --workdir=runs/simple_cnn
  python main.py --mode=report --workdir=runs/simple_cnn  pictures, in runs/simple_cnn/report
  python main.py --mode=explore --dataset=cifar100        images and counts of each class
  python main.py --mode=predict --workdir=runs/simple_cnn --images photos/*.jpg
  python main.py --mode=compare --workdirs=runs/simple_cnn,runs/resnet_20

Exit codes: 0 done, 1 the run had to stop or a picture could not be read, 2 wrong input, 130 saved
after Ctrl-C, 143 saved after SIGTERM (the same command resumes).
"""

import contextlib
import io
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from cifar_jax.cli import parse
from cifar_jax.errors import UserError
from cifar_jax.runs import signals as signals_lib
from cifar_jax.runs import workdir as workdir_lib

FLAGS = flags.FLAGS

# Flags of `--distributed`, for jobs that JAX does not recognise.
JOB = ("coordinator", "num_processes", "process_id")
# The flags that each mode takes.
MODE_FLAGS = {
    "train": ("config", "workdir", "take_over", "distributed", *JOB),
    "evaluate": ("workdir", "checkpoint", "split", "dataset", "data_dir", "batch_size", "seed"),
    "report": ("workdir", "checkpoint", "split", "data_dir", "batch_size", "seed"),
    "explore": ("config", "dataset", "data_dir", "seed", "output"),
    "predict": ("workdir", "images", "checkpoint", "resize", "batch_size", "seed", "output"),
    "compare": ("workdirs", "output"),
}
# Modes that take arguments without a flag: a shell expands `--images photos/*` to one value of the
# flag and more arguments.
WITH_REST = ("predict", "compare")

config_flags.DEFINE_config_file(
    "config",
    None,
    "train, explore: the config file; text after a colon is passed to its get_config; "
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
    "data_dir", None, "evaluate, report, explore: the folder of the data, if not the config's"
)
flags.DEFINE_integer(
    "batch_size", None, "evaluate, report, predict: images per step", lower_bound=1
)
flags.DEFINE_multi_string(
    "images", [], "predict: files, folders or patterns, separated by commas or spaces"
)
flags.DEFINE_enum(
    "resize",
    "crop",
    ["crop", "squeeze"],
    "predict: how pictures are brought to the model's proportions",
)
flags.DEFINE_multi_string(
    "workdirs", [], "compare: the folders of the runs, separated by commas or spaces"
)
flags.DEFINE_integer(
    "seed",
    None,
    "explore: chooses the images shown (0); evaluate, report, predict: one of several seeds that "
    "were trained together, in place of all (evaluate) or the first",
    lower_bound=0,
    upper_bound=2**32 - 1,
)
flags.DEFINE_bool("take_over", False, "train: take the workdir from another process that holds it")
flags.DEFINE_bool("distributed", False, "train: together with the job's other processes")
flags.DEFINE_string(
    "coordinator", None, "... HOST:PORT of the first process, if JAX cannot find it"
)
flags.DEFINE_integer(
    "num_processes", None, "... the number of processes, if JAX cannot find it", lower_bound=1
)
flags.DEFINE_integer(
    "process_id", None, "... this process, from 0, if JAX cannot find it", lower_bound=0
)
flags.DEFINE_string("output", None, "explore, predict, compare: the folder to write to")


def train() -> int:
    """Trains the config of `--config` in its workdir."""
    if not FLAGS["config"].present:
        raise UserError("--config is missing: for example --config=configs/digits.py")
    if FLAGS.workdir == "":
        raise UserError("--workdir is empty: leave it out, or name a folder")
    name = parse.run_name(config_flags.get_config_filename(FLAGS["config"]))
    workdir = parse.run_path(FLAGS.workdir or f"runs/{name}").absolute()
    if FLAGS.distributed:
        _check_config()  # before waiting for the other processes
        from cifar_jax.training import distributed

        job = (FLAGS[name].value for name in JOB)
        return distributed.train_together(
            FLAGS.config, workdir, _train_and_report, FLAGS.take_over, *job
        )
    if found := [name for name in JOB if FLAGS[name].present]:
        raise UserError(f"--{found[0]} is only for --distributed")
    with workdir_lib.lock(workdir, FLAGS.take_over), signals_lib.Signals() as signals:
        _check_config()
        return _train_and_report(FLAGS.config, workdir, signals)


def _check_config() -> None:
    from cifar_jax.training import check
    from configs import default

    check.check_config(FLAGS.config, default.get_config())


def _train_and_report(config: ConfigDict, workdir: Path, signals: signals_lib.Signals) -> int:
    from cifar_jax.parallel import processes
    from cifar_jax.training import loop, resume

    result = processes.run_on_first(lambda: resume.find_result(config, workdir))
    if result:
        accuracy = f"test accuracy {result['test_accuracy']:.2%}"
        print(f"{workdir} is finished: step {result['step']}, {accuracy}; nothing was changed")
    else:
        code = loop.train(config, workdir, signals, _read_config_file())
        if code:
            return code
    if config.log.report and processes.is_first():
        signals.end()  # the report can be made again by --mode=report
        from cifar_jax.reports import report

        if not (result and (workdir / report.FOLDER / report.PAGE).exists()):
            report.try_report(workdir)
    return 0


def _read_config_file() -> str | None:
    name = config_flags.get_config_filename(FLAGS["config"]).partition(":")[0]
    with contextlib.suppress(OSError, ValueError):
        return Path(name).read_text(encoding="utf-8")
    return None


def evaluate() -> int:
    """Scores the model of `--workdir`."""
    workdir = _finished_workdir()
    from cifar_jax.evaluation import evaluate as evaluate_lib

    evaluate_lib.evaluate(workdir, dataset_name=FLAGS.dataset, **_answer_options())
    return 0


def report() -> int:
    """Makes the report of the run of `--workdir`."""
    workdir = _finished_workdir()
    from cifar_jax.reports import report as report_lib

    report_lib.report(workdir, **_answer_options())
    return 0


def _finished_workdir() -> Path:
    if FLAGS.workdir is None:
        raise UserError(f"--workdir is missing: the folder of the run to {FLAGS.mode}")
    return parse.run_path(FLAGS.workdir)


def _answer_options() -> dict[str, Any]:
    names = ("split", "checkpoint", "data_dir", "batch_size", "seed")
    return {name: FLAGS[name].value for name in names}


def explore() -> int:
    """Shows the data set of `--config` or `--dataset`."""
    from cifar_jax.reports import explore as explore_lib

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
    """Predicts the pictures of `--images` with the model of `--workdir`."""
    workdir = _finished_workdir()
    from cifar_jax.reports import predict as predict_lib

    return predict_lib.predict(
        workdir,
        parse.split_paths([*FLAGS.images, *images]),
        output=_output(),
        checkpoint=FLAGS.checkpoint,
        resize=FLAGS.resize,
        batch_size=FLAGS.batch_size,
        seed=FLAGS.seed,
    )


def compare(*workdirs: str) -> int:
    """Compares the runs of `--workdirs`."""
    from cifar_jax.reports import compare as compare_lib

    found = compare_lib.find(parse.split_paths([*FLAGS.workdirs, *workdirs]))
    compare_lib.compare(found, _output() or Path("comparison"))
    return 0


def _output() -> Path | None:
    if FLAGS.output == "":
        raise UserError("--output is empty: leave it out, or name a folder")
    return parse.user_path(FLAGS.output) if FLAGS.output else None


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
        print(__doc__ + FLAGS.module_help(__name__))
        return 0
    parse.show_log()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal without some letter
    try:
        rest = parse.parse(argv, MODE_FLAGS, WITH_REST)
        parse.check_environment()
        return MODES[FLAGS.mode](*rest)
    except UserError as error:
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        return error.exit_code
    except OSError as error:  # a full disk, a closed pipe, an unreadable file
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
        print("interrupted", file=sys.stderr)
        return 130
