"""Several runs that differ only in their seeds, in one program.

The arrays that each run has of its own (state, metrics, indices of images) then have one more axis,
the first, with one entry per run. A single run has no such axis.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from ml_collections import ConfigDict

from cifar_jax.parallel import devices


def seed_list(config: ConfigDict) -> list[int]:
    """Returns the seeds that a config trains."""
    return list(range(config.seed, config.seed + config.num_seeds))


def spec(num_seeds: int, *rest: str | None) -> PartitionSpec:
    """Returns how the arrays of `num_seeds` runs are divided over the mesh.

    Args:
      num_seeds: the number of runs.
      *rest: the mesh axis for each axis of a single run's arrays; None: not divided.
    """
    return PartitionSpec("seed", *rest) if num_seeds > 1 else PartitionSpec(*rest)


def stack(mesh: Mesh, trees: list[Any]) -> Any:
    """Returns the runs' trees as one tree, divided over the mesh."""
    tree = jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees) if trees[1:] else trees[0]
    return devices.put(mesh, tree, spec(len(trees)))


def abstract_stack(mesh: Mesh, shapes: Any, num_seeds: int) -> Any:
    """Returns the `jax.ShapeDtypeStruct`s of the result of `stack` for trees of these shapes."""
    axis = (num_seeds,) if num_seeds > 1 else ()
    stacked = jax.tree.map(lambda x: jax.ShapeDtypeStruct((*axis, *x.shape), x.dtype), shapes)
    return devices.abstract_arrays(mesh, stacked, spec(num_seeds))


def unstack(tree: Any, num_seeds: int) -> list[Any]:
    """Returns the tree of each run."""
    if num_seeds == 1:
        return [tree]
    return [jax.tree.map(lambda leaf, i=i: leaf[i], tree) for i in range(num_seeds)]


def at_once(config: ConfigDict) -> bool:
    """Whether a device trains its seeds all at once, not one after another."""
    if config.seeds_at_once is not None:
        return config.seeds_at_once
    return jax.default_backend() != "cpu"


def describe_seeds(config: ConfigDict, mesh: Mesh) -> str:
    """Returns the line that says which seeds a run trains, and how."""
    rows = mesh.shape["seed"]
    each = f"{config.num_seeds // rows} on each device" if rows > 1 else "on all devices"
    order = "at once" if at_once(config) else "one after another"
    return f"{config.num_seeds} seeds, {config.seed} to {seed_list(config)[-1]}, {each}, {order}"


def map_seeds(
    function: Callable[..., Any], mesh: Mesh, axes: tuple[int | None, ...], at_once: bool
) -> Callable[..., Any]:
    """Returns a function for several runs, made from one that is written for a single run.

    Args:
      function: takes and returns arrays or trees of arrays.
      mesh: the devices; if its axis "seed" is longer than one, each device computes its own runs.
      axes: for each argument 0 if it has the axis of the runs, None if all runs share it; results
        always have that axis.
      at_once: whether a device computes its runs at once, by `jax.vmap`, or one after another.
    """

    def each(*arguments: Any) -> Any:
        if at_once:
            return jax.vmap(function, axes)(*arguments)
        own = [argument for argument, axis in zip(arguments, axes, strict=True) if axis == 0]

        def one(parts: list[Any]) -> Any:
            left = iter(parts)
            pairs = zip(arguments, axes, strict=True)
            return function(*(next(left) if axis == 0 else x for x, axis in pairs))

        return jax.lax.map(one, own)

    if mesh.shape["seed"] == 1:
        return each
    # Over both axes of the mesh, which leaves none inside over which XLA could partition.
    specs = tuple(PartitionSpec() if axis is None else PartitionSpec("seed") for axis in axes)
    return jax.shard_map(
        each, mesh=mesh, in_specs=specs, out_specs=PartitionSpec("seed"), check_vma=False
    )
