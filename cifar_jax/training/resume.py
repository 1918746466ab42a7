"""What a workdir says of the run so far: whether it may be resumed, and from where."""

import hashlib
import logging
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from cifar_jax import files
from cifar_jax.config import stored
from cifar_jax.config.durations import Durations, resolve_durations
from cifar_jax.data.datasets import Dataset
from cifar_jax.errors import DamageError, UserError
from cifar_jax.parallel import devices
from cifar_jax.runs import provenance, sources
from cifar_jax.runs import workdir as workdir_lib
from cifar_jax.runs.checkpoint import Checkpoints
from cifar_jax.training import transplant

STARTS, CONFIG_FILE = "starts.json", "config_file.py"

_log = logging.getLogger(__name__)


def check_workdir(config: ConfigDict, workdir: Path) -> None:
    """Checks that a config fits the run so far, and that what the run writes can be written.

    Raises:
      UserError: a field differs that may not, `init_from` holds no run or another model, or a
        folder is where a file is to be written.
    """
    names = (workdir_lib.CONFIG, workdir_lib.METRICS, workdir_lib.RESULT, workdir_lib.ENVIRONMENT)
    for name in (*names, STARTS, CONFIG_FILE):
        if (workdir / name).is_dir():
            raise UserError(f"{workdir / name} is a folder, where the run writes a file: move it")
    for name in ("checkpoints", "damaged_checkpoints", "code", "tensorboard", "report", "profile"):
        if (workdir / name).exists() and not (workdir / name).is_dir():
            raise UserError(f"{workdir / name} is a file, where the run needs a folder: move it")
    if workdir_lib.list_steps(workdir):
        old = files.read_json(workdir / workdir_lib.CONFIG)
        differences = stored.conflicts(old, stored.to_json(config))
        if differences := differences or sources.find_changes(config, workdir):
            words = f"choose another --workdir, where --config.init_from={workdir} starts from its "
            words += "weights, or the old values to resume it"
            whole = f"{workdir} holds a run with another config: {words}"
            raise UserError("\n".join([*differences, whole]))
    elif config.init_from:
        transplant.check_start(config)


def find_result(config: ConfigDict, workdir: Path) -> dict[str, Any] | None:
    """Returns the result of a run that is finished, as far as this config asks; None if it is not.

    Raises:
      UserError: as for `check_workdir`.
    """
    check_workdir(config, workdir)
    path, steps = workdir / workdir_lib.RESULT, workdir_lib.list_steps(workdir)
    result, new = files.read_json(path, missing={}), stored.to_json(config)
    if not steps or not result:
        return None
    old = result.get("config")
    if not isinstance(old, dict):  # of an earlier version
        old = files.read_json(workdir / workdir_lib.CONFIG)
    names = ("num_steps",) if new["num_steps"] is not None else ("num_epochs", "num_steps")
    same = all(old.get(name) == new[name] for name in names)
    known = isinstance(result.get("test_accuracy"), (int, float))
    return result if same and known and result.get("step") == steps[-1] else None


def record_start(config: ConfigDict, workdir: Path, step: int, config_text: str | None) -> None:
    """Writes the config and its file, and adds this start to the list of all starts.

    Args:
      config: of the run.
      workdir: its folder.
      step: at which it starts.
      config_text: of the config file; None: it is not known.
    """
    workdir_lib.check_lease(workdir)
    files.write_json(workdir / workdir_lib.CONFIG, stored.to_json(config))
    sources.keep_sources(config, workdir)
    if config_text is not None:
        files.write_text(workdir / CONFIG_FILE, config_text)
    environment = provenance.environment()
    start = {"step": step, "devices": devices.describe_devices(), **environment}
    starts = [*read_starts(workdir), start]
    files.write_json(workdir / STARTS, {"starts": starts})
    files.write_json(workdir / workdir_lib.ENVIRONMENT, environment)


def read_starts(workdir: Path) -> list[dict[str, Any]]:
    """Returns every start of a run so far: its first step, commit, command, hardware, versions.

    A damaged list is passed over with a warning: it does not decide whether a run goes on.

    Raises:
      UserError: it cannot be read now.
    """
    path = workdir / STARTS
    try:
        starts = files.read_json(path, missing={"starts": []})["starts"]
        if isinstance(starts, list) and all(isinstance(start, dict) for start in starts):
            return starts
        words = "it holds no list of starts"
    except (DamageError, KeyError) as error:
        words = str(error)
    _log.warning("%s is damaged (%s): a new list is begun", path, words)
    return []


def describe_data(dataset: Dataset) -> dict[str, Any]:
    """Returns what identifies a run's data, as JSON values."""
    train = dataset.splits["train"]
    labels = {
        name: hashlib.sha256(np.ascontiguousarray(split.labels, np.int32).tobytes()).hexdigest()
        for name, split in dataset.splits.items()
    }
    return {
        "class_names": list(dataset.class_names),
        "mean": list(dataset.mean),
        "std": list(dataset.std),
        "image_shape": list(train.images.shape[1:]),
        "num_images": {name: len(split.labels) for name, split in dataset.splits.items()},
        "labels_sha256": labels,
    }


def find_saved(
    checkpoints: Checkpoints, config: ConfigDict, durations: Durations, dataset: Dataset
) -> dict[str, Any] | None:
    """Returns the progress of the last checkpoint that belongs to this run; None for a new run.

    Raises:
      UserError: the checkpoint has more steps than asked for, or was trained on other data; or the
        run had checkpoints, and none can be used.
    """
    while (step := checkpoints.find("last")) is not None:
        meta = checkpoints.meta(step)
        theirs = meta.get("config")
        foreign = stored.conflicts(theirs, stored.to_json(config)) if theirs else ["no config"]
        if not foreign and "progress" in meta:
            break
        words = f"it belongs to another run: {foreign[0]}" if foreign else "it has no progress"
        checkpoints.set_aside(step, words)
    else:
        checkpoints.check_left()
        return None
    if step > durations.total:
        raise UserError(
            f"the run has made {step} steps already, more than the {durations.total} asked for: "
            "raise num_epochs or num_steps, or choose another --workdir"
        )
    workdir = checkpoints.folder.parent
    if theirs and step == durations.total:
        views = [stored.to_json(c)["test_time"] for c in (stored.from_json(theirs), config)]
        if views[0] != views[1]:
            raise UserError(
                f"{workdir} is trained, and its checkpoints have test_time {views[0]}: finish it "
                "with these values, or choose another --workdir"
            )
    _check_data(meta.get("data"), describe_data(dataset), workdir)
    if theirs:
        before = resolve_durations(stored.from_json(theirs), len(dataset.splits["train"].labels))
        if before.warmup != durations.warmup:
            raise UserError(
                f"the warm-up of {workdir} took {before.warmup} steps, because the run was to be "
                f"short, and would now take {durations.warmup}: choose another --workdir"
            )
    return meta["progress"]


def _check_data(old: Any, new: dict[str, Any], workdir: Path) -> None:
    """Compares the data that a run was trained on with what it would be resumed on."""
    if not isinstance(old, dict):
        return
    if isinstance(old.get("labels_sha256"), str):  # earlier versions: of the training images only
        old = {**old, "labels_sha256": {"train": old["labels_sha256"]}}
    for name in ("num_images", "labels_sha256"):
        if isinstance(known := old.get(name), dict):  # earlier versions left out "validation"
            new = {**new, name: {split: x for split, x in new[name].items() if split in known}}
    differences = [name for name in new if name in old and old[name] != new[name]]
    if not differences:
        return
    name = differences[0]
    words = f"{name} was {old[name]!r} and is now {new[name]!r}"
    if name == "class_names":
        pairs = zip(old[name], new[name], strict=False)
        place = next((n for n, (x, y) in enumerate(pairs) if x != y), None)
        words = f"there were {len(old[name])} classes and there are now {len(new[name])}"
        if place is not None:
            words = f"class {place} was {old[name][place]!r} and is now {new[name][place]!r}"
    elif name == "labels_sha256":
        splits = [split for split, x in new[name].items() if x != old[name][split]]
        words = f"the labels of {' and '.join(splits)} differ"
    raise UserError(
        f"{workdir} was trained on other data: {words}; set --config.data.data_dir (data.path for "
        "a folder of pictures) to the data of that run, or choose another --workdir"
    )
