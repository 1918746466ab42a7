"""How a CPU kernel written for one device runs on every device of the mesh."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P

DATA_AXIS = "data"


def map_batch(
    kernel: Callable[..., jax.Array], *arrays: jax.Array, batched: tuple[bool, ...], total: bool
) -> jax.Array:
    """Runs `kernel` on each device's own part of the batch.

    XLA cannot partition a loop over chunks of the batch, so it would gather the batch first.
    Without a mesh, or where the data axis does not divide the batch, the kernel runs plainly.

    Args:
        kernel: a function of `arrays`, linear in the batch if `total`.
        *arrays: its arguments.
        batched: which arguments have the batch as their first axis; the others are replicated.
        total: whether results are added up over the devices, or else joined along the batch.

    Returns:
        What `kernel(*arrays)` returns.
    """
    mesh = jax.sharding.get_abstract_mesh()
    size = mesh.shape.get(DATA_AXIS, 1)
    num_examples = arrays[batched.index(True)].shape[0]
    if size == 1 or num_examples % size or DATA_AXIS not in mesh.auto_axes:
        return kernel(*arrays)

    def per_device(*parts: jax.Array) -> jax.Array:
        result = kernel(*parts)
        if not total:
            return result
        # XLA's CPU compiler aborts on an all-reduce of bfloat16 that comes from a shard_map.
        wide = result.astype(jnp.promote_types(result.dtype, jnp.float32))
        return lax.psum(wide, DATA_AXIS).astype(result.dtype)

    return jax.shard_map(
        per_device,
        in_specs=tuple(P(DATA_AXIS) if is_batched else P() for is_batched in batched),
        out_specs=P() if total else P(DATA_AXIS),
        axis_names={DATA_AXIS},
        check_vma=False,
    )(*arrays)
