"""3x3 convolutions with fewer multiplications, on a CPU.

Lavin and Gray (2016), "Fast Algorithms for Convolutional Neural Networks": the image is cut into
overlapping tiles, tiles and kernel are transformed, and the convolution becomes one matrix product
for each place of a transformed tile. F(4x4, 3x3) needs 2.25 products per pixel instead of 9.
"""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from cifar_jax.ops.batches import map_chunks, sum_chunks

Padding = tuple[tuple[int, int], tuple[int, int]]

# Along an axis, a tile's output pixels, and its places: input pixels or products.
_TILE, _PLACES = 4, 6
_ROOT = math.sqrt(0.5)
# The points, besides infinity, at which the method's polynomials are evaluated. With these the
# error is 2e-6; with the usual 0, 1, -1, 2, -2 it is 7e-6.
_POINTS = (0.0, _ROOT, -_ROOT, 1 / _ROOT, -1 / _ROOT)
# How many tiles are made at a time, so that they stay in the cache. With more than _WIDE channels
# times features, the transformed kernel (or the sums for its gradient) does not fit in the cache
# itself: then more tiles, so that it is read less often.
_CHUNK, _WIDE_CHUNK = 64, 256
_WIDE = 2**14
# With fewer channels, transposing the left operand before the product is faster than within it.
_TRANSPOSED_BELOW = 64


def convolve_3x3(images: jax.Array, kernel: jax.Array, padding: Padding) -> jax.Array:
    """Convolves with stride 1, by F(4x4, 3x3).

    Args:
      images: [batch, height, width, channels].
      kernel: [3, 3, channels, features].
      padding: (low, high) of height and of width.

    Returns:
      [batch, height, width, features] in the type of `images`.
    """
    channels, features = kernel.shape[2:]
    wide = jnp.promote_types(images.dtype, jnp.float32)
    size = output_size(images.shape, (3, 3), padding)
    grid = _grid(size)
    weights = jnp.asarray(np.kron(_KERNELS, _KERNELS), wide) @ kernel.astype(wide).reshape(9, -1)
    weights = weights.reshape(-1, channels, features)

    def convolve_chunk(images):
        tiles = _to_tiles(_INPUTS, images.astype(wide), padding, grid)
        products = jnp.einsum("ptc,pco->pto", tiles, weights)
        products = lax.optimization_barrier(products)
        products = products.reshape(_PLACES, _PLACES, len(images), *grid, features)
        rows = lax.optimization_barrier(jnp.stack(_combine(_OUTPUTS, list(products)), 3))
        result = jnp.stack(_combine(_OUTPUTS, list(rows)), 4)
        result = result.reshape(len(images), grid[0] * _TILE, grid[1] * _TILE, features)
        return result[:, : size[0], : size[1]].astype(images.dtype)

    return map_chunks(convolve_chunk, images, _chunk_size(grid, channels * features))


def kernel_gradient_3x3(images: jax.Array, gradient: jax.Array, padding: Padding) -> jax.Array:
    """Returns the gradient of `convolve_3x3` by its kernel.

    Args:
      images: [batch, height, width, channels].
      gradient: that by the result, [batch, height, width, features].
      padding: (low, high) of height and of width.

    Returns:
      [3, 3, channels, features] in the type of `images`.
    """
    channels, features = images.shape[-1], gradient.shape[-1]
    wide = jnp.promote_types(images.dtype, jnp.float32)
    grid = _grid(gradient.shape[1:3])

    def sum_products(images, gradient):
        tiles = _to_tiles(_INPUTS, images.astype(wide), padding, grid)
        places = _to_tiles(_OUTPUTS.T, gradient.astype(wide), ((0, 0), (0, 0)), grid)
        if channels < _TRANSPOSED_BELOW:
            tiles = lax.optimization_barrier(tiles.swapaxes(1, 2))
            return jnp.einsum("pct,pto->pco", tiles, places)
        return jnp.einsum("ptc,pto->pco", tiles, places)

    chunk = _chunk_size(grid, channels * features)
    total = sum_chunks(sum_products, images, gradient, size=chunk)
    result = jnp.asarray(np.kron(_KERNELS, _KERNELS).T, wide) @ total.reshape(len(total), -1)
    return result.reshape(3, 3, channels, features).astype(images.dtype)


def output_size(shape: Sequence[int], window: Sequence[int], padding: Padding) -> tuple[int, int]:
    """Returns the result's height and width for a convolution of [batch, h, w, any], stride 1."""
    height, width = (
        have + sum(pads) - taps + 1
        for have, pads, taps in zip(shape[1:3], padding, window, strict=True)
    )
    return height, width


def _grid(size):
    """Returns the rows and columns of tiles that cover output pixels of this height and width."""
    return [-(-n // _TILE) for n in size]


def _chunk_size(grid, area):
    """Returns how many images make a chunk; `area` is the channels times the features."""
    return max(1, (_CHUNK if area <= _WIDE else _WIDE_CHUNK) // (grid[0] * grid[1]))


def _to_tiles(matrix, images, padding, grid):
    """Returns transformed tiles [places, tiles, any] of images [batch, height, width, any].

    The barriers have the width transformed before the height. XLA would otherwise do both at once
    and again for each place, which takes twice the time.
    """
    taps = matrix.shape[1]
    needed = [
        _TILE * (n - 1) + taps - size for n, size in zip(grid, images.shape[1:3], strict=True)
    ]
    pads = [(low, more - low) for (low, _), more in zip(padding, needed, strict=True)]
    tiles = jnp.pad(images, [(0, 0), *pads, (0, 0)])
    for axis, count in ((-2, grid[1]), (-3, grid[0])):
        last = _TILE * (count - 1) + 1
        pieces = [
            lax.slice_in_dim(tiles, start, start + last, _TILE, axis) for start in range(taps)
        ]
        tiles = lax.optimization_barrier(jnp.stack(_combine(matrix, pieces)))
    return tiles.reshape(_PLACES**2, -1, images.shape[-1])


def _combine(matrix: np.ndarray, pieces: Sequence[jax.Array]) -> list[jax.Array]:
    """Returns the product of a matrix and a list of arrays, written out without zero terms."""
    return [
        functools.reduce(
            jnp.add,
            [
                piece if factor == 1 else piece * factor
                for factor, piece in zip(row.tolist(), pieces, strict=True)
                if factor
            ],
        )
        for row in matrix
    ]


def _transforms():
    """Returns the matrices of F(4, 3) for outputs, kernels and inputs, by Toom and Cook's method.

    They are A [4, 6], G [6, 3] and B [6, 6]; a convolution of 6 inputs with 3 weights is
    A ((G weights) * (B inputs)).
    """

    def evaluate(degree):
        powers = np.vander(np.array(_POINTS), degree, increasing=True)
        return np.vstack([powers, np.eye(degree)[-1:]])

    inputs = np.linalg.inv(evaluate(_PLACES)).T
    inputs[abs(inputs) < 1e-12] = 0
    return evaluate(_TILE).T, evaluate(3), inputs


_OUTPUTS, _KERNELS, _INPUTS = _transforms()
