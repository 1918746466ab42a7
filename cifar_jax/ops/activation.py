"""Activations whose gradients keep little, and that XLA computes in place on accelerators."""

import functools
import math

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from cifar_jax.ops.stock import is_stock


def relu(x: jax.Array) -> jax.Array:
    """Returns the larger of x and 0, as `nn.relu` does.

    Its gradient looks at the result, which the next layer keeps anyway, where that of `nn.relu`
    keeps its input, too.
    """
    return nn.relu(x) if is_stock() else _relu(x)


@jax.custom_jvp
def _relu(x):
    return jnp.maximum(x, 0)


@_relu.defjvp
def _relu_jvp(primals, tangents):
    result = _relu(*primals)

    def select(tangent, result):
        return jnp.where(result > 0, tangent, 0)

    def multiply(tangent, result):
        # A condition is computed first and written to memory, a factor where it is used.
        return tangent * jnp.sign(result)

    return result, lax.platform_dependent(*tangents, result, cpu=select, default=multiply)


def gelu(x: jax.Array) -> jax.Array:
    """Returns x times the normal distribution function at x, like `nn.gelu(approximate=False)`.

    On an accelerator it is computed in float32 at least, by the error function. `nn.gelu` takes the
    complementary one, whose relative error is small even where the result is next to 0, and which
    costs so much more that XLA keeps it for the gradient.
    """
    exact = functools.partial(nn.gelu, approximate=False)
    if is_stock():
        return exact(x)
    return lax.platform_dependent(x, cpu=exact, default=_gelu)


@jax.custom_jvp
def _gelu(x):
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return (wide * _distribution(wide)).astype(x.dtype)


@_gelu.defjvp
def _gelu_jvp(primals, tangents):
    (x,), (tangent,) = primals, tangents
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    density = jnp.exp(-0.5 * wide * wide) / math.sqrt(2 * math.pi)
    slope = _distribution(wide) + wide * density
    return _gelu(x), (tangent * slope).astype(x.dtype)


def _distribution(x):
    return 0.5 + 0.5 * lax.erf(x * math.sqrt(0.5))
