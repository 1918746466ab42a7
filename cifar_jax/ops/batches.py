"""How a CPU kernel runs over a batch: on each device's part of it, and in chunks."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

DATA_AXIS = "data"


def map_batch(
    kernel: Callable[..., jax.Array], *arrays: jax.Array, batched: tuple[bool, ...], total: bool
) -> jax.Array:
    """Runs `kernel` on each device's own part of the batch.

    XLA must not partition the kernel itself: it would gather the batch for a loop over its chunks,
    and it computed wrong convolutions where they were mapped over the seeds. Under `jax.vmap`, set
    `spmd_axis_name` to the mesh axis along which the mapped axis is divided; otherwise every device
    computes all of it.

    Args:
      kernel: a function of `arrays`; if `total`, a sum over the batch.
      *arrays: its arguments.
      batched: for each argument, whether its first axis is the batch; the others are whole on every
        device.
      total: whether the devices' results are added up; otherwise they are joined along the batch.

    Returns:
      The result of `kernel(*arrays)`.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1 or any(kind != AxisType.Auto for kind in mesh.axis_types):
        return kernel(*arrays)
    size = mesh.shape.get(DATA_AXIS, 1)
    is_divided = size > 1 and len(arrays[batched.index(True)]) % size == 0
    share = P(DATA_AXIS) if is_divided else P()

    def per_device(*parts: jax.Array) -> jax.Array:
        result = kernel(*parts)
        return lax.psum(result, DATA_AXIS) if total and is_divided else result

    # Over all axes of the mesh: over "data" alone, XLA's CPU compiler aborted on bfloat16, and a
    # mesh with two seeds gave wrong gradients.
    return jax.shard_map(
        per_device,
        in_specs=tuple(share if is_batched else P() for is_batched in batched),
        out_specs=P() if total else share,
        check_vma=False,
    )(*arrays)


def map_chunks(
    function: Callable[[jax.Array], jax.Array], array: jax.Array, size: int
) -> jax.Array:
    """Returns `function` of chunks of at most `size` examples, joined along the batch.

    What the function computes on the way then stays in the processor's cache.
    """
    batch = len(array)
    if batch <= size:
        return function(array)
    # The same number of chunks, as even in size as possible; the last may overlap the one before.
    size = -(-batch // -(-batch // size))
    one = jax.eval_shape(function, array[:size])

    def fill(i, results):
        start = jnp.minimum(i * size, batch - size)
        chunk = function(lax.dynamic_slice_in_dim(array, start, size))
        return lax.dynamic_update_slice_in_dim(results, chunk, start, 0)

    empty = jnp.zeros((batch, *one.shape[1:]), one.dtype)
    return lax.fori_loop(0, -(-batch // size), fill, empty)


def sum_chunks(function: Callable[..., jax.Array], *arrays: jax.Array, size: int) -> jax.Array:
    """Returns `function`, a sum over examples, as the sum of its results for chunks of `size`."""
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
