"""The program: its modes, and the exit codes."""

import functools
import io
import os
import sys
from collections.abc import Callable
from pathlib import Path

from cifar_jax import api, files
from cifar_jax.cli import flags, options, parse, studies
from cifar_jax.cli.flags import FLAGS
from cifar_jax.cli.given import check_given, config_folder, read_config_file
from cifar_jax.errors import UserError
from cifar_jax.parallel import environment
from cifar_jax.runs import weights
from cifar_jax.runs.signals import Signals
from cifar_jax.runs.workdir import lock

# Not the docstring, which `python -OO` leaves out.
_HELP = """\
Train, evaluate and use image classifiers.

  python main.py --config=configs/simple_cnn.py           train; the same command resumes
  python main.py --config=configs/resnet.py:20 --config.optimizer.learning_rate=0.01
  python main.py --mode=evaluate --workdir=runs/simple_cnn
  python main.py --mode=evaluate --workdirs=runs/a,runs/b   an ensemble
  python main.py --mode=calibrate --workdir=runs/simple_cnn
  python main.py --mode=report --workdir=runs/simple_cnn  pictures, in runs/simple_cnn/report
  python main.py --mode=explore --dataset=cifar100        images and counts of each class
  python main.py --mode=predict --workdir=runs/simple_cnn --images photos/*.jpg
  python main.py --mode=compare --workdirs=runs/simple_cnn,runs/resnet_20
  python main.py --mode=export --workdir=runs/simple_cnn --formats=onnx,stablehlo,safetensors
  python main.py --mode=search --config=configs/digits.py --trials=30 --space \\
    "optimizer.learning_rate=log(1e-4,1e-1)" "augment.cutout=int(0,16)"
  python main.py --mode=audit --config=configs/digits.py  labels that are probably wrong

Exit codes: 0 done, 1 the run had to stop or a picture could not be read, 2 wrong input; saved, and
the same command resumes: 130 after Ctrl-C, 143 after SIGTERM, 129 after SIGHUP, 138 after SIGUSR1,
140 after SIGUSR2, 152 after SIGXCPU.
"""


def _train() -> int:
    workdir = config_folder("workdir")
    if FLAGS.workdir and weights.find_file(FLAGS.workdir):
        raise UserError(
            f"--workdir={FLAGS.workdir} is a trained model: start from it with "
            f"--config.init_from={FLAGS.workdir}, and name another folder for the run"
        )
    if FLAGS.distributed:
        check_given()  # before waiting for the other processes
        from cifar_jax.training import distributed

        job = (FLAGS[name].value for name in flags.JOB)
        text = read_config_file()
        train_here = functools.partial(api.train_and_report, config_text=text)
        return distributed.train_together(FLAGS.config, workdir, train_here, FLAGS.take_over, *job)
    if found := [name for name in flags.JOB if FLAGS[name].present]:
        raise UserError(f"--{found[0]} is only for --distributed")
    with lock(workdir, FLAGS.take_over), Signals() as signals:
        check_given()
        return api.train_and_report(FLAGS.config, workdir, signals, read_config_file())


def _evaluate() -> int:
    workdir = options.read_workdirs()
    from cifar_jax.evaluation import evaluate, robustness

    given = options.read_flags(*options.SPLIT, "ensemble")
    score = robustness.evaluate_corruptions if FLAGS.corruptions else evaluate.evaluate_model
    score(workdir, dataset_name=FLAGS.dataset, **given)
    return 0


def _calibrate() -> int:
    workdir = options.read_workdir()
    from cifar_jax.evaluation import calibrate

    calibrate.calibrate_model(workdir, **options.read_flags(*options.SPLIT))
    return 0


def _report() -> int:
    workdir = options.read_workdirs()
    from cifar_jax.reports import report

    given = options.read_flags(*options.SPLIT, "ensemble", "num_mistakes")
    report.make_report(workdir, output=options.read_output(), **given)
    return 0


def _explore() -> int:
    from cifar_jax.data import datasets, sources
    from cifar_jax.reports import explore

    if FLAGS["config"].present:
        for name in ("dataset", "seed"):
            if FLAGS[name].present:
                raise UserError(f"--{name} cannot be combined with --config: leave one out")
        check_given(trains=False)
        config, data = FLAGS.config, FLAGS.config.data
        place = sources.find_place(config, given=FLAGS.data_dir)
        given = datasets.run_options(config)
        output = options.read_output() or explore.default_output(
            data.name, FLAGS.data_dir or data.path
        )
        explore.explore_dataset(data.name, place, output, **given)
    else:
        explore.explore_dataset(
            FLAGS.dataset or "cifar10", FLAGS.data_dir, options.read_output(), FLAGS.seed or 0
        )
    return 0


def _predict(*images: str) -> int:
    workdir = options.read_workdirs()
    from cifar_jax.reports import predict

    if FLAGS.explain and (FLAGS.ensemble or FLAGS.workdirs):
        raise UserError("--explain is for one model: leave it out, or name one run by --workdir")
    model = options.read_flags("checkpoint", "seed", "stored_code", "ensemble", "batch_size")
    look = options.read_flags("resize", "background", "invert", "explain")
    given = parse.split_paths([*FLAGS.images, *images])
    return predict.predict_pictures(workdir, given, options.read_output(), **model, **look)


def _compare(*workdirs: str) -> int:
    from cifar_jax.reports import compare

    given = parse.split_paths([*FLAGS.workdirs, *workdirs])
    found = compare.find_workdirs(given, from_shell=bool(workdirs))
    compare.compare_runs(found, options.read_output() or Path("comparison"))
    return 0


def _export() -> int:
    workdir = options.read_workdir()
    output = options.read_output()
    from cifar_jax.export import export

    given = options.read_flags("checkpoint", "data_dir", "batch_size", "seed", "stored_code")
    runtime = files.user_path(FLAGS.runtime) if FLAGS.runtime else None
    export.export_model(workdir, FLAGS.formats, output, runtime, **given)
    return 0


MODES: dict[str, Callable[..., int]] = {
    "train": _train,
    "evaluate": _evaluate,
    "calibrate": _calibrate,
    "report": _report,
    "explore": _explore,
    "predict": _predict,
    "compare": _compare,
    "export": _export,
    "audit": studies.start_audit,
    "search": studies.start_search,
}


def _open_streams() -> None:
    """Opens the standard streams that this program was started without, as a daemon may be.

    Otherwise the next file would get such a stream's number, and messages would go into that file.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is not None:
            continue
        try:
            os.fstat(number)
        except OSError:
            os.dup2(os.open(os.devnull, os.O_RDWR), number)
        setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w"))  # noqa: SIM115


def main(argv: list[str]) -> int:
    """Runs the program; returns the exit code."""
    _open_streams()
    parse.show_log()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal may lack some letters
    try:
        if {"--help", "-help", "-h"} & set(argv):
            print(_HELP + FLAGS.module_help(flags.__name__), flush=True)
            return 0
        environment.check_environment()
        rest = parse.parse(argv)
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
    except ValueError as error:
        if "jax" in sys.modules:
            raise
        print(f"error: JAX does not start: {error}: unset its variable", file=sys.stderr)
        return 2
    except RuntimeError as error:
        if "out of memory" not in str(error).lower():
            raise
        words = " ".join(str(error).split())
        print(f"error: {words}: make the model or the batch smaller", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
