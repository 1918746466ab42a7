"""Loads a model with its trained weights from a run, or from a file of weights."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from cifar_jax import files
from cifar_jax.config import stored
from cifar_jax.config.fields import flatten
from cifar_jax.errors import UserError
from cifar_jax.evaluation import calibration
from cifar_jax.evaluation.model import Trained, combine
from cifar_jax.models.registry import create_model, make_variables
from cifar_jax.parallel import devices, seeds
from cifar_jax.runs import sources, weights
from cifar_jax.runs.checkpoint import Checkpoints
from cifar_jax.runs.meta import find_meta_fault
from cifar_jax.runs.workdir import CONFIG, list_steps
from cifar_jax.text import first_line, short_names

# The fields that evaluation and prediction take from config.json, which anyone may edit.
_SETTINGS: dict[str, Any] = {
    "eval_batch_size": int,
    "num_cpu_devices": int | None,
    "deterministic": bool | None,
    **dict.fromkeys(("data.data_dir", "data.path"), str | None),
}


def configure_for_run(workdir: Path) -> dict[str, Any]:
    """Sets JAX up as a run did; returns the fields of its config.json by their dotted names.

    Raises:
      UserError: there is no run, or one of `_SETTINGS` has a wrong value.
    """
    fields = dict(flatten(weights.read_config(workdir)))
    for name, kind in _SETTINGS.items():
        value = fields.get(name)
        if not isinstance(value, kind) or (type(value) is int and value < 1):
            place = workdir / CONFIG if workdir.is_dir() else workdir
            raise UserError(f"{place} is not the config of a run: {name} is {value!r}")
    devices.configure_jax(None, fields.get("num_cpu_devices"), bool(fields.get("deterministic")))
    return fields


def load(
    workdir: str | Path | Sequence[str | Path],
    checkpoint: str = "last",
    seed: int | None = None,
    stored_code: bool = False,
) -> Trained:
    """Returns the model that a run trained; needs neither its config file nor its data.

    A list of runs gives the ensemble of their models: of every seed, unless one is named.

    Args:
      workdir: the run's folder, a file of weights that `--mode=export` wrote, or the name of a
        model that comes with the package, such as "resnet_20" or "pretrained:resnet_20".
      checkpoint: "last", "best" (on the validation split) or a step.
      seed: one of several seeds that were trained together; None: the first.
      stored_code: for a model of your own, whether to run the copy of its code that the workdir
        holds, as in `sources.use_sources`. It is a program: look at it first.

    Raises:
      UserError: there is no run or no such checkpoint or seed, or it is damaged; or the code of
        your own model is not what the run was trained with.
    """
    if not isinstance(workdir, str | Path):
        every = [load_seeds(each, checkpoint, seed, stored_code) for each in workdir]
        return combine([one for models in every for one in models])
    return load_seeds(workdir, checkpoint, seed, stored_code)[0]


def load_seeds(
    workdir: str | Path,
    checkpoint: str = "last",
    seed: int | None = None,
    stored_code: bool = False,
) -> list[Trained]:
    """Returns the models of all seeds of a run, or of the given one; otherwise as `load`."""
    devices.configure_jax()
    if str(workdir) in weights.shipped_names() and not Path(workdir).exists():
        workdir = f"{weights.PREFIX}{workdir}"
    workdir = files.user_path(workdir)
    file = weights.find_file(workdir)
    every = [load_file(file, checkpoint)] if file else _read_run(workdir, checkpoint, stored_code)
    known = [trained.seed for trained in every]
    if seed is not None and seed not in known:
        words = ", ".join(map(str, known))
        raise UserError(f"{workdir} has no seed {seed}: --seed can be {words}")
    return [trained for trained in every if seed in (trained.seed, None)]


def load_members(
    workdirs: Sequence[Path],
    checkpoint: str = "last",
    seed: int | None = None,
    stored_code: bool = False,
) -> dict[str, Trained]:
    """Returns the models of all seeds of runs, or of the given one, by a name for each.

    The models of a single run are named by their seeds; otherwise as `load`.
    """
    found = {}
    for workdir, name in zip(workdirs, short_names(workdirs), strict=True):
        for model in (models := load_seeds(workdir, checkpoint, seed, stored_code)):
            parts = [name] if len(workdirs) > 1 else []
            parts += [f"seed {model.seed}"] if parts and len(models) > 1 else []
            found[" ".join(parts) or str(model.seed)] = model
    return found


def check_run(workdir: Path) -> None:
    """Raises UserError if there is no run or it has no checkpoint, or no file of weights."""
    workdir = files.user_path(workdir)
    weights.read_config(workdir)
    if not weights.find_file(workdir) and not any((workdir / "checkpoints").glob("[0-9]*")):
        raise UserError(f"{workdir} has no checkpoint yet")


def describe_model(workdir: Path) -> Trained:
    """Returns the model of a run's last checkpoint or of a file of weights, without the weights.

    Its variables are shapes only.

    Raises:
      UserError: as for `check_run`, or the description is damaged.
    """
    workdir = files.user_path(workdir)
    if file := weights.find_file(workdir):
        return _describe(weights.read_weights(file)[1], str(file), file)
    step = list_steps(workdir)[-1]
    meta = files.read_json(workdir / "checkpoints" / str(step) / "meta.json")
    where = f"the checkpoint of step {step} in {workdir}"
    return _describe({**meta, "step": step}, where, workdir)


def load_file(file: Path, which: str = "last") -> Trained:
    """Returns the model in a file of weights.

    Raises:
      UserError: the file cannot be read or is damaged, or `which` is not "last" or its own step.
    """
    variables, about = weights.read_weights(file)
    model = _describe(about, str(file), file)
    if which not in ("last", str(model.step)):
        raise UserError(f"{file} has only the checkpoint of step {model.step}: leave out {which!r}")
    shapes, wanted = (jax.tree.map(jnp.shape, tree) for tree in (variables, model.variables))
    if shapes != wanted:
        raise UserError(f"{file} holds other arrays than those of the model that it describes")
    return model._replace(variables=devices.put(devices.make_mesh(), variables, PartitionSpec()))


def _read_run(workdir: Path, which: str, stored_code: bool) -> list[Trained]:
    check_run(workdir)
    checkpoints = Checkpoints(workdir, writable=False)
    try:
        for _ in range(10):
            steps = checkpoints.steps()
            try:
                return _restore(workdir, checkpoints, which, stored_code)
            except Exception:
                if checkpoints.steps() == steps:
                    raise
                # A run that is still training deleted the checkpoint while it was being read.
        raise UserError(
            f"{workdir} deletes its checkpoints faster than they can be read: try again, or "
            "save less often (checkpoint.every_epochs)"
        )
    finally:
        checkpoints.close()


def _restore(workdir: Path, saved: Checkpoints, which: str, stored_code: bool) -> list[Trained]:
    step = saved.find(which)
    if step is None:
        raise UserError(f"{workdir} has no intact checkpoint")
    meta = {**saved.meta(step), "step": step}
    model = _describe(meta, f"the checkpoint of step {step} in {workdir}", workdir, stored_code)
    seed_list = seeds.seed_list(model.config)
    abstract = seeds.abstract_stack(devices.make_mesh(), model.variables, len(seed_list))
    wanted = {"ema": abstract} if model.config.get("ema_decay") else abstract
    restored = saved.restore(step, wanted)
    variables = seeds.unstack(restored.get("ema", restored), len(seed_list))
    fitted = calibration.read_temperatures(workdir, step, len(seed_list))
    return [
        model._replace(variables=own, seed=seed, temperature=temperature, fitted_on=split)
        for seed, own, (temperature, split) in zip(seed_list, variables, fitted, strict=True)
    ]


def _describe(meta: Mapping[str, Any], where: str, place: Path, stored_code=False) -> Trained:
    """Returns the model of a description; its variables are shapes only.

    Raises:
      UserError: a part of the description is missing or wrong; the message begins with `where`.
    """
    if fault := find_meta_fault(meta):
        raise UserError(f"{where} has no model: {fault}")
    try:
        config = stored.from_json(meta["config"])
        data = meta["data"]
        code = sources.use_sources(config, place, stored_code, meta.get("code"))
        model = create_model(code, len(data["class_names"]))
        shape = tuple(data["image_shape"])
        mean, std = (tuple(map(float, data[name])) for name in ("mean", "std"))
        if not len(mean) == len(std) == shape[-1]:
            raise ValueError("mean and std must have one value per channel")
        seed = seeds.seed_list(config)[0]
        # The key is made within, which does not start the devices: `make_mesh` says what is wrong
        # with them.
        abstract = jax.eval_shape(lambda: make_variables(model, shape)(jax.random.key(0)))
        names, step = tuple(data["class_names"]), meta["step"]
        temperature = float(meta.get("temperature", 1))
        fitted = temperature, str(meta.get("fitted_on", ""))  # earlier files do not say it
        values = (dict(abstract), names, mean, std, shape, step, seed, *fitted)
        return Trained(config, model, *values)
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise UserError(f"{where} has no model: {first_line(error)}") from error
