"""What a run starts from: its last checkpoint, another run's weights, or new weights."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
from flax import linen as nn
from jax.sharding import Mesh
from ml_collections import ConfigDict

from cifar_jax import files
from cifar_jax.config import stored
from cifar_jax.config.durations import Durations
from cifar_jax.data.datasets import Dataset
from cifar_jax.errors import UserError
from cifar_jax.evaluation import trained
from cifar_jax.parallel import devices, processes, seeds
from cifar_jax.runs import provenance
from cifar_jax.runs import workdir as workdir_lib
from cifar_jax.runs.checkpoint import Checkpoints
from cifar_jax.training.state import TrainState, make_init, params_from_data


def check_workdir(config: ConfigDict, workdir: Path) -> None:
    """Checks that a config fits the run so far, and that the run to start from exists.

    Raises:
      UserError: a field differs that may not, or there is no run in `init_from`.
    """
    begun = any((workdir / "checkpoints").glob("[0-9]*"))
    if begun:
        old = files.read_json(workdir / workdir_lib.CONFIG)
        if differences := stored.conflicts(old, stored.to_json(config)):
            raise UserError(
                "\n".join(differences)
                + f"\n{workdir} holds a run with another config: choose another --workdir, or the "
                "old values to resume it"
            )
    elif config.init_from:
        trained.check_run(Path(config.init_from))


def record_config(config: ConfigDict, workdir: Path) -> None:
    """Writes the config, and what else the result depends on, to the workdir."""
    workdir_lib.check_lease(workdir)
    files.write_json(workdir / workdir_lib.CONFIG, stored.to_json(config))
    files.write_json(workdir / workdir_lib.ENVIRONMENT, provenance.environment())


def start(
    config: ConfigDict,
    dataset: Dataset,
    durations: Durations,
    mesh: Mesh,
    model: nn.Module,
    checkpoints: Checkpoints,
) -> tuple[TrainState, dict[str, Any]]:
    """Returns the state to start from, and the progress saved with it, {} for a new run.

    Raises:
      UserError: the last checkpoint does not fit the config, or `init_from` another model.
    """
    shape = dataset.splits["train"].images.shape[1:]
    seed_list = seeds.seed_list(config)
    saved = processes.run_on_first(lambda: _find_saved(checkpoints, durations))
    create = make_init(config, durations, model, shape)
    shapes = jax.eval_shape(create, jax.random.key(config.seed))

    def make() -> TrainState:
        own = devices.make_mesh(num_seeds=len(seed_list))
        with jax.set_mesh(own):
            if saved:
                abstract = seeds.abstract(own, shapes, len(seed_list))
                return checkpoints.restore(saved["step"], abstract)
            given = params_from_data(model, dataset)
            init = devices.jit_once(make_init(config, durations, model, shape, given))
            states = [init(jax.random.key(seed)) for seed in seed_list]
            if config.init_from:
                states = [transplant(Path(config.init_from), state) for state in states]
            return seeds.stack(own, states)

    state = processes.broadcast(make, seeds.abstract(mesh, shapes, len(seed_list)))
    return devices.put(mesh, state, seeds.spec(len(seed_list))), saved or {}


def _find_saved(checkpoints: Checkpoints, durations: Durations) -> dict[str, Any] | None:
    """Returns the progress of the last checkpoint, if there is one."""
    step = checkpoints.find("last")
    if step is None:
        return None
    if step > durations.total:
        raise UserError(
            f"the run has made {step} steps already, more than the {durations.total} asked for: "
            "raise num_epochs or num_steps, or choose another --workdir"
        )
    saved = checkpoints.meta(step).get("progress")
    if not isinstance(saved, dict) or saved.get("step") != step:
        raise UserError(f"the checkpoint of step {step} does not say how far its run had come")
    return saved


def transplant(workdir: Path, state: TrainState) -> TrainState:
    """Returns a new state that starts with the weights of another run's last checkpoint.

    The layer "head" keeps its new weights where the number of classes differs.

    Raises:
      UserError: the other run has another model.
    """
    old = trained.load(workdir).variables
    new = {"params": dict(state.params), "batch_stats": state.batch_stats}
    source = {"params": dict(old["params"]), "batch_stats": old.get("batch_stats", {})}

    def shapes(tree: Any) -> Any:
        return jax.tree.map(lambda leaf: leaf.shape, tree)

    if "head" in new["params"] and "head" in source["params"]:
        head = new["params"]["head"]
        if shapes(head) != shapes(source["params"]["head"]):
            source["params"]["head"] = head
    if shapes(new) != shapes(source):
        raise UserError(f"init_from {workdir} holds another model than this run's")
    # Copies, so that donating this state does not delete the other model's arrays.
    source = jax.tree.map(jax.numpy.copy, source)
    ema = jax.tree.map(jax.numpy.copy, source) if state.ema else {}
    return dataclasses.replace(
        state, params=source["params"], batch_stats=source["batch_stats"], ema=ema
    )
