"""A dense layer's product, whose gradient by the kernel has the kernel's own memory layout."""

from typing import Any

import jax
from jax import lax
from jax.typing import DTypeLike

from cifar_jax.ops.derivatives import with_gradient
from cifar_jax.ops.stock import is_stock


def dot_general(
    lhs: jax.Array,
    rhs: jax.Array,
    dimension_numbers: lax.DotDimensionNumbers,
    precision: lax.PrecisionLike = None,
    preferred_element_type: DTypeLike | None = None,
    **kwargs: Any,
) -> jax.Array:
    """Multiplies as `lax.dot_general` does; the product of two matrices has its own gradient.

    JAX computes the transpose of the gradient by `rhs`. On a CPU the optimizer then reads it across
    its rows, which took as long as a whole convolution with 32 channels. Here the same product is
    written the other way round.

    Args:
      lhs: [batch, inputs]; other shapes are passed to `lax.dot_general`, unchanged.
      rhs: [inputs, features].
      dimension_numbers, precision, preferred_element_type, **kwargs: as in `lax.dot_general`.

    Returns:
      [batch, features].
    """
    is_plain = (
        not is_stock()
        and lhs.ndim == rhs.ndim == 2
        and lhs.dtype == rhs.dtype
        and preferred_element_type in (None, lhs.dtype)
        and tuple(map(tuple, dimension_numbers[0])) == ((1,), (0,))
        and not any(value is not None for value in kwargs.values())
    )
    if is_plain:
        return _multiply(lhs, rhs, precision)
    return lax.dot_general(lhs, rhs, dimension_numbers, precision, preferred_element_type, **kwargs)


def _multiply(lhs, rhs, precision):
    def multiply(lhs, rhs):
        return _contract(lhs, rhs, (1, 0), precision)

    def forward(lhs, rhs):
        return multiply(lhs, rhs), (lhs, rhs)

    def backward(saved, gradient):
        lhs, rhs = saved
        return (
            _contract(gradient, rhs, (1, 1), precision),
            _contract(lhs, gradient, (0, 0), precision),
        )

    return with_gradient(multiply, multiply, forward, backward)(lhs, rhs)


def _contract(lhs, rhs, axes, precision):
    return lax.dot_general(lhs, rhs, (((axes[0],), (axes[1],)), ((), ())), precision)
