"""The state of training: arrays only."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from cifar_jax.augment.batch import normalize
from cifar_jax.config.durations import Durations
from cifar_jax.data.datasets import Dataset
from cifar_jax.models.registry import make_variables
from cifar_jax.optim.build import create_optimizer

# Training images that are given to models whose initial parameters depend on them.
_IMAGES_FOR_PARAMS = 5000


@flax.struct.dataclass
class TrainState:
    """Everything that a step changes, and nothing else.

    Attributes:
      step: int32 [], the number of steps made.
      params: the model's parameters.
      batch_stats: running statistics of the norms; empty without any.
      opt_state: the optimizer's state.
      ema: {"params", "batch_stats"}, their moving averages; empty when averaging is off.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any
    ema: Any

    def variables(self) -> dict[str, Any]:
        """Returns the variables to evaluate: the moving averages if there are any."""
        return self.ema or {"params": self.params, "batch_stats": self.batch_stats}


def make_init(
    config: Any,
    durations: Durations,
    model: nn.Module,
    image_shape: Sequence[int],
    given: Mapping[str, Any] | None = None,
) -> Callable[[jax.Array], TrainState]:
    """Returns the pure function from a key to the state before the first step.

    Args:
      config: a checked config.
      durations: of the run.
      model: the network.
      image_shape: (height, width, channels).
      given: parameters that replace the random ones, such as those of `params_from_data`.
    """
    optimizer = create_optimizer(config, durations)
    create = make_variables(model, image_shape)

    def init(key: jax.Array) -> TrainState:
        variables = create(key)
        params = _replace(variables["params"], given or {})
        batch_stats = variables.get("batch_stats", {})
        averages = {"params": params, "batch_stats": batch_stats} if config.ema_decay else {}
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            batch_stats=batch_stats,
            opt_state=optimizer.init(params),
            ema=jax.tree.map(jnp.copy, averages),
        )

    return init


def params_from_data(model: nn.Module, dataset: Dataset) -> Mapping[str, Any]:
    """Returns the initial parameters that depend on the training images; empty for most models.

    Args:
      model: the network. If it has a method `params_from_data`, that is called with the first
        training images, normalised, and returns these parameters as a part of the tree.
      dataset: the data.
    """
    if not hasattr(model, "params_from_data"):
        return {}
    images = jnp.asarray(dataset.splits["train"].images[:_IMAGES_FOR_PARAMS])
    return model.params_from_data(normalize(images, dataset.mean, dataset.std, jnp.float32))


def _replace(tree: Any, parts: Any) -> Any:
    """Returns a tree of dicts with those leaves replaced that `parts` has."""
    if not isinstance(tree, Mapping):
        return parts
    return {k: _replace(v, parts[k]) if k in parts else v for k, v in tree.items()}


def all_finite(tree: Any, num_seeds: int = 1) -> np.ndarray:
    """Returns for each seed whether every number in its arrays is finite, bool [num_seeds].

    Computed on the host, to which the first process copies the arrays for the save anyway: a
    program for the devices would take long to compile, with a kernel for each array.

    Args:
      tree: arrays; with several seeds, their first axis is that of the seeds.
      num_seeds: the number of seeds.
    """
    floats = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.inexact)]
    finite = np.ones(num_seeds, bool)
    for leaf in jax.device_get(floats):
        finite &= np.isfinite(leaf).reshape(num_seeds, -1).all(axis=1)
    return finite
