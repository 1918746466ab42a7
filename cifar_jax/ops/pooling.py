"""Max pooling whose gradient is fast on every platform."""

import functools
import itertools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from cifar_jax.ops.derivatives import with_gradient
from cifar_jax.ops.stock import is_stock

# Places in a window are kept in one byte.
_MOST_PLACES = 256


def max_pool(
    inputs: jax.Array,
    window_shape: Sequence[int],
    strides: Sequence[int] | None = None,
    padding: str | Sequence[tuple[int, int]] = "VALID",
) -> jax.Array:
    """Pools as `nn.max_pool` does; windows that do not overlap have a faster gradient.

    Where several elements of a window are its largest, the first of them (by rows) gets the whole
    gradient on every platform. The result of a window that holds a NaN is NaN; which of its
    elements then gets the gradient, if any, depends on the platform.

    Args:
      inputs: [batch, height, width, channels].
      window_shape: the window's size along each spatial axis.
      strides: its steps, one by default.
      padding: "SAME", "VALID" or (low, high) for each spatial axis.

    Returns:
      The largest value of each window.
    """
    window = tuple(window_shape)
    is_plain = padding == "VALID" and inputs.ndim == 4 and math.prod(window) <= _MOST_PLACES
    if is_plain and not is_stock() and strides is not None and tuple(strides) == window:
        return _pool_blocks(inputs, window)
    # By name, which an exporter that replaces this function relies on.
    return nn.max_pool(inputs, window_shape=window, strides=strides, padding=padding)


def _pool_blocks(inputs, window):
    pool, plain, forward, backward = (
        functools.partial(step, window) for step in (_pool, _plain_pool, _forward, _backward)
    )
    return with_gradient(pool, plain, forward, backward)(inputs)


def _pool(window, inputs):
    pool = functools.partial(nn.max_pool, window_shape=window, strides=window)
    return lax.platform_dependent(
        inputs,
        cpu=lambda x: functools.reduce(jnp.maximum, _corners(x, window)),
        default=pool,
    )


def _plain_pool(window, inputs):
    """The same, whose derivative takes the first of several largest elements, too."""
    return functools.reduce(lambda x, y: jnp.where(y > x, y, x), _corners(inputs, window))


def _forward(window, inputs):
    """The largest values and their places in the windows, counted by rows."""

    def cpu(inputs):
        outputs = _pool(window, inputs)
        return outputs, jnp.zeros(outputs.shape, jnp.uint8)

    def default(inputs):
        first, *others = _corners(inputs, window)
        outputs, places = first, jnp.zeros(first.shape, jnp.uint8)
        for place, corner in enumerate(others, 1):
            places = jnp.where(corner > outputs, jnp.uint8(place), places)
            outputs = jnp.maximum(outputs, corner)
        return outputs, places

    # Each platform's backward pass uses some of these; XLA drops the rest.
    outputs, places = lax.platform_dependent(inputs, cpu=cpu, default=default)
    return outputs, (inputs, outputs, places)


def _backward(window, saved, gradient):
    def cpu(inputs, outputs, _, gradient):
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

    def default(inputs, _, places, gradient):
        # Spread over whole windows, those that stick out over an edge included, then cut to size:
        # that is one kernel, where padding at the end would be another.
        edge = [(0, have % size) for have, size in zip(inputs.shape[1:3], window, strict=True)]
        edge = [(0, 0), *((0, min(1, rest)) for _, rest in edge), (0, 0)]
        gradient, places = jnp.pad(gradient, edge), jnp.pad(places, edge)
        batch, height, width, channels = gradient.shape
        rows, columns = window
        shape = (batch, height, rows, width, columns, channels)
        here = lax.broadcasted_iota(jnp.uint8, shape, 2) * jnp.uint8(columns)
        here += lax.broadcasted_iota(jnp.uint8, shape, 4)
        won = places[:, :, None, :, None] == here
        whole = jnp.where(won, gradient[:, :, None, :, None], 0)
        whole = whole.reshape(batch, height * rows, width * columns, channels)
        return whole[:, : inputs.shape[1], : inputs.shape[2]]

    return (lax.platform_dependent(*saved, gradient, cpu=cpu, default=default),)


def _corners(inputs, window):
    """The elements of all windows at each place of the window, by rows."""
    height, width = (inputs.shape[1 + i] // window[i] * window[i] for i in range(2))
    inputs = inputs[:, :height, :width]
    return [
        inputs[:, i :: window[0], j :: window[1]] for i, j in itertools.product(*map(range, window))
    ]
