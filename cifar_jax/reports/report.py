"""`--mode=report`: draws what a run has learned, and shows it on a page."""

import itertools
import logging
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from scipy import special

from cifar_jax import files
from cifar_jax.config.fields import flatten
from cifar_jax.errors import UserError
from cifar_jax.evaluation import evaluate, scores
from cifar_jax.evaluation.evaluate import Predictions
from cifar_jax.models import layer_table
from cifar_jax.reports import diagnostics, page, plots
from cifar_jax.reports.diagnostics import plot_calibration, plot_class_scores, plot_confusion
from cifar_jax.reports.page import Picture
from cifar_jax.reports.style import render
from cifar_jax.runs import history
from cifar_jax.runs.workdir import CONFIG, ENVIRONMENT, RESULT
from cifar_jax.text import format_duration, printable, shorten_middle

FOLDER, PAGE = "report", "report.html"
_NUM_SHOWN = 12  # images in a grid

_log = logging.getLogger(__name__)


def try_report(workdir: Path) -> None:
    """Makes the report of a run that has just ended; a failure costs a warning, never the run."""
    try:
        make_report(workdir)
    except Exception as error:
        words = " ".join(str(error).split()) or type(error).__name__
        _log.warning("the report could not be made: %s", words)


class Findings(NamedTuple):
    """A model's predictions on a split, and how good they are."""

    predictions: Predictions
    predicted: np.ndarray
    probabilities: np.ndarray
    result: scores.Scores
    by_class: diagnostics.ClassScores
    calibration: diagnostics.Calibration


def make_report(
    workdir: Path, split: str = "test", checkpoint: str = "last", **options: Any
) -> Path:
    """Writes WORKDIR/report: PNGs, predictions.csv and report.html; returns the page's path.

    Args:
      workdir: the run's folder.
      split: as for `evaluate.predict_split`.
      checkpoint: as for `evaluate.predict_split`.
      **options: as for `evaluate.predict_split`.

    Raises:
      UserError: the folder cannot be written, or as for `evaluate.predict_split`.
    """
    files.read_json(workdir / CONFIG)
    folder = workdir / FOLDER
    if not files.may_write(folder):
        raise UserError(f"{folder} cannot be written: report on a copy of the run")
    found = _find(next(evaluate.predict_split(workdir, split, checkpoint, **options)))
    rows = history.read_history(workdir)
    sections = {
        "Training": list(_draw_curves(rows)),
        f"Predictions on the {split} split": list(_draw_errors(found)),
        "Images": list(_draw_images(found)),
    }
    trained = found.predictions.trained
    config = trained.config
    several = config.num_seeds > 1
    which = f", seed {trained.seed} of {config.num_seeds} seeds" if several else ""
    text = page.page(
        workdir.absolute().name,
        f"{config.model.name} on {config.data.name}, checkpoint of step {trained.step}{which}",
        [
            _headline(found, rows),
            *(page.pictures(title, drawn) for title, drawn in sections.items() if drawn),
            *(_seeds(workdir) if several else ()),
            *_tables(found),
            *_origin(workdir, {"split": split, "checkpoint": checkpoint, **options}),
        ],
    )
    folder.mkdir(exist_ok=True)
    for old in folder.glob("*.png"):
        old.unlink(missing_ok=True)
    for picture in itertools.chain(*sections.values()):
        (folder / f"{picture.name}.png").write_bytes(picture.light)
    every = (found.predictions.labels, found.probabilities, trained.class_names)
    files.write_csv(folder / "predictions.csv", diagnostics.prediction_rows(*every))
    files.write_text(folder / PAGE, text)
    words = scores.format_scores(split, found.result)
    print(f"{printable(str(folder / PAGE))}: checkpoint of step {trained.step}, {words}")
    return folder / PAGE


def _find(predictions: Predictions) -> Findings:
    labels, logits = predictions.labels, predictions.logits
    probabilities = special.softmax(logits.astype(np.float64), axis=1)
    predicted = logits.argmax(axis=1)
    by_class = diagnostics.score_classes(labels, predicted, logits.shape[1])
    calibration = diagnostics.calibrate(probabilities, labels)
    result = scores.score(logits, labels)
    return Findings(predictions, predicted, probabilities, result, by_class, calibration)


def _picture(
    name: str, title: str, caption: str, draw: Callable[..., Figure], *arguments: Any
) -> Picture:
    light, dark = (render(draw(*arguments, dark=dark)) for dark in (False, True))
    return Picture(name, title, caption, light, dark)


def _draw_curves(rows: Sequence[Mapping[str, Any]]) -> Iterator[Picture]:
    if not rows:
        return
    several = any("train_loss_low" in row for row in rows)
    band = " The line is the mean of the seeds; the band spans all of them." if several else ""
    noise = f"Training values include dropout and augmentation, if the run uses them.{band}"
    for name, title, caption in (
        ("loss", "Loss", f"Mean cross-entropy. {noise}"),
        ("accuracy", "Accuracy", noise),
        ("learning_rate", "Learning rate", "At the last step before each line of the log."),
    ):
        yield _picture(name, title, caption, plots.plot_curves, {"run": rows}, (name,))


def _draw_errors(found: Findings) -> Iterator[Picture]:
    names = found.predictions.trained.class_names
    matrix = (found.predictions.labels, found.predicted, names)
    words = "Rows: true class. Columns: predicted class. Cells: images, and their share of the row."
    yield _picture("confusion_matrix", "Confusion matrix", words, plot_confusion, *matrix)
    words = "Precision: correct share of a class's predictions. Recall: share of its images found."
    title = "Precision, recall, F1"
    yield _picture("class_scores", title, words, plot_class_scores, found.by_class, names)
    words = "Above: how often predictions of a confidence are correct. Below: how many there are."
    yield _picture("calibration", "Reliability", words, plot_calibration, found.calibration)


def _draw_images(found: Findings) -> Iterator[Picture]:
    (trained, images, labels, _), probabilities = found.predictions, found.probabilities
    names = trained.class_names
    wrong = np.flatnonzero(found.predicted != labels)
    surest = np.argsort(-probabilities[wrong].max(axis=1), kind="stable")
    size = min(_NUM_SHOWN, len(labels))
    chosen = np.sort(np.random.default_rng(0).choice(len(labels), size, replace=False))
    words = "Above each image: its class and number. Below: the three most probable classes."
    for name, title, caption, shown in (
        ("predictions", "Images and predictions", f"{words} Chosen at random.", chosen),
        ("mistakes", "Most confident mistakes", words, wrong[surest][:_NUM_SHOWN]),
    ):
        if len(shown):
            titles = [f"{shorten_middle(names[labels[index]], 11)} #{index}" for index in shown]
            arguments = (images[shown], probabilities[shown], names, labels[shown], titles)
            yield _picture(name, title, caption, plots.plot_predictions, *arguments)
    kernel = layer_table.first_kernel(trained.model, trained.variables, trained.image_shape)
    if kernel is not None:
        height, width, _, count = kernel.shape
        words = f"{count} filters of {height} x {width} pixels, each scaled to its own contrast."
        yield _picture("filters", "Filters of the first layer", words, plots.plot_filters, kernel)


def _headline(found: Findings, rows: Sequence[Mapping[str, Any]]) -> str:
    result = found.result
    values = [
        ("accuracy", f"{result.accuracy:.2%}"),
        ("correct", f"{result.num_correct:,}"),
        ("images", f"{result.num_images:,}"),
        ("loss", f"{result.loss:.4f}"),
        ("mean F1", f"{np.nanmean(found.by_class.f1):.2%}"),
        ("calibration error", f"{found.calibration.error:.2%}"),
    ]
    for row in [row for row in rows if row["step"] <= found.predictions.trained.step][-1:]:
        values.append(("epochs", f"{row['epoch']:.3g}"))
        if "seconds" in row:
            values.append(("training time", format_duration(row["seconds"])))
    return page.tiles(values)


def _seeds(workdir: Path) -> Iterator[str]:
    """Yields the table of all seeds, once the run is finished."""
    path = workdir / RESULT
    if not path.exists():
        return
    seeds = files.read_json(path)["seeds"]
    rows = [(x["seed"], f"{x['test_accuracy']:.4f}", f"{x['test_loss']:.4f}") for x in seeds]
    words = scores.format_summary([x["test_accuracy"] for x in seeds])
    table = page.table(("seed", "test accuracy", "test loss"), rows, numbers=3)
    yield page.fold(f"Seeds: test accuracy {words}", table, opened=True)


def _tables(found: Findings) -> Iterator[str]:
    trained = found.predictions.trained

    def percent(value: float) -> str:
        return f"{value:.1%}" if np.isfinite(value) else "\N{EN DASH}"

    rows = [
        (name, *map(percent, values), f"{support:,}")
        for name, *values, support in zip(trained.class_names, *found.by_class, strict=True)
    ]
    yield "<h2>Numbers</h2>"
    head = ("class", "precision", "recall", "F1", "images")
    yield page.fold("Classes", page.table(head, rows, numbers=4), opened=len(rows) <= 20)
    layers = layer_table.layer_table(trained.model, trained.image_shape)
    shapes = [
        (row.path, row.kind, " x ".join(map(str, row.output_shape[1:])), f"{row.num_variables:,}")
        for row in layers
    ]
    total = sum(row.num_trainable for row in layers)
    table = page.table(("layer", "kind", "output", "parameters"), shapes, numbers=1)
    yield page.fold(f"Layers: {total:,} trainable parameters", table)
    fields = [(name, "unset" if x is None else x) for name, x in flatten(trained.config)]
    yield page.fold("Config", page.table(("field", "value"), fields))


def _origin(workdir: Path, options: Mapping[str, Any]) -> Iterator[str]:
    """Yields the environment of the training, and the commands that produce this page."""
    path = workdir / ENVIRONMENT
    commands = []
    if path.exists():
        try:
            environment = dict(flatten(files.read_json(path)))
            commands.append(["python", *map(str, environment.pop("command", []))])
            yield page.fold("Environment", page.table(("what", "value"), environment.items()))
        except (UserError, TypeError) as error:
            _log.warning("the page leaves out %s: %s", path.name, error)
    defaults = {"split": "test", "checkpoint": "last"}
    given = [f"--{name}={x}" for name, x in options.items() if x != defaults.get(name)]
    commands.append(["python", "main.py", "--mode=report", f"--workdir={workdir}", *given])
    text = "\n".join(map(shlex.join, commands))
    yield page.fold("How to reproduce this page", page.code(text), opened=True)
