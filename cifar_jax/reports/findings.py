"""What a model predicts for a split, in pictures: curves, confusion, calibration, mistakes."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict
from scipy import special

from cifar_jax.config.durations import resolve_durations
from cifar_jax.evaluation import gradcam, scores
from cifar_jax.evaluation.calibration import Calibration, measure_calibration
from cifar_jax.evaluation.evaluate import Predictions
from cifar_jax.models import layer_table
from cifar_jax.optim.schedules import create_schedule
from cifar_jax.reports import diagnostics, plots
from cifar_jax.reports.backend import Figure
from cifar_jax.reports.diagnostics import plot_calibration, plot_class_scores, plot_confusion
from cifar_jax.reports.page import Picture
from cifar_jax.reports.style import render
from cifar_jax.text import shorten_middle

_NUM_SHOWN = 12  # random images in a grid
_SHINING = "Grad-CAM: what shines, from red to yellow, raises the logit"


class Findings(NamedTuple):
    """A model's predictions on a split, and how good they are."""

    predictions: Predictions
    predicted: np.ndarray
    probabilities: np.ndarray
    result: scores.Scores
    by_class: diagnostics.ClassScores
    calibration: Calibration
    uncalibrated: Calibration | None = None


def score_predictions(predictions: Predictions) -> Findings:
    """Scores the predictions for a split."""
    labels, logits = predictions.labels, predictions.logits
    probabilities, predicted = predictions.probabilities, logits.argmax(axis=1)
    by_class = diagnostics.score_classes(labels, predicted, logits.shape[1])
    measured = [measure_calibration(probabilities, labels)]
    if predictions.trained.temperature != 1:
        measured.append(measure_calibration(special.softmax(logits, axis=1), labels))
    result = predictions.score()
    return Findings(predictions, predicted, probabilities, result, by_class, *measured)


def describe_scores(found: Findings) -> list[tuple[str, str]]:
    """Returns the scores by their names, as text."""
    result, trained = found.result, found.predictions.trained
    several = trained.config.num_seeds > 1 and not trained.members
    name = f"accuracy of seed {trained.seed}" if several else "accuracy"
    values = [(name, f"{result.accuracy:.2%}")]
    if scores.is_uneven(result):
        values.append(("balanced accuracy", f"{result.balanced_accuracy:.2%}"))
    values += [
        ("correct", f"{result.num_correct:,}"),
        ("images", f"{result.num_images:,}"),
        ("loss", f"{result.loss:.4f}"),
        ("mean F1", f"{np.nanmean(found.by_class.f1):.2%}"),
        ("calibration error", f"{found.calibration.error:.2%}"),
        ("Brier score", f"{found.calibration.brier:.4f}"),
    ]
    if trained.temperature != 1:
        values.append(("temperature", f"{trained.temperature:.3f}"))
    return values


def _picture(
    name: str, title: str, caption: str, draw: Callable[..., Figure], *arguments: Any
) -> Picture:
    light, dark = (render(draw(*arguments, dark=dark)) for dark in (False, True))
    return Picture(name, title, caption, light, dark)


def draw_curves(
    rows: Sequence[Mapping[str, Any]], config: ConfigDict, split: str
) -> Iterator[Picture]:
    """Draws the curves of the training, `split` having been scored; nothing without a log."""
    if not rows:
        return
    several = any("train_loss_low" in row for row in rows)
    band = " The line is the mean of the seeds; the band spans all of them." if several else ""
    noise = f"Training values include dropout and augmentation, if the run uses them.{band}"
    smoothing = config.loss.label_smoothing
    smooth = f" The training loss includes label smoothing of {smoothing:g}." if smoothing else ""
    rows = [_first_rate(rows[0], config), *rows]
    for name, title, caption in (
        ("loss", "Loss", f"Mean cross-entropy. {noise}{smooth}"),
        ("accuracy", "Accuracy", noise),
        ("learning_rate", "Learning rate", "At the first step, then at each line of the log."),
    ):
        yield _picture(name, title, caption, plots.plot_curves, {"run": rows}, (name,), split)


def _first_rate(row: Mapping[str, Any], config: ConfigDict) -> dict[str, float]:
    """Returns a row with the learning rate of the first step, for a run whose log begins with
    `row`."""
    num_examples = round(row["step"] / row["epoch"]) * config.batch_size
    rate = create_schedule(config, resolve_durations(config, num_examples))
    return {"epoch": 0.0, "learning_rate": float(rate(0))}


def draw_errors(found: Findings) -> Iterator[Picture]:
    """Draws where the model errs and how confident it is."""
    names = found.predictions.trained.class_names
    matrix = (found.predictions.labels, found.predicted, names)
    words = "Rows: true class. Columns: predicted class. Cells: images, and their share of the row."
    yield _picture("confusion_matrix", "Confusion matrix", words, plot_confusion, *matrix)
    words = "Precision: correct share of a class's predictions. Recall: share of its images found."
    title = "Precision, recall, F1"
    yield _picture("class_scores", title, words, plot_class_scores, found.by_class, names)
    words = "Above: how often predictions of a confidence are correct. Below: how many there are."
    if found.uncalibrated:
        words += (
            f" The {found.predictions.trained.describe_temperature()} is applied; hollow: before."
        )
    measured = (found.calibration, found.uncalibrated)
    yield _picture("calibration", "Reliability", words, plot_calibration, *measured)


def draw_images(found: Findings, num_mistakes: int = 12) -> Iterator[Picture]:
    """Draws random images with their predictions, confident mistakes, and the first filters."""
    (trained, images, labels), probabilities = found.predictions[:3], found.probabilities
    kernel = layer_table.first_kernel(trained.model, trained.variables, trained.image_shape)
    if kernel is not None and not trained.members:
        height, width, _, count = kernel.shape
        words = f"{count} filters of {height} x {width} pixels, each scaled to its own contrast."
        yield _picture("filters", "Filters of the first layer", words, plots.plot_filters, kernel)
    names = trained.class_names
    wrong = np.flatnonzero(found.predicted != labels)
    surest = np.argsort(-probabilities[wrong].max(axis=1), kind="stable")
    size = min(_NUM_SHOWN, len(labels))
    chosen = np.sort(np.random.default_rng(0).choice(len(labels), size, replace=False))
    words = "Above each image: its class and number. Below: the three most probable classes."
    for name, title, caption, shown in (
        ("predictions", "Images and predictions", f"{words} Chosen at random.", chosen),
        ("mistakes", "Most confident mistakes", words, wrong[surest][:num_mistakes]),
    ):
        if len(shown):
            titles = [f"{shorten_middle(names[labels[index]], 11)} #{index}" for index in shown]
            arguments = (probabilities[shown], names, labels[shown], titles)
            yield _picture(name, title, caption, plots.plot_predictions, images[shown], *arguments)
    has_map = gradcam.find_last_map(trained.model, trained.image_shape) is not None
    if len(shown) and has_map and not trained.members:
        heat = gradcam.explain_images(trained, images[shown], found.predicted[shown])
        shining = [plots.overlay_heat(*pair) for pair in zip(images[shown], heat, strict=True)]
        title, words = "What the mistakes rest on", f"{_SHINING} of the predicted class."
        yield _picture("explanations", title, words, plots.plot_predictions, shining, *arguments)
