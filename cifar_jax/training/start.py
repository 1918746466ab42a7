"""Starts a run: from its last checkpoint, another run's weights or new weights."""

from pathlib import Path
from typing import Any

import jax
from flax import linen as nn
from jax.sharding import Mesh
from ml_collections import ConfigDict

from cifar_jax.augment import batch as augment
from cifar_jax.augment.own import augment_by
from cifar_jax.config.durations import Durations
from cifar_jax.data.datasets import Dataset
from cifar_jax.models.own import check_params_from_data
from cifar_jax.parallel import devices, processes, seeds
from cifar_jax.runs.checkpoint import Checkpoints
from cifar_jax.training import resume
from cifar_jax.training.state import TrainState, make_init, params_from_data
from cifar_jax.training.transplant import transplant


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
    augment.check_shape(config.augment, shape)
    if own := config.augment.custom:
        example = jax.ShapeDtypeStruct((1, *shape), "uint8")
        jax.eval_shape(lambda images: augment_by(own, jax.random.key(0), images), example)
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
