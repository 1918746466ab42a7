"""Max pooling whose gradient is fast on a CPU too."""

import functools
import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax


def max_pool(
    inputs: jax.Array,
    window_shape: Sequence[int],
    strides: Sequence[int] | None = None,
    padding: str | Sequence[tuple[int, int]] = "VALID",
) -> jax.Array:
    """Pools as `nn.max_pool` does; on a CPU, windows that do not overlap have a faster gradient.

    Where several elements of a window are its largest, the first of them (by rows) gets the whole
    gradient on every platform.

    Args:
      inputs: [batch, height, width, channels].
      window_shape: the window's size along each spatial axis.
      strides: its steps, one by default.
      padding: "SAME", "VALID" or (low, high) for each spatial axis.

    Returns:
      The largest value of each window.
    """
    window = tuple(window_shape)
    if padding == "VALID" and inputs.ndim == 4 and strides is not None and tuple(strides) == window:
        return _pool_blocks(inputs, window)
    return nn.max_pool(inputs, window, strides, padding)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _pool_blocks(inputs, window):
    pool = functools.partial(nn.max_pool, window_shape=window, strides=window)
    return lax.platform_dependent(
        inputs,
        cpu=lambda x: functools.reduce(jnp.maximum, _corners(x, window)),
        default=pool,
    )


def _pool_forward(inputs, window):
    outputs = _pool_blocks(inputs, window)
    return outputs, (inputs, outputs)


def _pool_backward(window, saved, gradient):
    def xla(inputs, _, gradient):
        pool = functools.partial(nn.max_pool, window_shape=window, strides=window)
        return jax.vjp(pool, inputs)[1](gradient)[0]

    def cpu(inputs, outputs, gradient):
        rest, places = gradient, []
        for corner in _corners(inputs, window):
            won = corner == outputs
            places.append(jnp.where(won, rest, 0))
            rest = jnp.where(won, 0, rest)
        rows, columns = window
        blocks = [jnp.stack(places[i * columns : (i + 1) * columns], 3) for i in range(rows)]
        batch, height, width, channels = outputs.shape
        whole = jnp.stack(blocks, 2).reshape(batch, height * rows, width * columns, channels)
        edge = [(0, have - used) for have, used in zip(inputs.shape, whole.shape, strict=True)]
        return jnp.pad(whole, edge)

    return (lax.platform_dependent(*saved, gradient, cpu=cpu, default=xla),)


_pool_blocks.defvjp(_pool_forward, _pool_backward)


def _corners(inputs, window):
    """The elements of all windows at each place of the window, by rows."""
    height, width = (inputs.shape[1 + i] // window[i] * window[i] for i in range(2))
    inputs = inputs[:, :height, :width]
    return [
        inputs[:, i :: window[0], j :: window[1]] for i, j in itertools.product(*map(range, window))
    ]
