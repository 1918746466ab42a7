"""3x3 convolutions with fewer multiplications, on a CPU.

Lavin and Gray (2016), "Fast Algorithms for Convolutional Neural Networks": the image is cut into
overlapping tiles, tiles and kernel are transformed, and the convolution becomes one matrix product
for each place of a transformed tile. F(2x2, 3x3) makes 4 products a pixel, F(4x4, 3x3) 2.25; the
plain way 9.
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

_ROOT = math.sqrt(0.5)
# Where the polynomials behind the method are evaluated, besides infinity. For tiles of 4 these
# points leave an error of 2e-6; the customary 0, 1, -1, 2, -2 leave 7e-6.
_POINTS = {2: (0.0, 1.0, -1.0), 4: (0.0, _ROOT, -_ROOT, 1 / _ROOT, -1 / _ROOT)}


# How many tiles are made at a time, so that they stay in the cache.
_CHUNK = 256
# Wider kernels, transformed to tiles of 4, would not fit there themselves.
_LARGEST = 2**16


def convolve(images: jax.Array, kernel: jax.Array, padding: Padding) -> jax.Array:
    """Convolves with stride 1, by F(2x2, 3x3) or, with 256 channels, F(4x4, 3x3).

    Args:
      images: [batch, height, width, channels].
      kernel: [3, 3, channels, features].
      padding: (low, high) of height and of width.

    Returns:
      [batch, height, width, features] in the type of `images`.
    """
    # Larger tiles save products and cost additions.
    channels, features = kernel.shape[2:]
    tile = 4 if max(channels, features) >= 256 and channels * features <= _LARGEST else 2
    outputs, kernels, _ = _transforms(tile)
    wide = jnp.promote_types(images.dtype, jnp.float32)
    size, grid = _sizes(images.shape, padding, tile)
    weights = jnp.asarray(np.kron(kernels, kernels), wide) @ kernel.astype(wide).reshape(9, -1)
    weights = weights.reshape(-1, channels, features)

    def convolve_chunk(images):
        tiles = _image_tiles(images.astype(wide), padding, grid, tile)
        products = jnp.einsum("atc,aco->ato", tiles.reshape(len(tiles), -1, channels), weights)
        if tile == 2:
            places = products.reshape(4, 4, len(images), *grid, features)
            corners = _combine_twice(outputs, [list(row) for row in places])
            result = jnp.stack([jnp.stack(corners[:2], 3), jnp.stack(corners[2:], 3)], 2)
        else:
            # As 16 sums of 36 terms XLA would make them without vector instructions.
            join = jnp.asarray(np.kron(outputs, outputs), wide)
            result = join @ products.reshape(len(products), -1)
            result = result.reshape(tile, tile, len(images), *grid, features)
            result = result.transpose(2, 3, 0, 4, 1, 5)
        result = result.reshape(len(images), grid[0] * tile, grid[1] * tile, features)
        return result[:, : size[0], : size[1]].astype(images.dtype)

    return map_chunks(convolve_chunk, images, max(1, _CHUNK // (grid[0] * grid[1])))


def kernel_gradient(images: jax.Array, gradient: jax.Array, padding: Padding) -> jax.Array:
    """The gradient of `convolve` by its kernel, by F(4x4, 3x3) or, of wide layers, F(2x2, 3x3).

    Args:
      images: [batch, height, width, channels].
      gradient: by the result, [batch, height, width, features].
      padding: (low, high) of height and of width.

    Returns:
      [3, 3, channels, features] in the type of `images`.
    """
    channels, features = images.shape[-1], gradient.shape[-1]
    # The sums of all places have to fit the cache, too, or else be touched seldom. Images are few
    # at a time because their transposition reads them all at once.
    tile, most = (4, 16) if channels * features <= _LARGEST else (2, _CHUNK)
    outputs, kernels, _ = _transforms(tile)
    wide = jnp.promote_types(images.dtype, jnp.float32)
    size, grid = _sizes(images.shape, padding, tile)
    missing = [(0, n * tile - have) for n, have in zip(grid, size, strict=True)]

    def sum_products(images, gradient):
        # With the batch last, the transformed tiles come out as the transposed left operand that
        # a matrix product wants, and rows stay contiguous.
        images = images.astype(wide).transpose(3, 1, 2, 0)
        tiles = _image_tiles(images, padding, grid, tile)
        tiles = tiles.reshape(len(tiles), channels, -1)
        gradient = jnp.pad(gradient.astype(wide), [(0, 0), *missing, (0, 0)])
        gradient = gradient.transpose(1, 2, 0, 3)
        pieces = [[gradient[i::tile, j::tile] for j in range(tile)] for i in range(tile)]
        places = jnp.stack(_combine_twice(outputs.T, pieces)).reshape(len(tiles), -1, features)
        return jnp.einsum("act,ato->aco", tiles, lax.optimization_barrier(places))

    chunk = min(most, max(1, _CHUNK // (grid[0] * grid[1])))
    total = sum_chunks(sum_products, images, gradient, size=chunk)
    result = jnp.asarray(np.kron(kernels, kernels).T, wide) @ total.reshape(len(total), -1)
    return result.reshape(3, 3, channels, features).astype(images.dtype)


def _image_tiles(images, padding, grid, tile):
    """Transformed tiles [places, any, rows, columns, any] of images [any, height, width, any]."""
    _, _, inputs = _transforms(tile)
    needed = [(n * tile + 2) - size for n, size in zip(grid, images.shape[1:3], strict=True)]
    pads = [(low, more - low) for (low, _), more in zip(padding, needed, strict=True)]
    images = jnp.pad(images, [(0, 0), *pads, (0, 0)])
    last = [tile * (n - 1) + 1 for n in grid]
    pieces = [
        [images[:, i : i + last[0] : tile, j : j + last[1] : tile] for j in range(tile + 2)]
        for i in range(tile + 2)
    ]
    return lax.optimization_barrier(jnp.stack(_combine_twice(inputs, pieces)))


def _sizes(shape, padding, tile):
    """Height and width of a convolution's result, and of its grid of tiles."""
    size = [have + low + high - 2 for have, (low, high) in zip(shape[1:3], padding, strict=True)]
    return size, [-(-n // tile) for n in size]


@functools.cache
def _transforms(tile: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The matrices of F(tile, 3) for outputs, kernels and inputs (Toom and Cook's).

    With A, G, B those of [tile, tile + 2], [tile + 2, 3] and [tile + 2, tile + 2], a convolution of
    `tile + 2` inputs with 3 weights is A ((G weights) * (B inputs)).
    """

    def evaluate(degree):
        powers = np.vander(np.array(_POINTS[tile]), degree, increasing=True)
        return np.vstack([powers, np.eye(degree)[-1:]])

    inputs = np.linalg.inv(evaluate(tile + 2)).T
    inputs[abs(inputs) < 1e-12] = 0
    return evaluate(tile).T, evaluate(3), inputs


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


def _combine_twice(matrix: np.ndarray, pieces: Sequence[Sequence[jax.Array]]) -> list[jax.Array]:
    """The matrix applied to the rows and the columns of a square of arrays; a list by rows."""
    columns = [_combine(matrix, column) for column in zip(*pieces, strict=True)]
    return [piece for row in zip(*columns, strict=True) for piece in _combine(matrix, row)]
