"""Convolution and its gradients on a CPU, by the method that is fastest for each shape.

- 3x3 kernels with many channels: `winograd`.
- 9 to 16 channels and few features: one matrix product with all rows of the kernel, whose results
  are shifted and added.
- Otherwise few channels: pairs of neighbouring pixels become one pixel with twice the channels.
- The gradient by the images is itself a convolution, of the output gradient with the flipped
  kernel; with a stride, there is one for each place in a block of pixels as large as the strides.
- The gradient by the kernel is also a convolution: the output gradient is its kernel, and channels
  and images change places. With a stride it is a sum of matrix products. Both take a chunk of
  images at a time.
- All else: XLA's convolution.
"""

import jax
import jax.numpy as jnp
from jax import lax

from cifar_jax.ops import winograd
from cifar_jax.ops.batches import map_chunks, sum_chunks

Size = tuple[int, int]
Strides = tuple[int, int]
Padding = tuple[tuple[int, int], tuple[int, int]]

# Up to this number of channels XLA's vector code is slow: 3 channels to 32 features take 4.8 ms
# with XLA, 0.9 ms as pairs (batch 64).
_NARROW = 16
# From this number of channels, and up to this number of features, one product for all rows is
# faster.
_ROWS_CHANNELS, _ROWS_FEATURES = 9, 24
# From this number of channels and features, the smaller and the larger of the two, Winograd's
# transforms cost less than the products that they save; below this height or width they save none.
_WINOGRAD_NARROWER, _WINOGRAD_WIDER, _WINOGRAD_SIZE = 24, 32, 3
# Sizes of a chunk, so that it and what is computed from it stay in the cache: output pixels whose
# patches are made; values of the images and the gradient that are transposed.
_PATCHES_CHUNK, _TURNED_CHUNK = 1024, 2**17


def convolve(images: jax.Array, kernel: jax.Array, strides: Strides, padding: Padding) -> jax.Array:
    """Convolves [batch, height, width, channels] with [height, width, channels, features]."""
    if strides != (1, 1):
        return _xla_convolve(images, kernel, strides, padding)
    height, width = winograd.output_size(images.shape, kernel.shape[:2], padding)
    if _suits_winograd(kernel.shape, height, width):
        return winograd.convolve_3x3(images, kernel, padding)
    if kernel.shape[2] > _NARROW or width == 1:
        return _xla_convolve(images, kernel, strides, padding)
    if kernel.shape[2] >= _ROWS_CHANNELS and kernel.shape[3] <= _ROWS_FEATURES:
        return _convolve_rows(images, kernel, padding)
    images, kernel = _pair_columns(images, kernel, padding[1])
    result = _xla_convolve(images, kernel, strides, (padding[0], (0, 0)))
    return result.reshape(*result.shape[:2], -1, result.shape[-1] // 2)[:, :, :width]


def input_gradient(
    gradient: jax.Array, kernel: jax.Array, size: Size, strides: Strides, padding: Padding
) -> jax.Array:
    """The gradient of `convolve` by images of height and width `size`."""
    blocks = [-(-have // stride) for have, stride in zip(size, strides, strict=True)]
    places = []
    for row in range(strides[0]):
        for column in range(strides[1]):
            edges, taps = [], []
            for axis, place in enumerate((row, column)):
                # The taps of the kernel that reach a pixel at this place of its block.
                first = (place + padding[axis][0]) % strides[axis]
                taps.append(slice(first, None, strides[axis]))
                num_taps = len(range(first, kernel.shape[axis], strides[axis]))
                ahead = (place + padding[axis][0]) // strides[axis]
                low = num_taps - 1 - ahead
                edges.append((low, blocks[axis] + ahead - gradient.shape[1 + axis]))
            part = kernel[tuple(taps)][::-1, ::-1].swapaxes(2, 3)
            places.append(_convolve_any_padding(gradient, part, edges))
    result = jnp.stack(places, 3).reshape(len(gradient), *blocks, *strides, kernel.shape[2])
    result = result.swapaxes(2, 3).reshape(
        len(gradient), blocks[0] * strides[0], blocks[1] * strides[1], kernel.shape[2]
    )
    return result[:, : size[0], : size[1]]


def kernel_gradient(
    images: jax.Array, gradient: jax.Array, size: Size, strides: Strides, padding: Padding
) -> jax.Array:
    """The gradient of `convolve` by a kernel of height and width `size`."""
    shape = (*size, images.shape[-1], gradient.shape[-1])
    if strides == (1, 1) and _suits_winograd(shape, *gradient.shape[1:3]):
        return winograd.kernel_gradient_3x3(images, gradient, padding)
    if strides == (1, 1) and size != (1, 1):
        return _convolve_turned(images, gradient, padding)
    return _sum_patches(images, gradient, size, strides, padding)


def _xla_convolve(images, kernel, strides, padding):
    if any(sum(pads) >= size for pads, size in zip(padding, kernel.shape, strict=False)):
        # XLA's fast method cannot make a result larger than its operand.
        images = _pad(images, (0, 0), *padding, (0, 0))
        padding = ((0, 0), (0, 0))
    # Without the barrier XLA fuses earlier operations on the operands into the convolution, and
    # then has no fast method for it.
    images, kernel = lax.optimization_barrier((images, kernel))
    return lax.conv_general_dilated(
        images, kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _convolve_any_padding(images, kernel, padding):
    """`convolve` with stride 1, also where padding is negative or the kernel has no taps."""
    cut = [(min(0, low), min(0, high)) for low, high in padding]
    images = _pad(images, (0, 0), *cut, (0, 0))
    padding = tuple((max(0, low), max(0, high)) for low, high in padding)
    if not (images.size and kernel.size):
        size = winograd.output_size(images.shape, kernel.shape[:2], padding)
        return jnp.zeros((len(images), *size, kernel.shape[-1]), images.dtype)
    return convolve(images, kernel, (1, 1), padding)


def _convolve_turned(images, gradient, padding):
    """The kernel's gradient for stride 1: a convolution that sums over the examples."""
    features = gradient.shape[-1]
    dtype = images.dtype
    wide = jnp.promote_types(dtype, jnp.float32)

    def convolve(images, gradient):
        edges = padding
        if features <= _NARROW:  # here XLA's own padding costs more
            images, edges = _pad(images, (0, 0), *padding, (0, 0)), ((0, 0), (0, 0))
        images, gradient = images.astype(wide), gradient.astype(wide)
        return _xla_convolve(
            images.transpose(3, 1, 2, 0), gradient.transpose(1, 2, 0, 3), (1, 1), edges
        )

    # A power of two divides the usual batches. The images are the channels of this convolution, so
    # a single one could not be vectorized.
    fit = _TURNED_CHUNK * len(images) // (images.size + gradient.size)
    size = 2 ** min(4, max(1, fit.bit_length() - 1))
    total = sum_chunks(convolve, images, gradient, size=size)
    return total.transpose(1, 2, 0, 3).astype(dtype)


def _sum_patches(images, gradient, size, strides, padding):
    """The kernel's gradient: the sum, over chunks, of products of gradient and image patches."""
    _, height, width, features = gradient.shape
    channels, dtype = images.shape[-1], images.dtype
    wide = jnp.promote_types(dtype, jnp.float32)
    last = [stride * (n - 1) + 1 for stride, n in zip(strides, (height, width), strict=True)]

    def multiply(images, gradient):
        images = jnp.pad(images.astype(wide), ((0, 0), *padding, (0, 0)))
        slices = [
            images[:, i : i + last[0] : strides[0], j : j + last[1] : strides[1]]
            for i in range(size[0])
            for j in range(size[1])
        ]
        patches = jnp.concatenate(slices, -1).reshape(-1, size[0] * size[1] * channels)
        # The barrier has the patches computed once, not again for each element of the product.
        patches = lax.optimization_barrier(patches)
        # The narrower operand on the left, because that one is first transposed element by element.
        return gradient.astype(wide).reshape(-1, features).T @ patches

    total = sum_chunks(multiply, images, gradient, size=max(1, _PATCHES_CHUNK // (height * width)))
    return total.T.reshape(*size, channels, features).astype(dtype)


def _convolve_rows(images, kernel, padding):
    """`convolve` by one product with the kernel's rows side by side, whose results are shifted."""
    rows, columns, channels, features = kernel.shape
    height, width = winograd.output_size(images.shape, (rows, columns), padding)
    dtype = images.dtype
    wide = jnp.promote_types(dtype, jnp.float32)
    weights = kernel.astype(wide).reshape(rows, -1, features).swapaxes(0, 1)
    weights = weights.reshape(columns * channels, rows * features)

    def convolve_chunk(images):
        images = _pad(images.astype(wide), (0, 0), *padding, (0, 0))
        patches = jnp.concatenate([images[:, :, j : j + width] for j in range(columns)], -1)
        products = lax.optimization_barrier(patches) @ weights
        parts = [
            products[:, i : i + height, :, i * features : (i + 1) * features] for i in range(rows)
        ]
        return sum(parts[1:], parts[0]).astype(dtype)

    return map_chunks(convolve_chunk, images, max(1, _PATCHES_CHUNK // (height * width)))


def _pair_columns(images, kernel, padding):
    """Returns images and kernel with pairs of columns as one column with twice the channels."""
    batch, height, have, channels = images.shape
    rows, columns, _, features = kernel.shape
    width = have + sum(padding) - columns + 1
    taps = -(-(columns + 1) // 2)
    pairs = -(-width // 2) + taps - 1
    edges = (padding[0], 2 * pairs - have - padding[0])
    images = _pad(images, (0, 0), (0, 0), edges, (0, 0))
    shifted = [_pad(kernel, (0, 0), (q, 2 * taps - columns - q), (0, 0), (0, 0)) for q in (0, 1)]
    kernel = jnp.stack(shifted, 3).reshape(rows, taps, 2 * channels, 2 * features)
    return images.reshape(batch, height, pairs, 2 * channels), kernel


def _pad(array, *edges):
    """Pads with zeros by (low, high) for each axis; cuts off where negative."""
    if not any(map(any, edges)):
        return array
    return lax.pad(array, jnp.zeros((), array.dtype), [(low, high, 0) for low, high in edges])


def _suits_winograd(shape, height, width):
    narrower, wider = sorted(shape[2:])
    is_wide = narrower >= _WINOGRAD_NARROWER and wider >= _WINOGRAD_WIDER
    return shape[:2] == (3, 3) and is_wide and min(height, width) >= _WINOGRAD_SIZE
