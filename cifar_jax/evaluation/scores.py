"""Scores logits, for one seed or several: loss and accuracy, and the text that shows them."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import special

from cifar_jax.text import format_table


class Scores(NamedTuple):
    """How well a split is classified.

    Attributes:
      loss: the mean cross-entropy, in nats.
      accuracy: the share of the images that are classified right.
      num_correct: their number.
      num_images: the number of images.
      balanced_accuracy: the mean, over the classes that occur, of the share of a class's images
        that are classified right.
    """

    loss: float
    accuracy: float
    num_correct: int
    num_images: int
    balanced_accuracy: float


def score(logits: np.ndarray, labels: np.ndarray) -> Scores:
    """Scores logits in float64.

    Args:
      logits: [images, classes].
      labels: int [images].
    """
    with np.errstate(invalid="ignore"):  # the loss of infinite logits is nan
        log_probabilities = special.log_softmax(logits.astype(np.float64), axis=1)
    losses = -log_probabilities[np.arange(len(labels)), labels]
    right = logits.argmax(axis=1) == labels
    correct, counts = int(right.sum()), np.bincount(labels)
    recall = np.bincount(labels, right)[counts > 0] / counts[counts > 0]
    accuracy = correct / len(labels)
    return Scores(float(losses.mean()), accuracy, correct, len(labels), float(recall.mean()))


def pool(every: Sequence[Scores]) -> Scores:
    """Returns the scores over several seeds on one split."""
    losses, _, correct, images, balanced = zip(*every, strict=True)
    accuracy = sum(correct) / sum(images)
    means = statistics.fmean(losses), accuracy, sum(correct), sum(images)
    return Scores(*means, statistics.fmean(balanced))


def accuracy_interval(num_correct: int, num_images: int) -> tuple[float, float]:
    """Returns the 95 % confidence interval of an accuracy, for other images of the same kind.

    Wilson (1927), "Probable inference, the law of succession, and statistical inference".
    """
    count, share, z = num_images, num_correct / num_images, float(special.ndtri(0.975))
    centre = share + z * z / (2 * count)
    half = z * math.sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2)
    whole = 1 + z * z / count
    return (centre - half) / whole, (centre + half) / whole


class Summary(NamedTuple):
    """The mean of a value over several seeds, and its uncertainty.

    Attributes:
      mean: the mean of the values.
      std: their sample standard deviation; None with a single seed.
      interval: the 95 % confidence interval of the mean by Student's t distribution; None with a
        single seed.
    """

    mean: float
    std: float | None = None
    interval: tuple[float, float] | None = None


def summarize(values: Sequence[float]) -> Summary:
    """Returns the mean of the seeds' values and its uncertainty."""
    count, mean = len(values), statistics.fmean(values)
    if count == 1:
        return Summary(mean)
    std = statistics.stdev(values)
    half = float(special.stdtrit(count - 1, 0.975)) * std / math.sqrt(count)
    return Summary(mean, std, (mean - half, mean + half))


def result_fields(seeds: Sequence[int], scores: Sequence[Scores]) -> dict[str, Any]:
    """Returns the fields of result.json for the scores of each seed on the test split."""
    parts = [
        {
            "test_accuracy": x.accuracy,
            "test_balanced_accuracy": x.balanced_accuracy,
            "test_loss": x.loss,
            "num_correct": x.num_correct,
        }
        for x in scores
    ]
    images = {"num_images": scores[0].num_images}
    if len(seeds) == 1:
        return parts[0] | images
    return (
        summary_fields("test_accuracy", [x.accuracy for x in scores])
        | summary_fields("test_balanced_accuracy", [x.balanced_accuracy for x in scores])
        | summary_fields("test_loss", [x.loss for x in scores])
        | images
        | {"seeds": [{"seed": seed} | part for seed, part in zip(seeds, parts, strict=True)]}
    )


def summary_fields(name: str, values: Sequence[float]) -> dict[str, Any]:
    """Returns the fields of result.json for a value that each seed has."""
    mean, std, interval = summarize(values)
    return {name: mean, f"{name}_std": std, f"{name}_interval": interval and list(interval)}


def format_seed_scores(split: str, seeds: Sequence[int], scores: Sequence[Scores]) -> str:
    """Returns the line of a single seed, or a table of several seeds with their means."""
    if len(seeds) == 1:
        return format_scores(split, scores[0])
    columns = {"seed": [str(seed) for seed in seeds]}
    return f"{tabulate_scores(split, columns, scores)}\n{format_means(split, scores)}"


def tabulate_scores(
    split: str, columns: Mapping[str, Sequence[str]], scores: Sequence[Scores]
) -> str:
    """Returns a table with a row for each of several models.

    Args:
      split: the split's name.
      columns: the cells of further columns by their heads; the first is the models' names and comes
        before the scores, the others after them.
      scores: of each model.
    """
    cells: dict[str, Sequence[str]] = {
        f"{split} accuracy": [f"{own.accuracy:.2%}" for own in scores],
        "correct": [str(own.num_correct) for own in scores],
        "balanced accuracy": [f"{own.balanced_accuracy:.2%}" for own in scores],
        "loss": [f"{own.loss:.4f}" for own in scores],
    }
    name, *others = columns.items()
    cells = dict([name]) | cells | dict(others)
    rows = [tuple(cells), *zip(*cells.values(), strict=True)]
    return format_table(rows, right=range(1, len(cells)))


def format_means(split: str, scores: Sequence[Scores]) -> str:
    """Returns the line of the mean scores of several seeds."""
    words = f"{split} accuracy {format_summary([x.accuracy for x in scores])}"
    return f"{words}  loss {statistics.fmean(x.loss for x in scores):.4f}"


def format_summary(shares: Sequence[float]) -> str:
    """Returns the mean of the seeds' shares with its uncertainty, as text."""
    mean, std, interval = summarize(shares)
    if std is None or interval is None:
        return f"{mean:.2%}"
    low, high = interval
    return f"{mean:.2%} +- {std:.2%} (95% interval of the mean {low:.2%} to {high:.2%})"


def format_views(test_time: Any) -> str:
    """Returns ", test-time views NAME" for the config's `test_time`, or "" if it has none."""
    return "" if test_time.views == "plain" else f", test-time views {test_time.views}"


def format_scores(split: str, scores: Scores) -> str:
    """Returns the scores on a split in one line."""
    words = f"{split} accuracy {scores.accuracy:.2%} ({scores.num_correct} of {scores.num_images})"
    if is_uneven(scores):
        words += f"  balanced accuracy {scores.balanced_accuracy:.2%}"
    return f"{words}  loss {scores.loss:.4f}"


def is_uneven(scores: Scores) -> bool:
    """Whether balanced accuracy says something else than accuracy."""
    return not math.isclose(scores.accuracy, scores.balanced_accuracy, rel_tol=1e-12)
