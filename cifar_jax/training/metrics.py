"""Loss and accuracy during training: measured in each step, added up on the host."""

from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
from clu import metrics


@flax.struct.dataclass
class Metrics(metrics.Collection):
    """What is measured: the mean loss and the accuracy of the images."""

    loss: metrics.Average.from_output("loss")  # type: ignore[valid-type]
    accuracy: metrics.Accuracy


# What `measure` gives, in its order.
NAMES = ("loss", "accuracy")
# Name -> (total, number of images): numbers, or with several seeds lists with a number per seed.
Sums = dict[str, tuple[Any, Any]]


def measure(losses: jax.Array, logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Returns the sums over a batch, float32 [2]: of the losses, and of the correct images.

    Args:
      losses: of each image, float32 [batch].
      logits: [batch, classes].
      labels: int32 [batch].
    """
    batch = Metrics.single_from_model_output(loss=losses, logits=logits, labels=labels)
    return jnp.stack([getattr(batch, name).total for name in NAMES]).astype(jnp.float32)


def add_steps(sums: Sums, measured: np.ndarray, batch_size: int) -> Sums:
    """Returns the sums with those of more steps, which are added one after another.

    So the sums do not depend on how the steps are divided into calls.

    Args:
      sums: of earlier steps; {} for none.
      measured: the results of `measure`, [steps, 2] or [seeds, steps, 2].
      batch_size: images per step.
    """
    added = {}
    for name, each in zip(NAMES, np.moveaxis(np.asarray(measured, np.float64), -1, 0), strict=True):
        total, count = (np.broadcast_to(x, each.shape[:-1]) for x in sums.get(name, (0.0, 0.0)))
        total = np.cumsum(np.concatenate([total[..., None], each], axis=-1), axis=-1)[..., -1]
        count = count + float(batch_size * each.shape[-1])
        added[name] = (total.tolist(), count.tolist())
    return added


def means(sums: Sums) -> dict[str, float]:
    """Returns name -> mean; with several seeds, the mean over all of them."""
    return {name: float(np.sum(total) / np.sum(count)) for name, (total, count) in sums.items()}


def by_seed(sums: Sums) -> list[Sums]:
    """Returns the sums of each seed."""
    columns = [np.reshape(parts, (2, -1)).T for parts in sums.values()]
    return [dict(zip(sums, map(tuple, own), strict=True)) for own in zip(*columns, strict=True)]
