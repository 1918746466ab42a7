"""Loops over chunks of the batch, so that what a kernel makes on the way stays in the cache."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax


def split(array: jax.Array, size: int) -> jax.Array:
    """[batch, ...] to [chunks, at most `size`, ...], of equal chunks, with zeros behind the last."""
    num_chunks = -(-len(array) // size)
    size = -(-len(array) // num_chunks)
    if missing := num_chunks * size - len(array):
        array = jnp.pad(array, [(0, missing)] + [(0, 0)] * (array.ndim - 1))
    return array.reshape(num_chunks, size, *array.shape[1:])


def map_chunks(
    function: Callable[[jax.Array], jax.Array], array: jax.Array, size: int
) -> jax.Array:
    """Returns `function` of each chunk of at most `size` examples, joined along the batch."""
    if len(array) <= size:
        return function(array)
    results = lax.map(function, split(array, size))
    return results.reshape(-1, *results.shape[2:])[: len(array)]


def sum_chunks(function: Callable[..., jax.Array], *arrays: jax.Array, size: int) -> jax.Array:
    """Returns the sum of `function` over the chunks; zero examples must add nothing to it."""
    if len(arrays[0]) <= size:
        return function(*arrays)
    chunks = tuple(split(array, size) for array in arrays)
    first = jax.eval_shape(function, *(chunk[0] for chunk in chunks))

    def add(total, chunk):
        return total + function(*chunk), None

    return lax.scan(add, jnp.zeros(first.shape, first.dtype), chunks)[0]
