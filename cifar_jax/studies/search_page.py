"""The page of a search: its trials, Optuna's pictures of them, and the best one's command."""

import functools
import logging
import shlex
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from cifar_jax import files
from cifar_jax.reports import page
from cifar_jax.reports.page import Picture
from cifar_jax.reports.style import render
from cifar_jax.text import format_table

PAGE = "search.html"
_MOST_NAMED = 12  # trials in a legend

_log = logging.getLogger(__name__)


def find_best(study: optuna.Study) -> FrozenTrial | None:
    """Returns the best of the trials that are complete; of equal ones the first."""
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    sign = 1 if study.direction == optuna.study.StudyDirection.MAXIMIZE else -1
    return max(complete, key=lambda trial: sign * (trial.value or 0.0), default=None)


def describe_search(study: optuna.Study) -> str:
    """Returns in one line how many trials there are, and the value of the best one."""
    counts = [
        f"{len(found)} {state.name.lower()}"
        for state in TrialState
        if (found := study.get_trials(deepcopy=False, states=(state,)))
    ]
    words = f"trials: {', '.join(counts)}"
    if best := find_best(study):
        words += f"; the best is trial {best.number}, {_objective(study)} {best.value:.4f}"
    return words


def _objective(study: optuna.Study) -> str:
    return f"validation {study.user_attrs['objective']}"


def format_trials(study: optuna.Study) -> str:
    """Returns the trials as a text table, the best one first."""
    rows = list(_rows(study))
    return format_table(rows, right=range(len(rows[0])))


def format_command(words: Sequence[str]) -> str:
    """Returns a command for a shell, in lines."""
    return " \\\n  ".join([shlex.join(words[:3]), *map(shlex.quote, words[3:])])


def _rows(study: optuna.Study) -> Iterator[list[str]]:
    """Yields the header, then the trials: the best first, those without a value last."""
    names = [text.partition("=")[0] for text in study.user_attrs["space"]]
    yield ["trial", "state", _objective(study), "evaluations", *names]
    sign = -1 if study.direction == optuna.study.StudyDirection.MAXIMIZE else 1

    def place(trial: FrozenTrial) -> tuple[bool, float, int]:
        known = trial.state == TrialState.COMPLETE
        return not known, sign * (trial.value or 0.0) if known else 0.0, trial.number

    for trial in sorted(study.get_trials(deepcopy=False), key=place):
        known = trial.state == TrialState.COMPLETE
        yield [
            *(str(trial.number), trial.state.name.lower()),
            *(f"{trial.value:.4f}" if known else "-", str(len(trial.intermediate_values))),
            *(format_value(trial.params[name]) if name in trial.params else "-" for name in names),
        ]


def format_value(value: Any) -> str:
    """Returns a value as text, a number with four digits."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def write_search(study: optuna.Study, folder: Path, command: Sequence[str]) -> Path:
    """Writes search.html and its pictures into the study's folder; returns the page's path."""
    drawn = list(_draw(study))
    for picture in drawn:
        (folder / f"{picture.name}.png").write_bytes(picture.light)
    head, *rows = _rows(study)
    space = "; ".join(study.user_attrs["space"])
    failed = [(x.number, x.user_attrs["reason"]) for x in study.trials if "reason" in x.user_attrs]
    parts = [page.tiles(list(_tiles(study)))]
    if command:
        title = "To train the best on all training images"
        parts.append(page.fold(title, page.code(format_command(command)), opened=True))
    parts.append(page.fold("Trials", page.table(head, rows, numbers=len(head)), opened=True))
    if failed:
        parts.append(page.fold("Why trials ended", page.table(("trial", "reason"), failed)))
    if drawn:
        parts.append(page.pictures("Pictures", drawn))
    text = page.page(folder.absolute().name, f"search for {_objective(study)}: {space}", parts)
    files.write_text(folder / PAGE, text)
    return folder / PAGE


def _tiles(study: optuna.Study) -> Iterator[tuple[str, str]]:
    trials = study.get_trials(deepcopy=False)
    for state in TrialState:
        if count := sum(trial.state == state for trial in trials):
            yield f"trials {state.name.lower()}", str(count)
    if best := find_best(study):
        yield f"best {_objective(study)}", f"{best.value:.4f}"
        yield "best trial", str(best.number)
        first = trials[0]
        if "fixed_params" in first.system_attrs and first.state == TrialState.COMPLETE:
            yield "the config as it was", f"{first.value:.4f}"


def _draw(study: optuna.Study) -> Iterator[Picture]:
    """Yields Optuna's pictures, in its own colours; leaves out those that too few trials give."""
    # Here, because `cifar_jax.reports.backend` must have imported matplotlib first.
    from matplotlib import get_backend, pyplot
    from optuna.visualization import matplotlib as drawing

    try:
        pyplot.switch_backend(get_backend())
    except ImportError:  # a notebook's own, which may not be installed here
        pyplot.switch_backend("agg")
    name = _objective(study)
    pictures: dict[str, tuple[str, str, Callable[[], Any]]] = {
        "history": (
            "History",
            "The value of each complete trial, and the best one so far.",
            lambda: drawing.plot_optimization_history(study, target_name=name),
        ),
        "importances": (
            "Importances",
            "The share of the values' variance that each field explains (fANOVA).",
            lambda: drawing.plot_param_importances(study, target_name=name),
        ),
        "curves": (
            "Curves",
            "The value after each evaluation, of pruned trials too.",
            lambda: drawing.plot_intermediate_values(study),
        ),
    }
    for field in (text.partition("=")[0] for text in study.user_attrs["space"]):
        words = "The value of each complete trial; darker ones came later."
        draw = functools.partial(drawing.plot_slice, study, params=[field], target_name=name)
        pictures[f"slice_{field}"] = (field, words, draw)
    if not find_best(study):
        return
    for file, (title, caption, plot) in pictures.items():
        try:
            png = _render(plot)
        except (ValueError, RuntimeError, ZeroDivisionError) as error:
            _log.warning("the page leaves out the picture %s: %s", file, error)
            continue
        yield Picture(file, title, caption, png, png)


def _render(draw: Callable[[], Any]) -> bytes:
    import matplotlib
    from matplotlib import pyplot

    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a part of Optuna is experimental
        axes = draw()
        first = axes.flat[0] if hasattr(axes, "flat") else axes
        figure = first.figure
        legend = first.get_legend()
        if legend and len(legend.get_texts()) > _MOST_NAMED:
            legend.remove()  # it would leave no room for the curves
        figure.set_layout_engine("tight")  # so that long names of fields are not cut off
        try:
            return render(figure)
        finally:
            pyplot.close(figure)
