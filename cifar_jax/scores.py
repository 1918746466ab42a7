"""The logits of a set of images, every image exactly once, and what they score."""

import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from scipy import special

from cifar_jax import devices, tables

# Images that lie on the devices at one time.
_CHUNK_BYTES = 64 * 2**20


class Scores(NamedTuple):
    """Of all images of a split: mean cross-entropy in nats, and how many answers are right."""

    loss: float
    accuracy: float
    num_correct: int
    num_images: int


def predict_logits(
    predict: Callable[..., jax.Array],
    variables: Any,
    images: np.ndarray,
    batch_size: int,
    mesh: Mesh,
) -> np.ndarray:
    """Returns the logits of every image, float32 [images, classes], or of several runs
    [runs, images, classes].

    The last batch, and every batch that the devices do not divide, is padded with black images
    whose logits are cut off again.

    Args:
      predict: the program of `steps.compile_predict`.
      variables: what the model is applied to.
      images: uint8 [images, height, width, channels].
      batch_size: images of one step.
      mesh: the devices.
    """
    num_images = len(images)
    sharing = mesh.shape["data"]
    batch_size = -(-min(batch_size, num_images) // sharing) * sharing
    num_batches = -(-num_images // batch_size)
    most = max(1, _CHUNK_BYTES // (batch_size * int(np.prod(images.shape[1:]))))
    num_calls = -(-num_batches // most)
    batches = -(-num_batches // num_calls)
    rows = batches * batch_size
    logits = []
    for first in range(0, num_images, rows):
        chunk = np.asarray(images[first : first + rows])
        size = len(chunk)
        padding = [(0, rows - size)] + [(0, 0)] * (chunk.ndim - 1)
        chunk = np.pad(chunk, padding).reshape(batches, batch_size, *chunk.shape[1:])
        out = predict(variables, devices.put(mesh, chunk, PartitionSpec(None, "data")))
        logits.append(np.asarray(out).reshape(*out.shape[:-3], rows, -1)[..., :size, :])
    return np.concatenate(logits, axis=-2)


def score(logits: np.ndarray, labels: np.ndarray) -> Scores:
    """Counts every image once, in float64.

    Args:
      logits: [images, classes].
      labels: int [images].
    """
    logits = logits.astype(np.float64)
    with np.errstate(invalid="ignore"):  # the loss of infinite logits is nan
        shifted = logits - logits.max(axis=1, keepdims=True)
    log_sums = np.log(np.exp(shifted).sum(axis=1))
    losses = log_sums - shifted[np.arange(len(labels)), labels]
    correct = int((logits.argmax(axis=1) == labels).sum())
    return Scores(float(losses.mean()), correct / len(labels), correct, len(labels))


def pool(every: Sequence[Scores]) -> Scores:
    """Returns the scores over all answers of several seeds to one split."""
    losses, _, correct, images = zip(*every, strict=True)
    return Scores(statistics.fmean(losses), sum(correct) / sum(images), sum(correct), sum(images))


class Summary(NamedTuple):
    """Of a value over several seeds; what a single one does not tell is None.

    Attributes:
      mean: of the values.
      std: their standard deviation, as of a sample.
      interval: in which the mean over all seeds lies with 95 %, by Student's t distribution.
    """

    mean: float
    std: float | None = None
    interval: tuple[float, float] | None = None


def summarize(values: Sequence[float]) -> Summary:
    """Returns the mean of the seeds' values and how sure it is."""
    count, mean = len(values), statistics.fmean(values)
    if count == 1:
        return Summary(mean)
    std = statistics.stdev(values)
    half = float(special.stdtrit(count - 1, 0.975)) * std / math.sqrt(count)
    return Summary(mean, std, (mean - half, mean + half))


def softmax(logits: np.ndarray) -> np.ndarray:
    """Returns the class probabilities, float64 [..., classes], of logits of that shape."""
    logits = logits.astype(np.float64)
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def result(seeds: Sequence[int], scores: Sequence[Scores]) -> dict[str, Any]:
    """Returns what result.json says of the scores on the test split; of several seeds, of each."""
    parts = [
        {"test_accuracy": x.accuracy, "test_loss": x.loss, "num_correct": x.num_correct}
        for x in scores
    ]
    images = {"num_images": scores[0].num_images}
    if len(seeds) == 1:
        return parts[0] | images
    return (
        summary("test_accuracy", [x.accuracy for x in scores])
        | summary("test_loss", [x.loss for x in scores])
        | images
        | {"seeds": [{"seed": seed} | part for seed, part in zip(seeds, parts, strict=True)]}
    )


def summary(name: str, values: Sequence[float]) -> dict[str, Any]:
    """Returns the fields of a result for the values of the seeds."""
    mean, std, interval = summarize(values)
    return {name: mean, f"{name}_std": std, f"{name}_interval": interval and list(interval)}


def describe_seeds(split: str, seeds: Sequence[int], scores: Sequence[Scores]) -> str:
    """Returns the line of a single seed, or the table of several and their means."""
    if len(seeds) == 1:
        return describe(split, scores[0])
    rows = [("seed", f"{split} accuracy", "right", "loss")]
    for seed, own in zip(seeds, scores, strict=True):
        rows.append((str(seed), f"{own.accuracy:.2%}", str(own.num_correct), f"{own.loss:.4f}"))
    return (
        tables.format_table(rows, right=range(4))
        + f"\n{split} accuracy {describe_summary([x.accuracy for x in scores])}"
        + f"  loss {statistics.fmean(x.loss for x in scores):.4f}"
    )


def describe_summary(shares: Sequence[float]) -> str:
    """Returns words for the mean of the seeds' shares, their deviation and the mean's interval."""
    mean, std, interval = summarize(shares)
    if std is None or interval is None:
        return f"{mean:.2%}"
    low, high = interval
    return f"{mean:.2%} +- {std:.2%} (95% interval of the mean {low:.2%} to {high:.2%})"


def describe(split: str, scores: Scores) -> str:
    """Returns the line that tells a split's scores."""
    return (
        f"{split} accuracy {scores.accuracy:.2%} ({scores.num_correct} of {scores.num_images})  "
        f"loss {scores.loss:.4f}"
    )
