"""Numbers and pictures of where a classifier errs and how confident it is."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from sklearn import metrics

from cifar_jax.evaluation.calibration import Calibration
from cifar_jax.reports.backend import (
    Figure,
    LinearSegmentedColormap,
    PercentFormatter,
    PowerNorm,
    matplotlib,
)
from cifar_jax.reports.style import colour_of, new_figure, styled
from cifar_jax.text import shorten_middle

_HEIGHT = 4.2  # inches, of every picture here: they appear side by side
_MOST_NAMED = 20  # classes for whose names, and numbers in the matrix, there is room
_PERCENT = PercentFormatter(1.0, symbol="", decimals=0)


class ClassScores(NamedTuple):
    """Scores of each class; nan where a score would divide by zero.

    Attributes:
      precision: float64 [classes], the correct share of the predictions of the class.
      recall: float64 [classes], the share of the images of the class that are predicted as it.
      f1: float64 [classes], the harmonic mean of precision and recall.
      support: int [classes], the number of images of the class.
    """

    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray
    support: np.ndarray


def score_classes(labels: np.ndarray, predicted: np.ndarray, num_classes: int) -> ClassScores:
    """Returns the scores of each class.

    Args:
      labels: int [images], the true classes.
      predicted: int [images], the predicted classes.
      num_classes: the number of classes, some of which may not occur.
    """
    classes = np.arange(num_classes)
    return ClassScores(
        *metrics.precision_recall_fscore_support(
            labels, predicted, labels=classes, zero_division=np.nan
        )
    )


def prediction_rows(
    labels: np.ndarray,
    probabilities: np.ndarray,
    class_names: Sequence[str],
    origin: Mapping[str, np.ndarray],
) -> Iterator[Sequence[object]]:
    """Yields the rows of a table of predictions: the header, then one for each image.

    Args:
      labels: int [images], the true classes.
      probabilities: float [images, classes].
      class_names: the names of the classes.
      origin: columns [images] that say where each image is in the set.
    """
    columns = (f"probability of {name}" for name in class_names)
    yield ("index", *origin, "truth", "predicted", "correct", "loss", *columns)
    for index, (label, row) in enumerate(zip(labels, probabilities, strict=True)):
        predicted = row.argmax()
        loss = -np.log(max(row[label], np.finfo(row.dtype).tiny))
        shares = (f"{share:.6g}" for share in row)
        names = (class_names[label], class_names[predicted])
        places = (column[index] for column in origin.values())
        yield (index, *places, *names, int(label == predicted), f"{loss:.6g}", *shares)


@styled
def plot_confusion(labels: np.ndarray, predicted: np.ndarray, class_names: Sequence[str]) -> Figure:
    """Draws the confusion matrix; with few classes, its cells show counts and row percentages.

    Args:
      labels: int [images], the true classes.
      predicted: int [images], the predicted classes.
      class_names: the names of the classes.
    """
    matrix = metrics.confusion_matrix(labels, predicted, labels=np.arange(len(class_names)))
    named = len(matrix) <= _MOST_NAMED
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    ground, ink = matplotlib.rcParams["axes.facecolor"], matplotlib.rcParams["text.color"]
    colours = LinearSegmentedColormap.from_list("share", [ground, colour_of(0)])
    norm = PowerNorm(0.5, 0, 1)  # makes a few percent visible
    figure = new_figure(_HEIGHT)
    axes = figure.add_subplot()
    image = axes.imshow(share, cmap=colours, norm=norm)
    axes.grid(False)
    axes.set(xlabel="Predicted", ylabel="Truth")
    if named:
        names, places = [shorten_middle(name, 14) for name in class_names], range(len(matrix))
        long = max(map(len, names)) > 2
        axes.set_xticks(places, names, rotation=45 if long else 0, ha="right" if long else "center")
        axes.set_yticks(places, names)
        size = min(7, 70 / len(matrix))
        for row, column in np.argwhere(matrix):
            text = f"{matrix[row, column]}\n{share[row, column]:.0%}"
            colour = ground if norm(share[row, column]) > 0.6 else ink
            axes.text(
                column, row, text, ha="center", va="center", fontsize=size, color=colour
            ).set_linespacing(1.0)
    else:
        axes.set(xlabel="Predicted (number of the class)", ylabel="Truth (number of the class)")
        bar = figure.colorbar(image, ax=axes, orientation="horizontal", shrink=0.7, aspect=30)
        bar.set_ticks([0, 0.02, 0.1, 0.3, 0.6, 1], labels=["0", "2", "10", "30", "60", "100"])
        bar.set_label("images of the true class (%)")
    return figure


@styled
def plot_class_scores(scores: ClassScores, class_names: Sequence[str]) -> Figure:
    """Draws precision, recall and F1 of each class, or of those with the lowest F1 if many.

    Args:
      scores: the scores of the classes.
      class_names: the names of the classes.
    """
    shown = np.arange(len(class_names))
    figure = new_figure(_HEIGHT)
    axes = figure.add_subplot()
    if len(shown) > _MOST_NAMED:
        shown = np.argsort(scores.f1, kind="stable")[:_MOST_NAMED]
        axes.set_title(f"the {_MOST_NAMED} of {len(class_names)} classes with the lowest F1")
    places = np.arange(len(shown))
    parts = (("precision", "o"), ("recall", "s"), ("f1", "D"))
    values = [getattr(scores, name)[shown] for name, _ in parts]
    low, high = np.fmin.reduce(values), np.fmax.reduce(values)
    axes.hlines(places, low, high, color=matplotlib.rcParams["axes.edgecolor"], linewidth=3)
    for number, (name, marker) in enumerate(parts):
        label = name.replace("f1", "F1")
        options: dict[str, Any] = {"color": colour_of(number), "label": label, "ms": 5}
        axes.plot(values[number], places, marker, clip_on=False, **options)
    axes.set_yticks(places, [shorten_middle(class_names[int(number)], 16) for number in shown])
    axes.set(xlabel="score (%)", ylabel="class", ylim=(len(shown) - 0.4, -0.6))
    axes.set_xlim(min(0.9, np.nanmin(low) - 0.02), 1)
    axes.xaxis.set_major_formatter(_PERCENT)
    figure.legend(loc="outside upper center", ncols=3, handletextpad=0.1)
    return figure


@styled
def plot_calibration(calibration: Calibration, before: Calibration | None = None) -> Figure:
    """Draws the reliability diagram and, below it, how often each confidence occurs.

    Args:
      calibration: of the predictions.
      before: of the same predictions without their temperature; drawn hollow.
    """
    bins = len(calibration.num_predictions)
    edges = np.linspace(0, 1, bins + 1)[:-1]
    some = calibration.num_predictions > 0
    figure = new_figure(_HEIGHT)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    bars: dict[str, Any] = {"width": 0.92 / bins, "align": "edge"}
    # The edge shows a bin of accuracy 0, whose bar has no height.
    looks: dict[str, Any] = {
        "color": colour_of(0),
        "edgecolor": colour_of(0),
        "label": "accuracy",
        **bars,
    }
    top.bar(edges[some], calibration.accuracy[some], **looks)
    title = f"expected calibration error {calibration.error:.2%}, {bins} bins"
    if before:
        title = f"calibration error {before.error:.2%} before, {calibration.error:.2%} after"
        hollow: dict[str, Any] = {"color": colour_of(5), "fillstyle": "none", "ms": 7}
        old = before.num_predictions > 0
        points = (before.confidence[old], before.accuracy[old])
        top.plot(*points, "o", label="accuracy before", zorder=3, **hollow)
        counts = before.num_predictions[old] / before.num_predictions.sum()
        bottom.plot(edges[old] + 0.46 / bins, counts, "o", **hollow)
    top.plot([0, 1], [0, 1], "--", color=colour_of(6), linewidth=1, label="perfectly calibrated")
    mean = (calibration.confidence[some], calibration.confidence[some])
    top.plot(*mean, "D", color=colour_of(1), ms=4.5, label="mean confidence")
    top.set(ylabel="accuracy (%)", xlim=(0, 1), ylim=(0, 1.03))
    top.yaxis.set_major_formatter(_PERCENT)
    figure.legend(
        loc="outside upper center",
        ncols=2 if before else 3,
        fontsize=7.5,
        columnspacing=0.8,
        handlelength=1.4,
    )
    top.set_title(title)
    share = calibration.num_predictions / calibration.num_predictions.sum()
    bottom.bar(edges, share, color=colour_of(6), **bars)
    bottom.set(xlabel="confidence of the prediction (%)", ylabel="images (%)")
    for axis in (bottom.xaxis, bottom.yaxis):
        axis.set_major_formatter(_PERCENT)
    return figure
