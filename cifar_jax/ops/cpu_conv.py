"""Convolution on a CPU: which way is taken for which shape.

1. A stride is taken out by moving blocks of pixels into the channels.
2. Of narrow images pairs of neighbouring pixels become one, with twice the channels.
3. What remains has stride 1: see `_unit`.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from cifar_jax.ops import winograd
from cifar_jax.ops.chunks import sum_chunks
from cifar_jax.ops.mesh import map_batch

Padding = tuple[tuple[int, int], tuple[int, int]]

# XLA's vector code pays from 17 channels on: 3 to 32 channels take 4.8 ms, as pairs 0.9 (batch 64).
_NARROW = 16
# From here on Winograd's transforms cost less than the products they save.
_WINOGRAD_NARROWER, _WINOGRAD_WIDER = 24, 64
# How many output pixels are gathered at a time, so that their patches stay in the cache.
_CHUNK = 1024


def convolve(
    images: jax.Array, kernel: jax.Array, strides: tuple[int, int], padding: Padding
) -> jax.Array:
    """Convolves [batch, height, width, channels] with [height, width, channels, features]."""
    if strides != (1, 1):
        images, kernel = _remove_strides(images, kernel, strides, padding)
        padding = ((0, 0), (0, 0))
    return _unit(images, kernel, padding)


def _remove_strides(images, kernel, strides, padding):
    """Images and kernel, of blocks as large as the strides, whose convolution has stride 1."""
    sizes = zip(images.shape[1:3], kernel.shape[:2], strides, padding, strict=True)
    edges, blocks, taps = [], [], []
    for size, window, stride, (low, high) in sizes:
        result = (size + low + high - window) // stride + 1
        taps.append(-(-window // stride))
        blocks.append(result + taps[-1] - 1)
        edges.append((low, blocks[-1] * stride - size - low, 0))
    used = [min(window, stride) for window, stride in zip(kernel.shape, strides, strict=False)]
    batch, channels, features = len(images), images.shape[-1], kernel.shape[-1]
    images = _pad(images, (0, 0, 0), *edges, (0, 0, 0))
    images = images.reshape(batch, blocks[0], strides[0], blocks[1], strides[1], channels)
    images = images[:, :, : used[0], :, : used[1]].transpose(0, 1, 3, 2, 4, 5)
    extra = [(0, t * u - k, 0) for t, u, k in zip(taps, used, kernel.shape, strict=False)]
    kernel = _pad(kernel, *extra, (0, 0, 0), (0, 0, 0))
    kernel = kernel.reshape(taps[0], used[0], taps[1], used[1], channels, features)
    kernel = kernel.transpose(0, 2, 1, 3, 4, 5)
    return images.reshape(batch, *blocks, -1), kernel.reshape(*taps, -1, features)


def _pair_columns(images, kernel, padding):
    """Images and kernel of which two neighbouring columns are one, with twice the channels."""
    batch, height, have, channels = images.shape
    rows, columns, _, features = kernel.shape
    width = have + sum(padding) - columns + 1
    taps = -(-(columns + 1) // 2)
    pairs = -(-width // 2) + taps - 1
    edges = (padding[0], 2 * pairs - have - padding[0], 0)
    images = _pad(images, (0, 0, 0), (0, 0, 0), edges, (0, 0, 0))
    shifted = [
        _pad(kernel, (0, 0, 0), (q, 2 * taps - columns - q, 0), (0, 0, 0), (0, 0, 0))
        for q in (0, 1)
    ]
    kernel = jnp.stack(shifted, 3).reshape(rows, taps, 2 * channels, 2 * features)
    return images.reshape(batch, height, pairs, 2 * channels), kernel


def _pad(array, *edges):
    return lax.pad(array, jnp.zeros((), array.dtype), edges)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _unit(images, kernel, padding):
    """Convolves with stride 1."""
    if _suits_winograd(kernel.shape):
        run = functools.partial(winograd.convolve, padding=padding)
        return map_batch(run, images, kernel, batched=(True, False), total=False)
    width = images.shape[2] + sum(padding[1]) - kernel.shape[1] + 1
    if is_narrow := kernel.shape[2] <= _NARROW and width > 1:
        images, kernel = _pair_columns(images, kernel, padding[1])
        padding = (padding[0], (0, 0))
    if any(sum(pads) >= size for pads, size in zip(padding, kernel.shape, strict=False)):
        # XLA's fast way cannot make a result larger than its operand.
        images = _pad(images, (0, 0, 0), *[(*pads, 0) for pads in padding], (0, 0, 0))
        padding = ((0, 0), (0, 0))
    # Without the barrier XLA moves what was done to the operands into the convolution, and then
    # finds no fast way for it.
    images, kernel = lax.optimization_barrier((images, kernel))
    result = lax.conv_general_dilated(
        images, kernel, (1, 1), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    if is_narrow:
        result = result.reshape(*result.shape[:2], -1, result.shape[-1] // 2)[:, :, :width]
    return result


def _unit_forward(images, kernel, padding):
    return _unit(images, kernel, padding), (images, kernel)


def _unit_backward(padding, saved, gradient):
    images, kernel = saved
    if _suits_winograd(kernel.shape) and min(kernel.shape[2:]) >= _WINOGRAD_WIDER:
        run = functools.partial(winograd.kernel_gradient, padding=padding)
    else:
        run = functools.partial(_sum_patches, kernel_size=kernel.shape[:2], padding=padding)
    for_kernel = map_batch(run, images, gradient, batched=(True, True), total=True)
    sides = [
        (size - 1 - low, size - 1 - high)
        for size, (low, high) in zip(kernel.shape, padding, strict=False)
    ]
    # Padding beyond the kernel's size makes outputs that no pixel had a part in.
    cut = [(min(0, low), min(0, high), 0) for low, high in sides]
    gradient = _pad(gradient, (0, 0, 0), *cut, (0, 0, 0)) if min(map(min, cut)) else gradient
    pads = tuple((max(0, low), max(0, high)) for low, high in sides)
    return _unit(gradient, kernel[::-1, ::-1].swapaxes(2, 3), pads), for_kernel


_unit.defvjp(_unit_forward, _unit_backward)


def _suits_winograd(shape):
    narrower, wider = sorted(shape[2:])
    return shape[:2] == (3, 3) and narrower >= _WINOGRAD_NARROWER and wider >= _WINOGRAD_WIDER


def _sum_patches(images, gradient, kernel_size, padding):
    """The kernel's gradient: the sum, over chunks, of products of gradient and image patches."""
    _, height, width, features = gradient.shape
    channels, dtype = images.shape[-1], images.dtype
    rows, columns = kernel_size
    wide = jnp.promote_types(dtype, jnp.float32)

    def multiply(images, gradient):
        images = jnp.pad(images.astype(wide), ((0, 0), *padding, (0, 0)))
        slices = [
            images[:, i : i + height, j : j + width] for i in range(rows) for j in range(columns)
        ]
        patches = jnp.concatenate(slices, -1).reshape(-1, rows * columns * channels)
        # Behind the barrier the patches are made once, not anew for each element of the product.
        patches = lax.optimization_barrier(patches)
        # The narrow operand on the left: there a matrix is transposed first, element by element.
        return gradient.astype(wide).reshape(-1, features).T @ patches

    total = sum_chunks(multiply, images, gradient, size=max(1, _CHUNK // (height * width)))
    return total.T.reshape(rows, columns, channels, features).astype(dtype)
