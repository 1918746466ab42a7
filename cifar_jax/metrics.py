"""What is counted while training and evaluating; reduced on the device."""

from typing import Any

import flax
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


Sums = dict[str, tuple[float, float]]


def to_sums(collection: Metrics) -> Sums:
    """Returns name -> (total, number of images) as Python numbers, fetched from the device."""
    parts = {"loss": collection.loss, "accuracy": collection.accuracy}
    return {name: (float(part.total), float(part.count)) for name, part in parts.items()}


def from_sums(sums: Sums) -> Metrics:
    """Returns the collection that `to_sums` gave these sums; the empty one for none."""
    empty = Metrics.empty()

    def fill(part: Any, name: str) -> Any:
        total, count = sums.get(name, (0, 0))
        return part.replace(
            total=np.asarray(total, part.total.dtype), count=np.asarray(count, part.count.dtype)
        )

    return empty.replace(loss=fill(empty.loss, "loss"), accuracy=fill(empty.accuracy, "accuracy"))


def means(sums: Sums) -> dict[str, float]:
    """Returns name -> mean."""
    return {name: total / count for name, (total, count) in sums.items()}
