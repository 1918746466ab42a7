"""How a CPU kernel written for one device runs on every device of the mesh."""

from collections.abc import Callable

import jax
from jax import lax
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

DATA_AXIS = "data"


def map_batch(
    kernel: Callable[..., jax.Array], *arrays: jax.Array, batched: tuple[bool, ...], total: bool
) -> jax.Array:
    """Runs `kernel` on each device's own part of the batch.

    XLA must not partition the kernel itself: it would gather the batch for a loop over chunks of
    it, and convolutions mapped over the seeds came out wrong. Under `jax.vmap` give
    `spmd_axis_name` the mesh axis that the mapped axis lies on, or each device does all of it.

    Args:
      kernel: a function of `arrays`; if `total`, a sum over the batch.
      *arrays: its arguments.
      batched: which arguments have the batch as their first axis; the others are whole everywhere.
      total: whether results are added up over the devices, or else joined along the batch.

    Returns:
      What `kernel(*arrays)` returns.
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

    # Over all axes: mapped over "data" alone, XLA's CPU compiler aborted on bfloat16, and a mesh
    # with two seeds gave wrong gradients.
    return jax.shard_map(
        per_device,
        in_specs=tuple(share if is_batched else P() for is_batched in batched),
        out_specs=P() if total else share,
        check_vma=False,
    )(*arrays)
