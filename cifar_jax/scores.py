"""The logits of a set of images, every image exactly once, and what they score."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from cifar_jax import devices

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
    """Returns the logits of every image, float32 [images, classes].

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
    per_device = -(-min(batch_size, num_images) // mesh.size)
    batch_size = per_device * mesh.size
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
        logits.append(np.asarray(out).reshape(rows, -1)[:size])
    return np.concatenate(logits)


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


def softmax(logits: np.ndarray) -> np.ndarray:
    """Returns the class probabilities, float64 [images, classes], of logits of that shape."""
    logits = logits.astype(np.float64)
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)


def describe(split: str, scores: Scores) -> str:
    """Returns the line that tells a split's scores."""
    return (
        f"{split} accuracy {scores.accuracy:.2%} ({scores.num_correct} of {scores.num_images})  "
        f"loss {scores.loss:.4f}"
    )
