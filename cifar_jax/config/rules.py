"""What the values of a config must satisfy."""

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from cifar_jax.config.fields import flatten, ignored_durations, unknown

SCHEDULES = ("constant", "step", "cosine", "linear", "one_cycle")
DTYPES = ("float32", "bfloat16")
SCALINGS = ("none", "linear", "sqrt")
PLACEMENTS = ("auto", "device", "host")
MOST_SEEDS = 1024
VIEWS = ("plain", "mirror", "mirror_shift")

# (fields, what their values must satisfy, a test for it). Unset fields are skipped. A rule for a
# field of `optimizer` applies to its groups too; optimizer.num_epochs is a field of groups only.
_RULES = (
    (
        (
            *("num_epochs", "num_steps", "num_seeds", "batch_size", "eval_batch_size"),
            *("num_cpu_devices", "steps_per_call", "optimizer.learning_rate", "optimizer.eps"),
            *("optimizer.accumulation_steps", "optimizer.base_batch_size", "optimizer.num_epochs"),
            *("schedule.factor", "test_time.confidence_threshold"),
            *("data.image_size", "data.test_fraction"),
        ),
        "must be greater than 0",
        lambda value: value > 0,
    ),
    (
        (
            *("seed", "data.seed", "data.validation_examples", "data.validation_fold"),
            "data.max_broken",
            *("augment.crop_padding", "augment.cutout"),
            *("augment.brightness", "augment.contrast", "augment.saturation", "augment.hue"),
            *("augment.rand_augment_ops", "augment.rand_augment_magnitude"),
            *("augment.mixup_alpha", "augment.cutmix_alpha", "optimizer.weight_decay"),
            *(
                "optimizer.clip_norm",
                "optimizer.sam_radius",
                "schedule.warmup_epochs",
                "schedule.warmup_steps",
            ),
            *("schedule.final_fraction", "eval_every_epochs", "eval_every_steps"),
            *("checkpoint.every_epochs", "checkpoint.every_steps"),
            *("log.every_steps", "log.profile_steps", "log.profile_start"),
        ),
        "must not be negative",
        lambda value: value >= 0,
    ),
    (
        (
            *("data.label_noise", "loss.label_smoothing", "ema_decay", "optimizer.momentum"),
            *("optimizer.b1", "optimizer.b2", "optimizer.b3"),
        ),
        "must be at least 0 and less than 1",
        # As a float32, which rounds 0.99999999 to 1.
        lambda value: 0 <= np.float32(value) < 1,
    ),
    (
        ("schedule.final_fraction", "test_time.confidence_threshold"),
        "must be at most 1",
        lambda value: value <= 1,
    ),
    (("data.image_size",), "must be at most 1024", lambda value: value <= 1024),
    (("data.channels",), "must be 1, 3 or 4", lambda value: value in (1, 3, 4)),
    (("data.test_fraction",), "must be less than 1", lambda value: value < 1),
    (("augment.hue",), "must be at most 0.5", lambda value: value <= 0.5),
    (("augment.rand_augment_magnitude",), "must be at most 30", lambda value: value <= 30),
    (("augment.rand_augment_ops",), "must be at most 16", lambda value: value <= 16),
    (("num_cpu_devices",), "must be at most 256", lambda value: value <= 256),
    (("num_seeds",), f"must be at most {MOST_SEEDS}", lambda value: value <= MOST_SEEDS),
    (("seed", "data.seed"), "must be less than 2**32", lambda value: value < 2**32),
)
# The largest float32, and the largest int32, which counts the steps.
MOST_FLOAT, _MOST_INT = 3.4e38, 2**31 - 1
_SEEDS = ("seed", "data.seed")
# XLA counts smaller numbers as 0.
LEAST_FLOAT = 1.2e-38

# The fields whose values have names, and these.
CHOICES = {
    "dtype": DTYPES,
    "data.placement": PLACEMENTS,
    "optimizer.learning_rate_scaling": SCALINGS,
    "schedule.name": SCHEDULES,
    "test_time.views": VIEWS,
}


def find_problems(config: ConfigDict) -> list[str]:
    """Returns a line for each value that is out of range or does not fit the others."""
    fields = dict(flatten(config))
    outside = dict(_out_of_range(fields))
    for name in ignored_durations(fields):
        del fields[name]
        if name in outside:
            outside[name] += ": leave it out, since the one in steps counts"
    problems = [f"{name} is {words}" for name, words in outside.items()]
    for names, words, holds in _RULES:
        for name in _with_groups(names, fields):
            value = fields[name]
            if value is not None and name not in outside and not holds(value):
                problems.append(f"{name} is {value} but {words}")
    for name, known in CHOICES.items():
        if fields[name] not in known:
            problems.append(f"{name} is {unknown(fields[name], known)}")
    problems += _check_milestones(fields["schedule.milestones"])
    problems += _check_class_weights(fields["loss.class_weights"])
    if fields["data.path"] and fields["data.name"] != "folder":
        words = "set --config.data.name=folder too, or leave it out"
        problems.append(f"data.path is set but data.name is {fields['data.name']!r}: {words}")
    if fields["augment.flip"] and fields["augment.alternating_flip"]:
        problems.append("augment.flip and augment.alternating_flip are both on: choose one")
    rest = fields["batch_size"]
    for name in ("optimizer.accumulation_steps", "num_cpu_devices"):
        if (parts := fields[name]) and parts > 0 and rest > 0 and name not in outside:
            if rest % parts:
                problems.append(f"batch_size {rest} is not a multiple of {name} {parts}")
            rest //= parts
    views = fields["test_time.views"]
    if fields["test_time.confidence_threshold"] is not None and views != "mirror_shift":
        words = f"test_time.views is {views!r}: only 'mirror_shift' has shifted views to skip"
        problems.append(f"test_time.confidence_threshold is set but {words}")
    return problems + _check_seeds(fields)


def _with_groups(names: Iterable[str], fields: Mapping[str, Any]) -> list[str]:
    """Returns the names that a config has, and those of the groups for fields of `optimizer`."""
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
            elif isinstance(number, float) and abs(number) > MOST_FLOAT:
                yield name, f"{number}, more than a float32 can hold"
            elif isinstance(number, float) and 0 < abs(number) < LEAST_FLOAT:
                yield name, f"{number}, which is 0 in float32"
            elif isinstance(number, int) and abs(number) > _MOST_INT and name not in _SEEDS:
                yield name, "not within 2**31"


def _check_milestones(milestones: Any) -> list[str]:
    if not all(isinstance(epoch, int | float) for epoch in milestones):
        return [f"schedule.milestones is {milestones} but must hold epochs, as numbers"]
    if any(epoch <= 0 for epoch in milestones) or list(milestones) != sorted(set(milestones)):
        return [f"schedule.milestones is {milestones} but must be ascending and positive"]
    return []


def _check_class_weights(weights: Any) -> list[str]:
    if weights is None or weights == "balanced":
        return []
    numbers = weights if isinstance(weights, tuple | list) else ()
    plain = all(isinstance(x, int | float) and not isinstance(x, bool) for x in numbers)
    if plain and any(numbers) and not any(x < 0 for x in numbers):
        return []
    words = "must be 'balanced' or a tuple with a number for each class, none of them negative"
    return [f"loss.class_weights is {weights!r} but {words}"]


def _check_seeds(fields: Mapping[str, Any]) -> list[str]:
    seed, count = fields["seed"], fields["num_seeds"]
    problems: list[str] = []
    if not 1 < count <= MOST_SEEDS:
        return problems
    for name in ("data.validation_examples", "data.label_noise"):
        if fields[name] and fields["data.seed"] is None:
            words = "set data.seed, by which all seeds choose the same images"
            problems.append(f"num_seeds is {count} and {name} {fields[name]}: {words}")
    if 0 <= seed < 2**32 < seed + count:
        problems.append(f"seed is {seed} but the last of {count} must be less than 2**32")
    return problems
