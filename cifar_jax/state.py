"""The state of a training: arrays only."""

from collections.abc import Callable, Sequence
from typing import Any

import flax
import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from cifar_jax import models, optim
from cifar_jax.durations import Durations


@flax.struct.dataclass
class TrainState:
    """Everything that a step changes, and nothing else.

    Attributes:
      step: int32 [], steps made so far.
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
        """Returns what evaluation gives to the model: the averages where there are any."""
        return self.ema or {"params": self.params, "batch_stats": self.batch_stats}


def create_model(config: Any, num_classes: int) -> nn.Module:
    """Returns the model of a config."""
    options = config.model.to_dict()
    return models.create(
        options.pop("name"), num_classes, dtype=jnp.dtype(config.dtype).type, **options
    )


def create_schedule(config: Any, durations: Durations) -> optim.Schedule:
    """Returns the learning rate schedule of a config, a function of the step from 0."""
    peak = optim.scale_learning_rate(config.optimizer, config.batch_size)
    return optim.create_schedule(config.schedule, peak, durations)


def create_optimizer(config: Any, durations: Durations) -> optax.GradientTransformation:
    """Returns the optimizer of a config."""
    return optim.create_optimizer(config.optimizer, create_schedule(config, durations))


def make_variables(
    model: nn.Module, image_shape: Sequence[int]
) -> Callable[[jax.Array], dict[str, Any]]:
    """Returns the pure function from a key to a model's initial variables."""

    def init(key: jax.Array) -> dict[str, Any]:
        return dict(model.init(key, jnp.zeros((1, *image_shape)), train=False))

    return init


def make_init(
    config: Any, durations: Durations, model: nn.Module, image_shape: Sequence[int]
) -> Callable[[jax.Array], TrainState]:
    """Returns the pure function from a key to the state before the first step.

    Args:
      config: a checked config.
      durations: of the run.
      model: the network.
      image_shape: (height, width, channels).
    """
    optimizer = create_optimizer(config, durations)
    create = make_variables(model, image_shape)

    def init(key: jax.Array) -> TrainState:
        variables = create(key)
        params, batch_stats = variables["params"], variables.get("batch_stats", {})
        averages = {"params": params, "batch_stats": batch_stats} if config.ema_decay else {}
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            batch_stats=batch_stats,
            opt_state=optimizer.init(params),
            ema=jax.tree.map(jnp.copy, averages),
        )

    return init
