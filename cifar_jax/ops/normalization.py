"""Batch normalisation, with what follows it, in few passes over memory."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from cifar_jax.ops.activation import relu
from cifar_jax.ops.derivatives import with_gradient

Activation = Callable[[jax.Array], jax.Array]


def normalize_batch(
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    epsilon: jax.Array | float,
    shortcut: jax.Array | None = None,
    activation: Activation | None = None,
    dtype: DTypeLike | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Normalises each channel over all other axes (Ioffe and Szegedy, 2015).

    Everything is computed in float32 at least. The gradient keeps `x` and `shortcut`, or the result
    instead of it, and computes the rest again.

    Args:
      x: [..., channels].
      scale: [channels].
      bias: [channels].
      epsilon: added to the variance.
      shortcut: added to the normalised values, in the shape of `x`.
      activation: applied to these elementwise.
      dtype: of the result; None: the wider of `x`'s and float32.

    Returns:
      The result, and the mean and the variance, [channels] each. The last two have no gradient.
    """
    result = jnp.dtype(dtype or _wide(x))
    forward = functools.partial(_forward, activation, result)

    def normalize(*args):
        return forward(*args)[0]

    def plain(*args):
        y, mean, variance = normalize(*args)
        return y, lax.stop_gradient(mean), lax.stop_gradient(variance)

    backward = functools.partial(_backward, activation)
    return with_gradient(normalize, plain, forward, backward)(x, scale, bias, epsilon, shortcut)


def _forward(activation, dtype, x, scale, bias, epsilon, shortcut):
    shortcut = _recompute(shortcut)
    count = x.size // x.shape[-1]
    wide = x.astype(_wide(x))
    total, squares = _sum_both(wide, wide * wide)
    mean = total / count
    variance = jnp.maximum(0.0, squares / count - mean * mean)
    inverse = lax.rsqrt(variance + epsilon)
    statistics = mean, inverse, scale, bias
    y = _scale(x, statistics, shortcut)
    y = (activation(y) if activation else y).astype(dtype)
    # What the activation's slope depends on: of ReLU the result says it, too.
    clue = y if activation is relu and shortcut is not None else shortcut
    kind = None if shortcut is None else jnp.zeros((), shortcut.dtype)
    return (y, mean, variance), (x, statistics, clue, kind)


def _scale(x, statistics, shortcut=None):
    mean, inverse, scale, bias = statistics
    factor = inverse * scale
    # One multiplication and one addition for each element, here and in the gradient.
    y = x.astype(_wide(x)) * factor + (bias - mean * factor)
    return y if shortcut is None else y + shortcut


def _backward(activation, saved, gradients):
    gradient, (x, statistics, clue, kind) = gradients[0], _recompute(saved)
    if activation is relu and kind is not None:
        # The masked gradient is that of the shortcut: it is stored once.
        gradient, activation = jnp.where(clue > 0, gradient, 0), None

    def enter(gradient, x):
        """The gradient by what the activation was applied to."""
        if activation is None:
            return gradient.astype(jnp.result_type(_wide(x), scale, bias))
        result, pull = jax.vjp(activation, _scale(x, statistics, clue))
        return pull(gradient.astype(result.dtype))[0]

    mean, inverse, scale, bias = statistics
    count = x.size // x.shape[-1]
    inner = enter(gradient, x)
    for_bias, products = _sum_both(inner, inner * x.astype(inner.dtype))
    for_scale = (products - mean * for_bias) * inverse
    factor = scale * inverse
    slope = -factor * inverse * for_scale / count
    offset = -factor * for_bias / count - slope * mean
    # Recomputed once more: reading the input and the gradient twice costs less than writing and
    # reading what was computed from them.
    gradient, x, slope, offset = _recompute((gradient, x, slope, offset))
    inner = enter(gradient, x)
    for_x = inner * factor + (x.astype(inner.dtype) * slope + offset)
    for_shortcut = None if kind is None else inner.astype(kind.dtype)
    for_scale, for_bias = for_scale.astype(scale.dtype), for_bias.astype(bias.dtype)
    return for_x.astype(x.dtype), for_scale, for_bias, None, for_shortcut


@jax.custom_jvp
def _sum_both(one, other):
    """The sums of each channel of two arrays; on an accelerator they are one reduction.

    With two reductions, XLA stores what both are computed from, unless that is very cheap.
    """
    axes, zero = tuple(range(one.ndim - 1)), jnp.zeros((), one.dtype)

    def reduce(one, other):
        def add(a, b):
            return a[0] + b[0], a[1] + b[1]

        return tuple(lax.reduce((one, other), (zero, zero), add, axes))

    def separate(one, other):
        return jnp.sum(one, axes), jnp.sum(other, axes)

    return lax.platform_dependent(one, other, cpu=separate, default=reduce)


@_sum_both.defjvp
def _sum_both_jvp(arrays, tangents):
    return _sum_both(*arrays), tuple(jnp.sum(t, tuple(range(t.ndim - 1))) for t in tangents)


def _recompute(tree: Any) -> Any:
    """Returns the arrays unchanged, but makes an accelerator recompute what depends on them.

    Otherwise XLA finds that it has computed it before, and keeps it in memory.
    """
    return lax.platform_dependent(tree, cpu=lambda tree: tree, default=lax.optimization_barrier)


def _wide(x):
    return jnp.promote_types(x.dtype, jnp.float32)
