"""3x3 convolutions with fewer multiplications, on a CPU.

Lavin and Gray (2016), "Fast Algorithms for Convolutional Neural Networks": the image is cut into
overlapping tiles, tiles and kernel are transformed, and the convolution becomes one matrix product
for each place of a transformed tile. F(4x4, 3x3) makes 2.25 products a pixel; the plain way 9.
"""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from cifar_jax.ops.chunks import map_chunks, sum_chunks

Padding = tuple[tuple[int, int], tuple[int, int]]

# Output pixels of a tile along an axis, and its places, of input pixels or products.
_TILE, _PLACES = 4, 6
_ROOT = math.sqrt(0.5)
# Where the polynomials behind the method are evaluated, besides infinity. These points leave an
# error of 2e-6; the customary 0, 1, -1, 2, -2 leave 7e-6.
_POINTS = (0.0, _ROOT, -_ROOT, 1 / _ROOT, -1 / _ROOT)
# How many tiles are made at a time, so that they stay in the cache; of layers whose transformed
# kernel does not fit there itself more, so that it is read less often.
_CHUNK, _WIDE_CHUNK = 64, 256
_WIDE = 2**14
# With so few channels a product that turns its left operand takes longer than turning it first.
_TURNED_BELOW = 64


def convolve(images: jax.Array, kernel: jax.Array, padding: Padding) -> jax.Array:
    """Convolves with stride 1, by F(4x4, 3x3).

    Args:
      images: [batch, height, width, channels].
      kernel: [3, 3, channels, features].
      padding: (low, high) of height and of width.

    Returns:
      [batch, height, width, features] in the type of `images`.
    """
    channels, features = kernel.shape[2:]
    outputs, kernels, inputs = _transforms()
    wide = jnp.promote_types(images.dtype, jnp.float32)
    size, grid = _sizes(images.shape, padding)
    weights = jnp.asarray(np.kron(kernels, kernels), wide) @ kernel.astype(wide).reshape(9, -1)
    weights = weights.reshape(-1, channels, features)

    def convolve_chunk(images):
        tiles = _to_tiles(inputs, _pad_to_grid(images.astype(wide), padding, grid), grid)
        products = jnp.einsum("ptc,pco->pto", tiles, weights)
        products = lax.optimization_barrier(products)
        products = products.reshape(_PLACES, _PLACES, len(images), *grid, features)
        rows = lax.optimization_barrier(jnp.stack(_combine(outputs, list(products)), 3))
        result = jnp.stack(_combine(outputs, list(rows)), 4)
        result = result.reshape(len(images), grid[0] * _TILE, grid[1] * _TILE, features)
        return result[:, : size[0], : size[1]].astype(images.dtype)

    return map_chunks(convolve_chunk, images, _chunk_size(grid, channels * features))


def kernel_gradient(images: jax.Array, gradient: jax.Array, padding: Padding) -> jax.Array:
    """The gradient of `convolve` by its kernel.

    Args:
      images: [batch, height, width, channels].
      gradient: by the result, [batch, height, width, features].
      padding: (low, high) of height and of width.

    Returns:
      [3, 3, channels, features] in the type of `images`.
    """
    channels, features = images.shape[-1], gradient.shape[-1]
    outputs, kernels, inputs = _transforms()
    wide = jnp.promote_types(images.dtype, jnp.float32)
    size, grid = _sizes(images.shape, padding)
    missing = [(0, n * _TILE - have) for n, have in zip(grid, size, strict=True)]

    def sum_products(images, gradient):
        tiles = _to_tiles(inputs, _pad_to_grid(images.astype(wide), padding, grid), grid)
        gradient = jnp.pad(gradient.astype(wide), [(0, 0), *missing, (0, 0)])
        places = _to_tiles(outputs.T, gradient, grid)
        if channels < _TURNED_BELOW:
            tiles = lax.optimization_barrier(tiles.swapaxes(1, 2))
            return jnp.einsum("pct,pto->pco", tiles, places)
        return jnp.einsum("ptc,pto->pco", tiles, places)

    chunk = _chunk_size(grid, channels * features)
    total = sum_chunks(sum_products, images, gradient, size=chunk)
    result = jnp.asarray(np.kron(kernels, kernels).T, wide) @ total.reshape(len(total), -1)
    return result.reshape(3, 3, channels, features).astype(images.dtype)


def _sizes(shape, padding):
    """Height and width of a convolution's result, and of its grid of tiles."""
    size = [have + low + high - 2 for have, (low, high) in zip(shape[1:3], padding, strict=True)]
    return size, [-(-n // _TILE) for n in size]


def _chunk_size(grid, weights):
    """How many images are taken at a time."""
    return max(1, (_CHUNK if weights <= _WIDE else _WIDE_CHUNK) // (grid[0] * grid[1]))


def _pad_to_grid(images, padding, grid):
    """Images with as many pixels as the tiles of a grid need."""
    needed = [n * _TILE + 2 - size for n, size in zip(grid, images.shape[1:3], strict=True)]
    pads = [(low, more - low) for (low, _), more in zip(padding, needed, strict=True)]
    return jnp.pad(images, [(0, 0), *pads, (0, 0)])


def _to_tiles(matrix, images, grid):
    """Transformed tiles [places, tiles, any] of images [batch, height, width, any].

    Behind the barriers the width is transformed before the height. Both at once XLA would compute
    anew for each place: twice the time, and not faster with the pieces of a larger chunk.
    """
    features = images.shape[-1]
    for axis, count in ((-2, grid[1]), (-3, grid[0])):
        last = _TILE * (count - 1) + 1
        pieces = [
            lax.slice_in_dim(images, start, start + last, _TILE, axis)
            for start in range(matrix.shape[1])
        ]
        images = lax.optimization_barrier(jnp.stack(_combine(matrix, pieces)))
    return images.reshape(_PLACES**2, -1, features)


def _combine(matrix: np.ndarray, pieces: Sequence[jax.Array]) -> list[jax.Array]:
    """The product of a matrix and a list of arrays, written out without its zeros."""
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


@functools.cache
def _transforms() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The matrices of F(4, 3) for outputs, kernels and inputs (Toom and Cook's).

    With A, G, B those of [4, 6], [6, 3] and [6, 6], a convolution of 6 inputs with 3 weights is
    A ((G weights) * (B inputs)).
    """

    def evaluate(degree):
        powers = np.vander(np.array(_POINTS), degree, increasing=True)
        return np.vstack([powers, np.eye(degree)[-1:]])

    inputs = np.linalg.inv(evaluate(_PLACES)).T
    inputs[abs(inputs) < 1e-12] = 0
    return evaluate(_TILE).T, evaluate(3), inputs
