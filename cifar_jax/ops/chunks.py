"""Loops over chunks of the batch, so that what a kernel makes on the way stays in the cache."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax


def map_chunks(
    function: Callable[[jax.Array], jax.Array], array: jax.Array, size: int
) -> jax.Array:
    """Returns `function` of chunks of `size` examples, joined along the batch."""
    batch = len(array)
    if batch <= size:
        return function(array)
    # As many chunks, of sizes as even as can be: the last one may overlap the one before it.
    size = -(-batch // -(-batch // size))
    one = jax.eval_shape(function, array[:size])

    def fill(i, results):
        start = jnp.minimum(i * size, batch - size)
        chunk = function(lax.dynamic_slice_in_dim(array, start, size))
        return lax.dynamic_update_slice_in_dim(results, chunk, start, 0)

    empty = jnp.zeros((batch, *one.shape[1:]), one.dtype)
    return lax.fori_loop(0, -(-batch // size), fill, empty)


def sum_chunks(function: Callable[..., jax.Array], *arrays: jax.Array, size: int) -> jax.Array:
    """Returns `function` of all examples as the sum of what it is of chunks of `size`."""
    batch = len(arrays[0])
    if batch <= size:
        return function(*arrays)

    def add(i, total):
        return total + function(*(lax.dynamic_slice_in_dim(a, i * size, size) for a in arrays))

    rest = batch % size
    if rest:
        start = function(*(array[batch - rest :] for array in arrays))
    else:
        one = jax.eval_shape(function, *(array[:size] for array in arrays))
        start = jnp.zeros(one.shape, one.dtype)
    return lax.fori_loop(0, batch // size, add, start)
