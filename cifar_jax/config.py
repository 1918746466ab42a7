"""Checks a config once, and names what differs between two."""

import copy
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from cifar_jax.errors import UserError
from cifar_jax.fields import flatten, unknown

SCHEDULES = ("constant", "step", "cosine", "linear", "one_cycle")
DTYPES = ("float32", "bfloat16")
SCALINGS = ("none", "linear", "sqrt")
PLACEMENTS = ("auto", "device", "host")
VIEWS = ("plain", "mirror", "mirror_shift")

# What a field's value must satisfy: (fields, words, test). Unset fields are passed over. What is
# said of a field of `optimizer` holds for its groups too; only these have optimizer.num_epochs.
_RULES = (
    (
        (
            *("num_epochs", "num_steps", "num_seeds", "batch_size", "eval_batch_size"),
            "num_cpu_devices",
            *("steps_per_call", "optimizer.learning_rate", "optimizer.accumulation_steps"),
            *("optimizer.base_batch_size", "optimizer.num_epochs", "schedule.factor"),
            "test_time.certainty",
        ),
        "must be greater than 0",
        lambda value: value > 0,
    ),
    (
        (
            *("seed", "data.validation_examples", "augment.crop_padding", "augment.cutout"),
            *("augment.brightness", "augment.contrast", "augment.saturation", "augment.hue"),
            *("augment.rand_augment_ops", "augment.rand_augment_magnitude"),
            *("augment.mixup_alpha", "augment.cutmix_alpha", "optimizer.weight_decay"),
            *("optimizer.clip_norm", "schedule.warmup_epochs", "schedule.warmup_steps"),
            *("schedule.final_fraction", "eval_every_epochs", "eval_every_steps"),
            *("checkpoint.every_epochs", "checkpoint.every_steps"),
            *("log.profile_steps", "log.profile_start"),
        ),
        "must not be negative",
        lambda value: value >= 0,
    ),
    (
        (
            *("loss.label_smoothing", "ema_decay", "optimizer.momentum"),
            *("optimizer.b1", "optimizer.b2"),
        ),
        "must be at least 0 and less than 1",
        lambda value: 0 <= value < 1,
    ),
    (
        ("schedule.final_fraction", "test_time.certainty"),
        "must be at most 1",
        lambda value: value <= 1,
    ),
    (("augment.hue",), "must be at most 0.5", lambda value: value <= 0.5),
    (("augment.rand_augment_magnitude",), "must be at most 30", lambda value: value <= 30),
    (("augment.rand_augment_ops",), "must be at most 16", lambda value: value <= 16),
    (("num_cpu_devices",), "must be at most 256", lambda value: value <= 256),
    (("num_seeds",), "must be at most 1024", lambda value: value <= 1024),
    (("seed",), "must be less than 2**32", lambda value: value < 2**32),
)
# What a float32 and the step's int32 can hold.
_MOST_FLOAT, _MOST_INT = 3.4e38, 2**31 - 1

_CHOICES = {
    "dtype": DTYPES,
    "data.placement": PLACEMENTS,
    "optimizer.learning_rate_scaling": SCALINGS,
    "schedule.name": SCHEDULES,
    "test_time.views": VIEWS,
}

# Fields that may change between two starts of one run: they leave what is learned as it is.
_HARMLESS = (
    *("log.", "data.data_dir", "data.placement", "num_cpu_devices", "steps_per_call"),
    *("eval_batch_size", "eval_every_", "test_time.", "checkpoint.", "deterministic"),
    "seeds_at_once",
)

# Fields that runs of earlier versions lack, with the values that say what these did.
_ADDED = {
    "num_seeds": 1,
    "seeds_at_once": None,
    "augment.alternating_flip": False,
    "optimizer.base_batch_size": 128,
    "optimizer.decoupled_decay": None,
    "optimizer.learning_rate_scaling": "none",
    "test_time.views": "plain",
    "test_time.certainty": None,
}


def check(config: ConfigDict) -> None:
    """Raises UserError with one line per mistake; reads no data and compiles nothing."""
    fields = dict(flatten(config))
    outside = dict(_out_of_range(fields))
    problems = [f"{name} is {words}" for name, words in outside.items()]
    for names, words, holds in _RULES:
        for name in _with_groups(names, fields):
            value = fields[name]
            if value is not None and name not in outside and not holds(value):
                problems.append(f"{name} is {value} but {words}")
    for name, known in _CHOICES.items():
        if fields[name] not in known:
            problems.append(f"{name} is {unknown(fields[name], known)}")
    problems += _check_milestones(fields["schedule.milestones"])
    if fields["augment.flip"] and fields["augment.alternating_flip"]:
        problems.append("augment.flip and augment.alternating_flip are both on: choose one")
    rest = fields["batch_size"]
    for name in ("optimizer.accumulation_steps", "num_cpu_devices"):
        if (parts := fields[name]) and parts > 0 and rest > 0 and name not in outside:
            if rest % parts:
                problems.append(f"batch_size {rest} is not a multiple of {name} {parts}")
            rest //= parts
    views = fields["test_time.views"]
    if fields["test_time.certainty"] is not None and views != "mirror_shift":
        words = f"test_time.views is {views!r}: only 'mirror_shift' has shifted views to leave out"
        problems.append(f"test_time.certainty is set but {words}")
    problems += _check_seeds(fields)
    problems += _check_parts(config)
    if problems:
        raise UserError("\n".join(problems))


def _with_groups(names: Iterable[str], fields: Mapping[str, Any]) -> list[str]:
    """Returns the fields of these names, and for those of `optimizer` the groups' fields too."""
    found = [name for name in names if name in fields]
    for name in fields:
        if name.startswith("optimizer.groups."):
            found += [name] if f"optimizer.{name.rpartition('.')[2]}" in names else []
    return found


def _out_of_range(fields: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, value in fields.items():
        for number in value if isinstance(value, tuple | list) else (value,):
            if isinstance(number, float) and not math.isfinite(number):
                yield name, f"{number}, not a finite number"
            elif isinstance(number, float) and abs(number) > _MOST_FLOAT:
                yield name, f"{number}, more than a float32 can hold"
            elif isinstance(number, int) and abs(number) > _MOST_INT and name != "seed":
                yield name, "not within 2**31"


def _check_milestones(milestones: Any) -> list[str]:
    if not all(isinstance(epoch, int | float) for epoch in milestones):
        return [f"schedule.milestones is {milestones} but must hold numbers of epochs"]
    if any(epoch <= 0 for epoch in milestones) or list(milestones) != sorted(set(milestones)):
        return [f"schedule.milestones is {milestones} but must rise, from above 0"]
    return []


def _check_seeds(fields: Mapping[str, Any]) -> list[str]:
    seed, count, aside = (fields[x] for x in ("seed", "num_seeds", "data.validation_examples"))
    problems: list[str] = []
    if not 1 < count <= 1024:
        return problems
    if aside:
        words = "each seed would set other images aside; leave one of them out"
        problems.append(f"num_seeds is {count} and data.validation_examples {aside}: {words}")
    if 0 <= seed < 2**32 < seed + count:
        problems.append(f"seed is {seed} but the last of {count} must be less than 2**32")
    return problems


def _check_parts(config: ConfigDict) -> list[str]:
    """Asks the optimizers, the model registry and the data sets whether they know the names."""
    from cifar_jax import datasets, models, optim  # only here: they bring JAX

    problems = optim.find_problems(config.optimizer)
    model = config.model.to_dict()
    for ask in (
        lambda: models.create(model.pop("name"), num_classes=10, **model),
        lambda: datasets.check_name(config.data.name, config.data.data_dir),
    ):
        try:
            ask()
        except UserError as error:
            problems.append(str(error))
    return problems


def to_json(config: ConfigDict) -> dict[str, Any]:
    """Returns the config as plain JSON values, tuples as lists."""
    return json.loads(json.dumps(config.to_dict()))


def from_json(values: Mapping[str, Any]) -> ConfigDict:
    """Returns the locked config that `to_json` gave these values, in this version or before."""
    whole = copy.deepcopy(dict(values))
    for name, value in _ADDED.items():
        part = whole
        *parts, field = name.split(".")
        for each in parts:
            part = part.setdefault(each, {})
        part.setdefault(field, value)
    return ConfigDict(whole).lock()


def conflicts(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Returns a phrase for each field in which a run may not differ from its earlier part.

    More or fewer epochs are harmless where the rates of the schedule do not depend on the end.

    Args:
      old: the config with which the run began, as `to_json` returns it.
      new: the config with which it is to go on, likewise.
    """
    before, after = ({**_ADDED, **dict(flatten(config))} for config in (old, new))
    harmless: tuple[str, ...] = _HARMLESS
    if after.get("schedule.name") in ("constant", "step"):
        harmless += ("num_epochs", "num_steps")
    return [
        f"{name} was {before.get(name)!r} and is now {after.get(name)!r}"
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name) and not name.startswith(harmless)
    ]
