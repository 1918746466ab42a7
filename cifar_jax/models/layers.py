"""The layers that all models are built from."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from cifar_jax import ops

Conv = functools.partial(nn.Conv, conv_general_dilated=ops.conv_general_dilated)
Dense = functools.partial(nn.Dense, dot_general=ops.dot_general)
max_pool = ops.max_pool
gelu, relu = ops.gelu, ops.relu


class BatchNorm(nn.Module):
    """Batch normalisation with the variables and the results of `nn.BatchNorm`, but faster.

    The last axis holds the channels. Statistics are in float32 at least; under `jax.jit` they are
    those of the whole batch on any number of devices.

    Attributes:
      use_running_average: whether to normalise by the running statistics, without updating them.
      momentum: the share of the running statistics that each step keeps.
      epsilon: added to the variance.
      dtype: of the result; None: the wider of the input's and the parameters' dtypes.
      param_dtype: of the parameters.
      use_bias: whether a bias is added.
      use_scale: whether the result is scaled.
      bias_init: the bias's initial values.
      scale_init: the scale's initial values.
      activation: applied to the result elementwise.
    """

    use_running_average: bool | None = None
    momentum: float = 0.99
    epsilon: float = 1e-5
    dtype: Any = None
    param_dtype: Any = jnp.float32
    use_bias: bool = True
    use_scale: bool = True
    bias_init: nn.initializers.Initializer = nn.initializers.zeros
    scale_init: nn.initializers.Initializer = nn.initializers.ones
    activation: Callable[[jax.Array], jax.Array] | None = None

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        use_running_average: bool | None = None,
        shortcut: jax.Array | None = None,
    ) -> jax.Array:
        """Returns x [..., channels] normalised, and updates the running statistics in training.

        Args:
          x: [..., channels].
          use_running_average: the attribute, if that is None.
          shortcut: of the same shape as x, added before the activation.
        """
        use_running_average = nn.merge_param(
            "use_running_average", self.use_running_average, use_running_average
        )
        shape = (x.shape[-1],)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, shape, jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, shape, jnp.float32)
        scale, bias = jnp.ones(shape, jnp.float32), jnp.zeros(shape, jnp.float32)
        params = []
        if self.use_scale:
            scale = self.param("scale", self.scale_init, shape, self.param_dtype)
            params.append(scale)
        if self.use_bias:
            bias = self.param("bias", self.bias_init, shape, self.param_dtype)
            params.append(bias)
        dtype = self.dtype or jnp.result_type(x, *params)

        if use_running_average:
            factor = lax.rsqrt(running_var.value + self.epsilon) * scale
            y = x * factor + (bias - running_mean.value * factor)
            y = y if shortcut is None else y + shortcut
            return (self.activation(y) if self.activation else y).astype(dtype)
        y, mean, var = ops.normalize_batch(
            x, scale, bias, self.epsilon, shortcut, self.activation, dtype
        )
        if not self.is_initializing():
            keep = self.momentum
            running_mean.value = keep * running_mean.value + (1 - keep) * mean
            running_var.value = keep * running_var.value + (1 - keep) * var
        return y
