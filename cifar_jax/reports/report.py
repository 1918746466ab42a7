"""`--mode=report`: what a run has learned, in pictures, a table of all answers, and one page."""

import itertools
import logging
import os
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from cifar_jax import files
from cifar_jax.config.fields import flatten
from cifar_jax.errors import UserError
from cifar_jax.evaluation import evaluate, scores
from cifar_jax.evaluation.evaluate import Answers
from cifar_jax.models import layer_table as summary
from cifar_jax.reports import diagnostics, page, plots
from cifar_jax.reports.diagnostics import plot_calibration, plot_class_scores, plot_confusion
from cifar_jax.reports.page import Picture
from cifar_jax.runs import history
from cifar_jax.runs import workdir as workdir_lib
from cifar_jax.text import format_duration, printable, shorten_middle

FOLDER, PAGE = "report", "report.html"
_NUM_SHOWN = 12  # images of a grid

_log = logging.getLogger(__name__)


def try_report(workdir: Path) -> None:
    """Makes the report of a run that has just ended; a failure costs a warning, never the run."""
    try:
        report(workdir)
    except Exception as error:
        words = " ".join(str(error).split()) or type(error).__name__
        _log.warning("the report could not be made: %s", words)


class Findings(NamedTuple):
    """What a model says to the images of a split, and how right and how sure it is."""

    answers: Answers
    predicted: np.ndarray
    probabilities: np.ndarray
    result: scores.Scores
    by_class: diagnostics.ClassScores
    calibration: diagnostics.Calibration


def report(workdir: Path, split: str = "test", checkpoint: str = "last", **options: Any) -> Path:
    """Writes WORKDIR/report: PNGs, predictions.csv and report.html; returns the page's path.

    Args:
      workdir: of the run.
      split: as for `evaluate.answer`.
      checkpoint: likewise.
      **options: likewise.

    Raises:
      UserError: the folder cannot be written, or what `evaluate.answer` raises.
    """
    files.read_json(workdir / workdir_lib.CONFIG)
    folder = workdir / FOLDER
    place = folder if folder.exists() else workdir
    if not (place.is_dir() and os.access(place, os.W_OK)):
        raise UserError(f"{folder} cannot be written: report on a copy of the run")
    found = _find(evaluate.answer(workdir, split, checkpoint, **options))
    rows = history.read_history(workdir)
    sections = {
        "Training": list(_draw_curves(rows)),
        f"Answers on the {split} split": list(_draw_errors(found)),
        "Images": list(_draw_images(found)),
    }
    trained = found.answers.trained
    config = trained.config
    several = config.num_seeds > 1
    which = f", seed {trained.seed} of {config.num_seeds} seeds" if several else ""
    text = page.page(
        workdir.absolute().name,
        f"{config.model.name} on {config.data.name}, the checkpoint of step {trained.step}{which}",
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
    table = diagnostics.answers_csv(found.answers.labels, found.probabilities, trained.class_names)
    files.write_text(folder / "predictions.csv", table)
    files.write_text(folder / PAGE, text)
    words = scores.describe(split, found.result)
    print(f"{printable(str(folder / PAGE))}: checkpoint of step {trained.step}, {words}")
    return folder / PAGE


def _find(answers: Answers) -> Findings:
    probabilities = scores.softmax(answers.logits)
    predicted = answers.logits.argmax(axis=1)
    return Findings(
        answers,
        predicted,
        probabilities,
        scores.score(answers.logits, answers.labels),
        diagnostics.class_scores(answers.labels, predicted, probabilities.shape[1]),
        diagnostics.calibrate(probabilities, answers.labels),
    )


def _picture(
    name: str, title: str, caption: str, draw: Callable[..., Figure], *arguments: Any
) -> Picture:
    light, dark = (plots.render(draw(*arguments, dark=dark)) for dark in (False, True))
    return Picture(name, title, caption, light, dark)


def _draw_curves(rows: Sequence[Mapping[str, Any]]) -> Iterator[Picture]:
    if not rows:
        return
    several = any("train_loss_low" in row for row in rows)
    band = " Mean of the seeds; the band goes from the lowest to the highest." if several else ""
    for name, title, caption in (
        ("loss", "Loss", "Mean cross-entropy; in training with dropout and augmentation, if any."),
        ("accuracy", "Accuracy", "In training with dropout and augmentation, if any."),
        ("learning_rate", "Learning rate", "Of the last step before each line of the log."),
    ):
        words = caption + (band if name != "learning_rate" else "")
        yield _picture(name, title, words, plots.plot_curves, {"run": rows}, (name,))


def _draw_errors(found: Findings) -> Iterator[Picture]:
    names = found.answers.trained.class_names
    matrix = diagnostics.confusion(found.answers.labels, found.predicted, len(names))
    words = "Rows: the right class. Columns: the answer. Images, and percent of the row's."
    yield _picture("confusion_matrix", "Confusion matrix", words, plot_confusion, matrix, names)
    words = "Precision: the right share of its answers. Recall: the share of its images found."
    title = "Precision, recall, F1"
    yield _picture("class_scores", title, words, plot_class_scores, found.by_class, names)
    words = "How often answers of a confidence are right (above), and how many there are (below)."
    yield _picture("calibration", "Reliability", words, plot_calibration, found.calibration)


def _draw_images(found: Findings) -> Iterator[Picture]:
    answers, trained, probabilities = found.answers, found.answers.trained, found.probabilities
    labels, names = answers.labels, trained.class_names
    wrong = np.flatnonzero(found.predicted != labels)
    surest = np.argsort(-probabilities[wrong].max(axis=1), kind="stable")
    size = min(_NUM_SHOWN, len(labels))
    chosen = np.sort(np.random.default_rng(0).choice(len(labels), size, replace=False))
    words = "Above each image its class and number, below it the three likeliest answers. "
    for name, title, caption, shown in (
        ("predictions", "Images and answers", words + "Chosen at random.", chosen),
        ("mistakes", "Most confident mistakes", words, wrong[surest][:_NUM_SHOWN]),
    ):
        if len(shown):
            classes = [shorten_middle(names[labels[index]], 11) for index in shown]
            titles = [f"{name} #{index}" for name, index in zip(classes, shown, strict=True)]
            arguments = (answers.images[shown], probabilities[shown], names, labels[shown], titles)
            yield _picture(name, title, caption.strip(), plots.plot_predictions, *arguments)
    kernel = summary.first_kernel(trained.model, trained.variables, trained.image_shape)
    if kernel is not None:
        height, width, _, count = kernel.shape
        words = f"{count} filters of {height} x {width} pixels, each in a contrast of its own."
        yield _picture("filters", "First filters", words, plots.plot_filters, kernel)


def _headline(found: Findings, rows: Sequence[Mapping[str, Any]]) -> str:
    result = found.result
    values = [
        ("accuracy", f"{result.accuracy:.2%}"),
        ("right answers", f"{result.num_correct:,}"),
        ("images", f"{result.num_images:,}"),
        ("loss", f"{result.loss:.4f}"),
        ("mean F1", f"{np.nanmean(found.by_class.f1):.2%}"),
        ("calibration error", f"{found.calibration.error:.2%}"),
    ]
    for row in [row for row in rows if row["step"] <= found.answers.trained.step][-1:]:
        values.append(("epochs", f"{row['epoch']:.3g}"))
        if "seconds" in row:
            values.append(("training time", format_duration(row["seconds"])))
    return page.tiles(values)


def _seeds(workdir: Path) -> Iterator[str]:
    """Yields the table of all seeds, once the run is finished."""
    path = workdir / workdir_lib.RESULT
    if not path.exists():
        return
    seeds = files.read_json(path)["seeds"]
    names = ("test_accuracy", "test_loss")
    rows = [(row["seed"], *(f"{row[name]:.4f}" for name in names)) for row in seeds]
    words = scores.describe_summary([row["test_accuracy"] for row in seeds])
    table = page.table(("seed", "test accuracy", "test loss"), rows, numbers=3)
    yield page.fold(f"Seeds: test accuracy {words}", table, opened=True)


def _tables(found: Findings) -> Iterator[str]:
    trained = found.answers.trained

    def percent(value: float) -> str:
        return f"{value:.1%}" if np.isfinite(value) else "\N{EN DASH}"

    rows = [
        (name, *map(percent, values), f"{support:,}")
        for name, *values, support in zip(trained.class_names, *found.by_class, strict=True)
    ]
    yield "<h2>Numbers</h2>"
    head = ("class", "precision", "recall", "F1", "images")
    yield page.fold("Classes", page.table(head, rows, numbers=4), opened=len(rows) <= 20)
    layers = summary.layer_table(trained.model, trained.image_shape)
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
    """Yields the environment of the training, and the commands that lead to this page."""
    path = workdir / workdir_lib.ENVIRONMENT
    commands = []
    if path.exists():
        try:
            environment = dict(flatten(files.read_json(path)))
            commands.append(["python", *map(str, environment.pop("command", []))])
            yield page.fold("Environment", page.table(("what", "value"), environment.items()))
        except (UserError, TypeError) as error:
            _log.warning("the page goes without %s: %s", path.name, error)
    again = ["python", "main.py", "--mode=report", f"--workdir={workdir}"]
    plain = {"split": "test", "checkpoint": "last"}
    given = {name: value for name, value in options.items() if value != plain.get(name)}
    again += [f"--{name}={value}" for name, value in given.items()]
    text = "\n".join(map(shlex.join, [*commands, again]))
    yield page.fold("How to repeat it", page.code(text), opened=True)
