"""Starts a run: from its last checkpoint, another run's weights or new weights."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from flax import linen as nn
from jax.sharding import Mesh
from ml_collections import ConfigDict

from cifar_jax.augment import batch as augment
from cifar_jax.augment.own import augment_by
from cifar_jax.config.durations import Durations
from cifar_jax.config.fields import flatten
from cifar_jax.data.datasets import Dataset
from cifar_jax.errors import UserError
from cifar_jax.evaluation import trained
from cifar_jax.models.own import check_params_from_data
from cifar_jax.parallel import devices, processes, seeds
from cifar_jax.runs.checkpoint import Checkpoints
from cifar_jax.training import resume
from cifar_jax.training.state import TrainState, make_init, params_from_data


def start(
    config: ConfigDict,
    dataset: Dataset,
    durations: Durations,
    mesh: Mesh,
    model: nn.Module,
    checkpoints: Checkpoints,
) -> tuple[TrainState, dict[str, Any]]:
    """Returns the state to start from and the progress saved with it; {} for a new run.

    Raises:
      UserError: the last checkpoint does not fit the config, `init_from` holds another model, or
        the augmentation or the model does not take images of this size.
    """
    key = jax.random.key(config.seed)
    shape = dataset.splits["train"].images.shape[1:]
    seed_list = seeds.seed_list(config)
    saved = processes.run_on_first(
        lambda: resume.find_saved(checkpoints, config, durations, dataset)
    )

    # What does not fit the images is refused before anything is written.
    def augment_all(key: jax.Array, images: jax.Array) -> jax.Array:
        images = augment.apply(key, images, config.augment, (0,) * shape[-1])
        own = config.augment.custom
        return augment_by(own, key, images) if own else images

    jax.eval_shape(augment_all, key, jax.ShapeDtypeStruct((1, *shape), "uint8"))
    create = make_init(config, durations, model, shape)
    shapes = jax.eval_shape(create, key)

    def make() -> TrainState:
        own = devices.make_mesh(num_seeds=len(seed_list))
        with jax.set_mesh(own):
            if saved:
                abstract = seeds.abstract_stack(own, shapes, len(seed_list))
                return checkpoints.restore(saved["step"], abstract)
            given = params_from_data(model, dataset)
            check_params_from_data(model, given, shapes.params)
            init = devices.jit_once(make_init(config, durations, model, shape, given))
            states = [init(jax.random.key(seed)) for seed in seed_list]
            if config.init_from:
                other = Path(config.init_from)
                states = [transplant(other, state, dataset.class_names) for state in states]
            return seeds.stack(own, states)

    state = processes.broadcast(make, seeds.abstract_stack(mesh, shapes, len(seed_list)))
    return devices.put(mesh, state, seeds.spec(len(seed_list))), saved or {}


def transplant(workdir: Path, state: TrainState, class_names: Sequence[str]) -> TrainState:
    """Returns a new state that starts with the weights of another run's last checkpoint.

    The layer "head" keeps its new weights unless the classes are the same, by name and order.

    Args:
      workdir: of the other run.
      state: before the first step.
      class_names: of this run's data.

    Raises:
      UserError: the other run has another model, or images of another size or number of channels.
    """
    other = trained.load(workdir)
    old = other.variables
    new = {"params": dict(state.params), "batch_stats": state.batch_stats}
    source = {"params": dict(old["params"]), "batch_stats": old.get("batch_stats", {})}

    if "head" in new["params"] and "head" in source["params"]:
        head = new["params"]["head"]
        if tuple(class_names) != other.class_names:
            source["params"]["head"] = head
    _compare_shapes(workdir, dict(flatten(source)), dict(flatten(new)))
    # Copies, so that donating this state does not delete the other model's arrays.
    source = jax.tree.map(jax.numpy.copy, source)
    ema = jax.tree.map(jax.numpy.copy, source) if state.ema else {}
    return dataclasses.replace(
        state, params=source["params"], batch_stats=source["batch_stats"], ema=ema
    )


def _compare_shapes(workdir: Path, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    """Raises UserError, which names the first array that does not fit, unless the shapes agree."""
    for name in dict.fromkeys([*ours, *theirs]):
        shapes = [list(tree[name].shape) if name in tree else None for tree in (theirs, ours)]
        if shapes[0] == shapes[1]:
            continue
        if None in shapes:
            where, other = ("that run", "this one") if shapes[0] else ("this run", "that one")
            words = f"only {where} has {name}, {other} does not: choose a run of the same model"
        else:
            words = (
                f"{name} has the shape {shapes[0]} there and {shapes[1]} here: give the model the "
                "same options; if the images differ, data.image_size and data.channels change them"
            )
        raise UserError(f"init_from {workdir} does not fit: {words}")
