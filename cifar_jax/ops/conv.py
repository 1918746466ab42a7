"""Convolution: XLA's own, except where there is a faster method for a CPU.

`conv_general_dilated` takes the arguments of `lax.conv_general_dilated`, so that
`nn.Conv(conv_general_dilated=...)` accepts it. This file chooses by platform; `cpu_conv` has the
CPU's methods.
"""

import functools
from collections.abc import Sequence

import jax
from jax import lax
from jax.typing import DTypeLike

from cifar_jax.ops import cpu_conv
from cifar_jax.ops.batches import map_batch
from cifar_jax.ops.derivatives import with_gradient
from cifar_jax.ops.stock import is_stock

Padding = tuple[tuple[int, int], tuple[int, int]]

_NHWC = ("NHWC", "HWIO", "NHWC")
# Sums of these types are taken in float32 or wider; those of integers or 8-bit floats are not.
_DTYPES = ("bfloat16", "float16", "float32", "float64")


def conv_general_dilated(
    lhs: jax.Array,
    rhs: jax.Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: lax.ConvGeneralDilatedDimensionNumbers = None,
    feature_group_count: int = 1,
    batch_group_count: int = 1,
    precision: lax.PrecisionLike = None,
    preferred_element_type: DTypeLike | None = None,
    **kwargs,
) -> jax.Array:
    """Convolves as `lax.conv_general_dilated` does, with gradients that are fast on a CPU too.

    Two-dimensional NHWC convolutions without groups or dilation have their own gradient in
    reverse mode; all others are `lax.conv_general_dilated`, unchanged.

    Args:
      lhs: images, [batch, height, width, channels].
      rhs: the kernel, [height, width, channels, features].
      window_strides: one stride for each spatial axis.
      padding: "SAME", "VALID" or (low, high) for each spatial axis.
      lhs_dilation, rhs_dilation, dimension_numbers, feature_group_count, batch_group_count,
        precision, preferred_element_type, **kwargs: as in `lax.conv_general_dilated`; on a CPU all
        products have the full precision of their type.

    Returns:
      [batch, height, width, features].
    """
    is_plain = (
        not is_stock()
        and all(d == 1 for d in (*(lhs_dilation or ()), *(rhs_dilation or ())))
        and feature_group_count == batch_group_count == 1
        and preferred_element_type in (None, lhs.dtype)
        and not any(value is not None for value in kwargs.values())
    )
    if is_plain and _suits(lhs, rhs, dimension_numbers):
        if isinstance(padding, str):
            padding = lax.padtype_to_pads(lhs.shape[1:3], rhs.shape[:2], window_strides, padding)
        pads = tuple((int(low), int(high)) for low, high in padding)
        room = zip(lhs.shape[1:3], pads, rhs.shape[:2], strict=True)
        if min(map(min, pads)) >= 0 and all(n + sum(pad) >= window for n, pad, window in room):
            return _conv(lhs, rhs, tuple(window_strides), pads, precision)
    return lax.conv_general_dilated(
        lhs,
        rhs,
        window_strides,
        padding,
        lhs_dilation,
        rhs_dilation,
        dimension_numbers,
        feature_group_count,
        batch_group_count,
        precision,
        preferred_element_type,
        **kwargs,
    )


def _suits(images, kernel, dimension_numbers):
    """Whether these are two-dimensional NHWC images and a kernel of the same type."""
    return (
        images.ndim == 4
        and images.dtype == kernel.dtype
        and images.dtype.name in _DTYPES
        and images.size > 0
        and kernel.size > 0
        and lax.conv_dimension_numbers(images.shape, kernel.shape, dimension_numbers)
        == lax.conv_dimension_numbers(images.shape, kernel.shape, _NHWC)
    )


def _conv(images, kernel, strides, padding, precision):
    plain = _xla_conv(strides, padding, precision)

    def convolve(images, kernel):
        def cpu(images, kernel):
            run = functools.partial(cpu_conv.convolve, strides=strides, padding=padding)
            return map_batch(run, images, kernel, batched=(True, False), total=False)

        return lax.platform_dependent(images, kernel, cpu=cpu, default=plain)

    def forward(images, kernel):
        return convolve(images, kernel), (images, kernel)

    backward = functools.partial(_backward, strides, padding, precision)
    return with_gradient(convolve, plain, forward, backward)(images, kernel)


def _backward(strides, padding, precision, saved, gradient):
    images, kernel = saved
    conv = _xla_conv(strides, padding, precision)
    options = {"strides": strides, "padding": padding}

    def cpu_images(gradient, kernel):
        run = functools.partial(cpu_conv.input_gradient, size=images.shape[1:3], **options)
        return map_batch(run, gradient, kernel, batched=(True, False), total=False)

    def cpu_kernel(images, gradient):
        run = functools.partial(cpu_conv.kernel_gradient, size=kernel.shape[:2], **options)
        return map_batch(run, images, gradient, batched=(True, True), total=True)

    def xla_images(gradient, kernel):
        return jax.vjp(lambda x: conv(x, kernel), images)[1](gradient)[0]

    def xla_kernel(images, gradient):
        return jax.vjp(lambda k: conv(images, k), kernel)[1](gradient)[0]

    # Two choices, so that XLA drops the one that is not needed (the first layer's by its images).
    return (
        lax.platform_dependent(gradient, kernel, cpu=cpu_images, default=xla_images),
        lax.platform_dependent(images, gradient, cpu=cpu_kernel, default=xla_kernel),
    )


def _xla_conv(strides, padding, precision):
    return functools.partial(
        lax.conv_general_dilated,
        window_strides=strides,
        padding=padding,
        dimension_numbers=_NHWC,
        precision=precision,
    )
