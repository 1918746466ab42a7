"""Configs stored with runs: writing, reading, and comparing one with a new config."""

import copy
import json
import re
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_flags import config_path

from cifar_jax.config import custom, rules, shipped
from cifar_jax.config.fields import (
    OPEN,
    OPTIMIZER_OPTIONS,
    fits,
    flatten,
    ignored_durations,
)

# Fields that may change when a run is resumed: they do not affect the training.
HARMLESS = (
    *("log.", "data.data_dir", "data.path", "data.max_broken", "data.placement"),
    *("num_cpu_devices", "steps_per_call"),
    *("eval_batch_size", "eval_every_", "test_time.", "checkpoint.", "deterministic"),
    "seeds_at_once",
)

# Fields that configs of earlier versions lack, with the values for what those versions did.
_ADDED = {
    **{f"optimizer.{name}": None for name in OPTIMIZER_OPTIONS},
    "num_seeds": 1,
    "data.seed": None,
    "data.validation_fold": 0,
    "data.label_noise": 0.0,
    "seeds_at_once": None,
    "augment.alternating_flip": False,
    "augment.custom": "",
    "loss.class_weights": None,
    "data.path": None,
    "data.image_size": None,
    "data.channels": None,
    "data.test_fraction": 0.2,
    "data.max_broken": 10,
    "data.train_split": "train",
    "data.test_split": None,
    "log.every_steps": None,
    "optimizer.base_batch_size": 128,
    "optimizer.decoupled_decay": None,
    "optimizer.learning_rate_scaling": "none",
    "optimizer.sam_radius": 0.0,
    "test_time.views": "plain",
    "test_time.confidence_threshold": None,
}
# Fields that had another name in earlier versions.
_RENAMED = {"test_time.certainty": "test_time.confidence_threshold"}

# No number in a config is as large.
_MOST = 1e300


def strip_version(name: str) -> str:
    """Returns the name of a data set without its version: "mnist" for "mnist:3.0.1"."""
    return re.sub(r"[:/](\d+|\*)(\.(\d+|\*)){2}$", "", name)


def to_json(config: ConfigDict) -> dict[str, Any]:
    """Returns a config as plain JSON values, with tuples as lists."""
    return json.loads(json.dumps(config.to_dict()))


def from_json(values: Mapping[str, Any]) -> ConfigDict:
    """Returns the locked config for what `to_json` of this version or an earlier one returned."""
    whole = copy.deepcopy(dict(values))
    for old, new in _RENAMED.items():
        part, field = _find(whole, old)
        if field in part:
            part[new.rpartition(".")[2]] = part.pop(field)
    for name, value in _ADDED.items():
        part, field = _find(whole, name)
        part.setdefault(field, value)
    return ConfigDict(whole).lock()


def find_fault(values: Any) -> str:
    """Returns what is wrong with what should be a config as `to_json` writes it, "" if nothing is.

    The fields of `model` and groups are not looked at, nor are those that are missing or that this
    version does not know.
    """
    default = shipped.default_config()
    known = dict(flatten(default))
    try:
        given = dict(flatten(from_json(values))) if isinstance(values, Mapping) else {}
    except (AttributeError, TypeError, ValueError, LookupError, RecursionError):
        given = {}
    if not isinstance(given.get("model.name"), str):
        return "it has no config"
    for name, value in given.items():
        if not name.startswith(OPEN) and not _may_be(name, value, default, known):
            return f"its config has {name} {value!r}"
    return "" if 1 <= given["num_seeds"] <= rules.MOST_SEEDS else "its config has no seeds"


def _may_be(name: str, value: Any, default: ConfigDict, known: Mapping[str, Any]) -> bool:
    """Whether a field of a stored config has a value of its kind."""
    if name not in known:  # of another version, unless it is in the place of a known one
        return not any(x.startswith(f"{name}.") or name.startswith(f"{x}.") for x in known)
    plain = tuple(value) if isinstance(value, list) else value
    numbers = [x for x in (plain if isinstance(plain, tuple) else (plain,)) if type(x) is not str]
    return (
        fits(plain, config_path.get_type(name, default), known[name] is None)
        and value in rules.CHOICES.get(name, (value,))
        and all(x is None or -_MOST < x < _MOST for x in numbers)
    )


def _find(values: dict[str, Any], name: str) -> tuple[dict[str, Any], str]:
    """Returns the dict that holds a dotted name, created if needed, and the name's last part."""
    *parts, field = name.split(".")
    for part in parts:
        values = values.setdefault(part, {})
    return values, field


def conflicts(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Returns a phrase for each difference that keeps a run from being resumed.

    A duration in epochs does not count where both set the one in steps, nor the version in a data
    set's name, since the data themselves are compared. The number of epochs may change if the
    schedule's rates do not depend on it.

    Args:
      old: the config with which the run began, as `to_json` returns it.
      new: the config with which it is to be resumed, as `to_json` returns it.
    """
    before, after = ({**_ADDED, **dict(flatten(config))} for config in (old, new))
    harmless: tuple[str, ...] = HARMLESS
    if after.get("schedule.name") in ("constant", "step"):
        harmless += ("num_epochs", "num_steps")
    ignored = set(ignored_durations(before)) & set(ignored_durations(after))
    names = [str(x.get("data.name")) for x in (before, after)]
    if strip_version(names[0]) == strip_version(names[1]):
        ignored.add("data.name")
    return [
        f"{name} was {before.get(name)!r} and is now {after.get(name)!r}"
        for name in sorted(before.keys() | after.keys())
        if custom.shorten(before.get(name)) != custom.shorten(after.get(name))
        and not name.startswith(harmless)
        and name not in ignored
    ]
