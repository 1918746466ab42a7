"""Starts a run with another run's weights (`init_from`), and says which layer does not fit."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from cifar_jax.config.fields import flatten
from cifar_jax.data import foresight
from cifar_jax.errors import UserError
from cifar_jax.evaluation import trained
from cifar_jax.models.registry import create_model, make_variables
from cifar_jax.training.state import TrainState


def check_start(config: ConfigDict) -> None:
    """Compares the model with that of `init_from`, as far as can be known before the data.

    The layer "head" is left out: it depends on the classes.

    Raises:
      UserError: `init_from` holds no run, or another model, or one for other images.
    """
    workdir = Path(config.init_from)
    trained.check_run(workdir)
    if (shape := foresight.find_shape(config)) is None:
        return
    try:
        other = trained.describe_model(workdir)
    except UserError:  # `transplant` finds an older checkpoint, or says what is wrong
        return
    model = create_model(config, len(other.class_names))
    # The key is made within, which does not start the devices.
    ours = jax.eval_shape(lambda: make_variables(model, shape)(jax.random.key(0)))
    theirs, ours = (
        {name: x for name, x in flatten(tree) if not name.startswith("params.head.")}
        for tree in (other.variables, ours)
    )
    _compare_shapes(workdir, theirs, ours)


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
