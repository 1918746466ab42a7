"""Batch normalisation with few passes over memory."""

import jax
import jax.numpy as jnp
from jax import lax


@jax.custom_vjp
def normalize_batch(
    x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: jax.Array | float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Normalises each channel over all other axes (Ioffe and Szegedy, 2015).

    Args:
      x: [..., channels]; statistics are computed in float32 at least.
      scale: [channels].
      bias: [channels].
      epsilon: added to the variance.

    Returns:
      The result in the wider type of `x` and float32, the mean and the variance, [channels] each.
      The last two have no gradient.
    """
    return _forward(x, scale, bias, epsilon)[0]


def _forward(x, scale, bias, epsilon):
    axes, count = tuple(range(x.ndim - 1)), x.size // x.shape[-1]
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    mean = jnp.sum(wide, axes) / count
    variance = jnp.maximum(0.0, jnp.sum(wide * wide, axes) / count - mean * mean)
    inverse = lax.rsqrt(variance + epsilon)
    factor = inverse * scale
    # One multiplication and one addition for each element, here and in the gradient.
    y = wide * factor + (bias - mean * factor)
    return (y, mean, variance), (x, scale, mean, inverse)


def _backward(saved, gradients):
    x, scale, mean, inverse = saved
    gradient = gradients[0]
    axes, count = tuple(range(x.ndim - 1)), x.size // x.shape[-1]
    wide = x.astype(gradient.dtype)
    for_bias = jnp.sum(gradient, axes)
    for_scale = (jnp.sum(gradient * wide, axes) - mean * for_bias) * inverse
    factor = scale * inverse
    slope = -factor * inverse * for_scale / count
    offset = -factor * for_bias / count - slope * mean
    for_x = gradient * factor + (wide * slope + offset)
    return for_x.astype(x.dtype), for_scale, for_bias, None


normalize_batch.defvjp(_forward, _backward)
