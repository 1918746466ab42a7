"""What is counted while training and evaluating; reduced on the device."""

from typing import Any

import flax
import jax
import numpy as np
from clu import metrics


@flax.struct.dataclass
class Metrics(metrics.Collection):
    """Mean loss and share of right answers over the images seen.

    `Metrics.single_from_model_output(loss=, logits=, labels=, mask=)` takes the loss of each image
    [batch], logits [batch, classes], labels [batch] and, optionally, a mask [batch] of the images
    that count; `merge` adds up, `compute` gives the means.
    """

    loss: metrics.Average.from_output("loss")  # type: ignore[valid-type]
    accuracy: metrics.Accuracy


# Name -> (total, number of images): numbers, or of several runs a list of numbers each.
Sums = dict[str, tuple[Any, Any]]


def to_sums(collection: Metrics) -> Sums:
    """Returns the sums as Python numbers, fetched from the device."""
    parts = {"loss": collection.loss, "accuracy": collection.accuracy}
    return {
        name: tuple(np.asarray(array, np.float64).tolist() for array in (part.total, part.count))
        for name, part in parts.items()
    }


def from_sums(sums: Sums, num_seeds: int = 1) -> Metrics:
    """Returns the collection that `to_sums` gave these sums; the empty one for none."""
    shape = (num_seeds,) if num_seeds > 1 else ()
    empty = jax.tree.map(lambda leaf: np.broadcast_to(leaf, shape), Metrics.empty())

    def fill(part: Any, name: str) -> Any:
        total, count = (np.broadcast_to(number, shape) for number in sums.get(name, (0, 0)))
        return part.replace(
            total=np.asarray(total, part.total.dtype), count=np.asarray(count, part.count.dtype)
        )

    return empty.replace(loss=fill(empty.loss, "loss"), accuracy=fill(empty.accuracy, "accuracy"))


def means(sums: Sums) -> dict[str, float]:
    """Returns name -> mean; of several runs over all of them."""
    return {name: float(np.sum(total) / np.sum(count)) for name, (total, count) in sums.items()}


def by_seed(sums: Sums) -> list[Sums]:
    """Returns the sums of each run."""
    columns = [np.reshape(parts, (2, -1)).T for parts in sums.values()]
    return [dict(zip(sums, map(tuple, own), strict=True)) for own in zip(*columns, strict=True)]
