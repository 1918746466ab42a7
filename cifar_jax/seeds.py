"""Several runs that differ in their seeds alone, in one program.

Whatever belongs to a run has one axis more then, its first, along which the runs lie: the state,
the metrics, the rows of images. One run has no such axis: its program, its arrays and its
checkpoints are as if there were nothing else.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from ml_collections import ConfigDict

from cifar_jax import devices, metrics


def of(config: ConfigDict) -> list[int]:
    """Returns the seeds of a run's config."""
    return list(range(config.seed, config.seed + config.num_seeds))


def spec(num_seeds: int, *rest: str | None) -> PartitionSpec:
    """Returns how arrays of `num_seeds` runs lie on the mesh.

    Args:
      num_seeds: of the runs.
      *rest: the mesh's axes for those axes of the arrays that one run's have, too.
    """
    return PartitionSpec("seed", *rest) if num_seeds > 1 else PartitionSpec(*rest)


def stack(mesh: Mesh, trees: list[Any]) -> Any:
    """Returns the trees of the runs as one, laid on the mesh."""
    tree = jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees) if trees[1:] else trees[0]
    return devices.put(mesh, tree, spec(len(trees)))


def lay_sums(mesh: Mesh, sums: metrics.Sums, num_seeds: int) -> metrics.Metrics:
    """Returns the metrics of the runs, laid on the mesh, to go on from these sums."""
    return devices.put(mesh, metrics.from_sums(sums, num_seeds), spec(num_seeds))


def abstract(mesh: Mesh, shapes: Any, num_seeds: int) -> Any:
    """Returns the `jax.ShapeDtypeStruct`s that `stack` gives for trees of one run's shapes."""
    axis = (num_seeds,) if num_seeds > 1 else ()
    stacked = jax.tree.map(lambda x: jax.ShapeDtypeStruct((*axis, *x.shape), x.dtype), shapes)
    return devices.abstract(mesh, stacked, spec(num_seeds))


def unstack(tree: Any, num_seeds: int) -> list[Any]:
    """Returns the tree of each run."""
    if num_seeds == 1:
        return [tree]
    return [jax.tree.map(lambda leaf, i=i: leaf[i], tree) for i in range(num_seeds)]


def at_once(config: ConfigDict) -> bool:
    """Whether a device trains its seeds at once; else one after another."""
    if config.seeds_at_once is not None:
        return config.seeds_at_once
    return jax.default_backend() != "cpu"


def describe(config: ConfigDict, mesh: Mesh) -> str:
    """Returns the line that tells which seeds a run trains, and how."""
    rows = mesh.shape["seed"]
    each = f"{config.num_seeds // rows} on each device" if rows > 1 else "on all devices"
    order = "at once" if at_once(config) else "one after another"
    return f"{config.num_seeds} seeds, {config.seed} to {of(config)[-1]}, {each}, {order}"


def spread(
    function: Callable[..., Any], mesh: Mesh, axes: tuple[int | None, ...], at_once: bool
) -> Callable[..., Any]:
    """Returns `function`, written for one run, for several.

    Args:
      function: of arrays and trees of them, to such.
      mesh: the devices; where its axis "seed" has more than one, each computes its own runs.
      axes: for each argument 0, if it has the axis of the runs, or None, if all of them share it;
        what is returned has that axis.
      at_once: whether a device computes its runs by `jax.vmap`; else one after another.
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
    # Over both axes: within, no axis of the mesh is left that XLA could divide something over.
    specs = tuple(PartitionSpec() if axis is None else PartitionSpec("seed") for axis in axes)
    return jax.shard_map(
        each, mesh=mesh, in_specs=specs, out_specs=PartitionSpec("seed"), check_vma=False
    )
