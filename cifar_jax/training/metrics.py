"""Loss and accuracy during training, summed on the device."""

from typing import Any

import flax
import jax
import numpy as np
from clu import metrics
from jax.sharding import Mesh

from cifar_jax.parallel import devices, seeds


@flax.struct.dataclass
class Metrics(metrics.Collection):
    """Mean loss and accuracy over the images seen.

    `Metrics.single_from_model_output(loss=, logits=, labels=, mask=)` takes the loss of each image
    [batch], logits [batch, classes], labels [batch] and, optionally, a mask [batch] of the images
    that count; `merge` adds up, `compute` gives the means.
    """

    loss: metrics.Average.from_output("loss")  # type: ignore[valid-type]
    accuracy: metrics.Accuracy


# Name -> (total, number of images): numbers, or with several seeds lists with a number per seed.
Sums = dict[str, tuple[Any, Any]]


def to_sums(collection: Metrics) -> Sums:
    """Returns the sums as Python numbers, fetched from the device."""
    parts = {"loss": collection.loss, "accuracy": collection.accuracy}
    return {
        name: tuple(np.asarray(array, np.float64).tolist() for array in (part.total, part.count))
        for name, part in parts.items()
    }


def from_sums(sums: Sums, num_seeds: int = 1) -> Metrics:
    """Returns the collection with these sums, the inverse of `to_sums`; missing ones are 0."""
    shape = (num_seeds,) if num_seeds > 1 else ()
    empty = jax.tree.map(lambda leaf: np.broadcast_to(leaf, shape), Metrics.empty())

    def fill(part: Any, name: str) -> Any:
        total, count = (np.broadcast_to(number, shape) for number in sums.get(name, (0, 0)))
        return part.replace(
            total=np.asarray(total, part.total.dtype), count=np.asarray(count, part.count.dtype)
        )

    return empty.replace(loss=fill(empty.loss, "loss"), accuracy=fill(empty.accuracy, "accuracy"))


def put_metrics(mesh: Mesh, sums: Sums, num_seeds: int) -> Metrics:
    """Returns the metrics that continue these sums, on the mesh."""
    return devices.put(mesh, from_sums(sums, num_seeds), seeds.spec(num_seeds))


def means(sums: Sums) -> dict[str, float]:
    """Returns name -> mean; with several seeds, the mean over all of them."""
    return {name: float(np.sum(total) / np.sum(count)) for name, (total, count) in sums.items()}


def by_seed(sums: Sums) -> list[Sums]:
    """Returns the sums of each seed."""
    columns = [np.reshape(parts, (2, -1)).T for parts in sums.values()]
    return [dict(zip(sums, map(tuple, own), strict=True)) for own in zip(*columns, strict=True)]
