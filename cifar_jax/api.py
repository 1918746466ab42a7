"""What the command line does, for Python and notebooks: the same code and the same folders."""

import copy
import functools
import logging
import runpy
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ml_collections import ConfigDict

from cifar_jax import files
from cifar_jax.config import custom, fields, shipped
from cifar_jax.errors import UserError
from cifar_jax.runs import history, weights
from cifar_jax.runs.signals import Interrupts, Signals
from cifar_jax.runs.workdir import RESULT, lock

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from cifar_jax.evaluation.scores import Scores
    from cifar_jax.evaluation.trained import Trained

_log = logging.getLogger(__name__)


class TrainedRun:
    """A run in its folder, which may have been trained here or by the command line.

    Attributes:
      workdir: its folder.
    """

    def __init__(self, workdir: str | Path):
        self.workdir = files.user_path(str(workdir))

    def __repr__(self) -> str:
        return f"TrainedRun({str(self.workdir)!r})"

    @property
    def result(self) -> dict[str, Any]:
        """What the run has written at its end, with test_accuracy and test_loss."""
        return files.read_json(self.workdir / RESULT)

    @property
    def history(self) -> list[dict[str, float]]:
        """What the run has logged: a dict for each line, which makes a table in pandas."""
        return history.read_history(self.workdir)

    @functools.cached_property
    def model(self) -> "Trained":
        """The trained model, whose `predict` takes uint8 images."""
        from cifar_jax.evaluation import trained

        return trained.load(self.workdir)

    def plot(self) -> "Figure":
        """Returns a figure with loss and accuracy against the epochs; a notebook shows it."""
        from cifar_jax.reports import plots, style

        split = weights.evaluated_split(self.workdir)
        figure: Any = plots.plot_curves({"run": self.history}, split=split)
        figure._repr_png_ = functools.partial(style.render, figure)
        return figure

    def report(self, **options: Any) -> Path:
        """Makes the report, as `report.make_report` with these options; returns the page's path."""
        from cifar_jax.reports import report

        return report.make_report(self.workdir, **options)


def get_config(config: str | Path | ConfigDict, **values: Any) -> ConfigDict:
    """Returns a config, with some of its fields set.

    Args:
      config: the name of a shipped config, such as "resnet:20"; or the path of a config file, with
        an argument after a colon if it takes one; or a config, which is copied.
      **values: fields, such as `num_epochs=5` or `**{"optimizer.learning_rate": 0.01}`; `model`
        takes a dict, which replaces the whole model: `model={"name": "lenet"}`.

    Raises:
      UserError: there is no such file or field, the file fails, or a value has a wrong type.
    """
    result = copy.deepcopy(config) if isinstance(config, ConfigDict) else _read_config(str(config))
    for name, value in values.items():
        if name == "model" and isinstance(value, Mapping | ConfigDict):
            with result.unlocked():
                result.model = ConfigDict(value)
            continue
        known = [field for field, _ in fields.flatten(result)]
        if name not in known:
            raise UserError(f"{name}: there is no such field{fields.suggest_field(name, known)}")
        try:
            result.update_from_flattened_dict({name: value})
        except (TypeError, ValueError) as error:
            raise UserError(f"{name} cannot be {value!r}: {error}") from error
    return result


def _read_config(config: str) -> ConfigDict:
    file, colon, option = shipped.find_config(config).partition(":")
    if not Path(file).is_file():
        names = ", ".join(path.stem for path in shipped.list_files())
        raise UserError(f"there is no config file {file!r}; the shipped ones are {names}")
    try:
        with shipped.importable():
            result = runpy.run_path(file)["get_config"](*[option] if colon else [])
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        shipped.check_variant(config, error)
        raise UserError(f"the config {config} {custom.describe_error(error, file)}") from error
    if isinstance(result, ConfigDict):
        custom.locate(result, Path(file).parent)
    return result


def train_run(
    config: str | Path | ConfigDict, workdir: str | Path | None = None, take_over: bool = False
) -> TrainedRun:
    """Trains, or resumes the run in the folder, as `python main.py` does.

    An interrupt (Ctrl-C, or a notebook's stop button) saves the run and raises KeyboardInterrupt:
    the same call resumes it. A second one does not wait for that.

    Args:
      config: a config, or what else `get_config` takes.
      workdir: the run's folder; None: runs/NAME for a config that is given by its name or file.
      take_over: whether to take the folder from another process that holds it.

    Raises:
      UserError: the config is wrong or does not fit data or folder, or the run had to stop.
      KeyboardInterrupt: the run was interrupted, and is saved.
    """
    from cifar_jax.training import check

    text = None
    if not isinstance(config, ConfigDict):
        name, config = str(config), get_config(config)
        workdir = workdir or f"runs/{shipped.run_name(name)}"
        text = Path(shipped.find_config(name).partition(":")[0]).read_text(encoding="utf-8")
    if workdir is None:
        raise UserError('workdir is missing: name the folder of the run, as in workdir="runs/mine"')
    folder = files.user_path(str(workdir)).absolute()
    config = copy.deepcopy(config)  # the caller may change it meanwhile
    with lock(folder, take_over), Interrupts() as signals:
        check.check_config(config, shipped.default_config())
        if train_and_report(config, folder, signals, text):
            raise KeyboardInterrupt
    return TrainedRun(folder)


def train_and_report(
    config: ConfigDict, workdir: Path, signals: Signals, config_text: str | None = None
) -> int:
    """Trains and makes the report; leaves a finished run as it is. Returns the exit code.

    Args:
      config: a checked config.
      workdir: the run's folder, locked by this process.
      signals: as for `loop.train_model`.
      config_text: as for `loop.train_model`.
    """
    from cifar_jax.parallel import processes
    from cifar_jax.training import loop, resume

    result = processes.run_on_first(lambda: resume.find_result(config, workdir))
    if result:
        accuracy = f"test accuracy {result['test_accuracy']:.2%}"
        if processes.is_first():
            print(f"{workdir} is finished: step {result['step']}, {accuracy}; nothing was changed")
    elif code := loop.train_model(config, workdir, signals, config_text):
        return code
    if config.log.report and processes.is_first():
        signals.end()  # the report can be made again by --mode=report
        _try_report(workdir, again=not result)
    return 0


def _try_report(workdir: Path, again: bool) -> None:
    """Makes a run's report if there is none, or `again`; a failure is a warning, no more."""
    try:
        from cifar_jax.reports import report

        if again or not (workdir / report.FOLDER / report.PAGE).exists():
            report.make_report(workdir)
    except Exception as error:
        words = " ".join(str(error).split()) or type(error).__name__
        _log.warning("the report could not be made: %s", words)


def evaluate_run(
    run: str | Path | TrainedRun, split: str = "test", dataset: str | None = None, **options: Any
) -> "Scores":
    """Scores a run on a split, prints the scores and returns them, as `--mode=evaluate` does.

    Args:
      run: the run, or its folder.
      split: as for `evaluate.predict_split`.
      dataset: another set with the same classes; None: the run's own.
      **options: checkpoint, data_dir, batch_size, seed and stored_code, as for
        `evaluate.predict_split`.
    """
    from cifar_jax.evaluation import evaluate

    return evaluate.evaluate_model(_folder(run), split, dataset_name=dataset, **options)


def compare_folders(
    runs: Iterable[str | Path | TrainedRun], output: str | Path = "comparison"
) -> list[dict[str, Any]]:
    """Compares runs, finished or not, as `--mode=compare` does.

    Args:
      runs: the runs, or their folders, or patterns of folders.
      output: the folder for comparison.csv and comparison.png.

    Returns:
      For each run its name, whether it is finished, and its last numbers.
    """
    from cifar_jax.reports import compare

    found = compare.compare_runs(compare.find_workdirs(map(_folder, runs)), Path(output))
    return [{"run": name, "finished": x.finished, **x.values} for name, x in found.items()]


def _folder(run: str | Path | TrainedRun) -> Path:
    return run.workdir if isinstance(run, TrainedRun) else files.user_path(str(run))
