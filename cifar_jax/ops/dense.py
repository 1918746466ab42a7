"""The product of a dense layer, whose kernel gradient comes out as the kernel lies in memory."""

import functools
from typing import Any

import jax
from jax import lax
from jax.typing import DTypeLike


def dot_general(
    lhs: jax.Array,
    rhs: jax.Array,
    dimension_numbers: lax.DotDimensionNumbers,
    precision: lax.PrecisionLike = None,
    preferred_element_type: DTypeLike | None = None,
    **kwargs: Any,
) -> jax.Array:
    """Multiplies as `lax.dot_general` does; a matrix by a matrix has a gradient of its own.

    JAX computes the gradient by `rhs` transposed. A CPU then walks through it against the grain
    when the optimizer reads it, which took as long as a whole convolution of 32 channels. Here the
    same product is written the other way round (reverse mode only).

    Args:
        lhs: [batch, inputs]; other shapes go to `lax.dot_general`, unchanged.
        rhs: [inputs, features].
        dimension_numbers: as in lax; likewise every argument below.
        precision: see there.
        preferred_element_type: see there.
        **kwargs: what newer versions of lax take.

    Returns:
        [batch, features].
    """
    is_plain = (
        lhs.ndim == rhs.ndim == 2
        and lhs.dtype == rhs.dtype
        and preferred_element_type in (None, lhs.dtype)
        and tuple(map(tuple, dimension_numbers[0])) == ((1,), (0,))
        and not any(value is not None for value in kwargs.values())
    )
    if is_plain:
        return _multiply(lhs, rhs, precision)
    return lax.dot_general(lhs, rhs, dimension_numbers, precision, preferred_element_type, **kwargs)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _multiply(lhs, rhs, precision):
    return _contract(lhs, rhs, (1, 0), precision)


def _multiply_forward(lhs, rhs, precision):
    return _multiply(lhs, rhs, precision), (lhs, rhs)


def _multiply_backward(precision, saved, gradient):
    lhs, rhs = saved
    return (
        _contract(gradient, rhs, (1, 1), precision),
        _contract(lhs, gradient, (0, 0), precision),
    )


_multiply.defvjp(_multiply_forward, _multiply_backward)


def _contract(lhs, rhs, axes, precision):
    return lax.dot_general(lhs, rhs, (((axes[0],), (axes[1],)), ((), ())), precision)
