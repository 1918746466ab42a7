"""Where a classifier errs and how sure it is: numbers, and their pictures."""

import csv
import io
from collections.abc import Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.colors import LinearSegmentedColormap, PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from sklearn import metrics

from cifar_jax.reports.plots import WIDTH, colour_of, new_figure, styled
from cifar_jax.text import shorten_middle

_HEIGHT = 4.7  # inches, of each picture here, so that they stand side by side
_MOST_NAMED = 20  # classes whose names, and in the matrix numbers, find room
_PERCENT = PercentFormatter(1.0, symbol="", decimals=0)


class ClassScores(NamedTuple):
    """Scores of each class, float64 [classes], nan where there is nothing to divide by.

    Attributes:
      precision: the right ones of the images that were given the class.
      recall: the right ones of the images that are of the class.
      f1: the harmonic mean of both.
      support: int [classes], the images that are of the class.
    """

    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray
    support: np.ndarray


class Calibration(NamedTuple):
    """How often answers of some confidence are right; an answer's confidence is its probability.

    Attributes:
      confidence: float64 [bins], mean of the answers in a bin; 0 where there are none.
      accuracy: float64 [bins], the right share of them.
      num_answers: int [bins], how many they are.
      error: the expected calibration error, the mean over all answers of their bin's
        |accuracy - confidence| (Guo et al. 2017, https://arxiv.org/abs/1706.04599).
    """

    confidence: np.ndarray
    accuracy: np.ndarray
    num_answers: np.ndarray
    error: float


def confusion(labels: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
    """Returns how many images of each class (rows) were given each class (columns)."""
    return metrics.confusion_matrix(labels, predicted, labels=np.arange(num_classes))


def class_scores(labels: np.ndarray, predicted: np.ndarray, num_classes: int) -> ClassScores:
    """Returns precision, recall and F1 of each class, from int [images] of classes."""
    classes = np.arange(num_classes)
    return ClassScores(
        *metrics.precision_recall_fscore_support(
            labels, predicted, labels=classes, zero_division=np.nan
        )
    )


def calibrate(probabilities: np.ndarray, labels: np.ndarray, num_bins: int = 15) -> Calibration:
    """Compares the confidence of answers with how often they are right.

    Args:
      probabilities: float [images, classes]; the most probable class is the answer.
      labels: int [images].
      num_bins: bins of the same width, the upper end included.
    """
    confidence = probabilities.max(axis=1)
    correct = probabilities.argmax(axis=1) == labels
    place = np.searchsorted(np.linspace(0, 1, num_bins + 1)[1:-1], confidence)
    count = np.bincount(place, minlength=num_bins)
    sums = [np.bincount(place, weights, num_bins) for weights in (confidence, correct)]
    error = float(np.abs(sums[0] - sums[1]).sum() / len(labels))
    return Calibration(sums[0] / np.maximum(count, 1), sums[1] / np.maximum(count, 1), count, error)


def answers_csv(labels: np.ndarray, probabilities: np.ndarray, class_names: Sequence[str]) -> str:
    """Returns a line for each image: its number, truth, answer, whether right, probabilities."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    columns = (f"probability of {name}" for name in class_names)
    writer.writerow(("index", "truth", "predicted", "correct", *columns))
    for index, (label, row) in enumerate(zip(labels, probabilities, strict=True)):
        answer = row.argmax()
        shares = (f"{share:.6g}" for share in row)
        names = (class_names[label], class_names[answer])
        writer.writerow((index, *names, int(label == answer), *shares))
    return file.getvalue()


@styled
def plot_confusion(matrix: np.ndarray, class_names: Sequence[str]) -> Figure:
    """Draws a confusion matrix; with few classes, counts and percent of the row stand in its cells.

    Args:
      matrix: int [classes, classes], truth by prediction.
      class_names: of the classes.
    """
    named = len(matrix) <= _MOST_NAMED
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    ground, ink = matplotlib.rcParams["axes.facecolor"], matplotlib.rcParams["text.color"]
    colours = LinearSegmentedColormap.from_list("share", [ground, colour_of(0)])
    norm = PowerNorm(0.5, 0, 1)  # a few percent are seen
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
    """Draws precision, recall and F1 of each class; of many classes, of those with the lowest F1.

    Args:
      scores: of the classes.
      class_names: likewise.
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
def plot_calibration(calibration: Calibration) -> Figure:
    """Draws the reliability diagram above the distribution of the confidences."""
    bins = len(calibration.num_answers)
    edges = np.linspace(0, 1, bins + 1)[:-1]
    some = calibration.num_answers > 0
    figure = new_figure(_HEIGHT, WIDTH)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    bars: dict[str, Any] = {"width": 0.92 / bins, "align": "edge"}
    top.bar(edges[some], calibration.accuracy[some], color=colour_of(0), label="accuracy", **bars)
    top.plot([0, 1], [0, 1], "--", color=colour_of(6), linewidth=1, label="perfectly calibrated")
    mean = (calibration.confidence[some], calibration.confidence[some])
    top.plot(*mean, "D", color=colour_of(1), ms=4.5, label="mean confidence")
    top.set(ylabel="accuracy (%)", xlim=(0, 1), ylim=(0, 1.03))
    top.yaxis.set_major_formatter(_PERCENT)
    figure.legend(loc="outside upper center", ncols=3, fontsize=8, columnspacing=1)
    words = f"expected calibration error {calibration.error:.2%}, {bins} bins"
    top.set_title(words)
    share = calibration.num_answers / calibration.num_answers.sum()
    bottom.bar(edges, share, color=colour_of(6), **bars)
    bottom.set(xlabel="confidence of the answer (%)", ylabel="images (%)")
    for axis in (bottom.xaxis, bottom.yaxis):
        axis.set_major_formatter(_PERCENT)
    return figure
