"""What describes a checkpoint or a file of weights, read by a schema. Imports no JAX.

The sums of a file say that it is what was written, not that what was written makes sense.
"""

from collections.abc import Mapping
from typing import Any

from cifar_jax.config import stored


def find_meta_fault(meta: Mapping[str, Any], step: int | None = None) -> str:
    """Returns what is wrong with a description, "" if nothing is.

    A part that is missing is no fault: earlier versions wrote fewer.

    Args:
      meta: the JSON values that `Checkpoints.save` or `write_weights` was given.
      step: the one in the name of the checkpoint's folder.
    """
    config = meta.get("config")
    if "config" in meta and (fault := stored.find_fault(config)):
        return fault
    if "data" in meta and (name := _find_wrong(meta["data"])):
        return f"its data have a wrong {name}"
    if "temperature" in meta and not _is_number(meta["temperature"], above=0):
        return f"its temperature is {meta['temperature']!r}"
    num_seeds = config.get("num_seeds", 1) if isinstance(config, Mapping) else 1
    if "progress" in meta and not _is_progress(meta["progress"], num_seeds):
        return "its progress cannot be read"
    held = meta["progress"]["step"] if "progress" in meta else step
    return f"it is the checkpoint of step {held}" if step not in (held, None) else ""


def _is_number(value: Any, above: float | None = None) -> bool:
    """Whether a value is a number that a float64 holds with room to spare, 0 or more."""
    if type(value) not in (int, float) or not 0 <= value < 1e300:  # NaN is neither
        return False
    return above is None or value > above


def _find_wrong(data: Any) -> str:
    """Returns the name of a part of the data's description that is wrong, "" if none is."""

    def is_list(values: Any, kind: type) -> bool:
        return isinstance(values, list) and all(type(value) is kind for value in values)

    def has_channels(values: Any, above: float | None = None) -> bool:
        fitting = isinstance(values, list) and len(values) == data["image_shape"][2]
        return fitting and all(_is_number(value, above) for value in values)

    def is_by_split(values: Any, kind: type) -> bool:
        return isinstance(values, Mapping) and is_list(list(values.values()), kind)

    if not isinstance(data, Mapping):
        return "description"
    shape: Any = data.get("image_shape")
    names: Any = data.get("class_names")
    labels = data.get("labels_sha256", "")
    found = {
        "image_shape": is_list(shape, int) and len(shape) == 3 and min(shape) > 0,
        "class_names": is_list(names, str) and len(names) > 0,
        "num_images": is_by_split(data.get("num_images", {}), int),
        "labels_sha256": isinstance(labels, str) or is_by_split(labels, str),
    }
    if all(found.values()):
        found |= {"mean": has_channels(data.get("mean")), "std": has_channels(data.get("std"), 0)}
    return next((name for name, holds in found.items() if not holds), "")


def _is_progress(progress: Any, num_seeds: int) -> bool:
    """Whether JSON values are a run's progress, as `Progress.saved` returns it."""

    def is_total(value: Any) -> bool:
        if isinstance(value, list):
            return len(value) == num_seeds and all(map(_is_number, value))
        return num_seeds == 1 and _is_number(value)

    def is_sums(sums: Any) -> bool:
        return (
            isinstance(sums, Mapping)
            and set(sums) in (set(), {"loss", "accuracy"})
            and all(isinstance(x, list) and len(x) == 2 for x in sums.values())
            and all(is_total(part) for x in sums.values() for part in x)
        )

    return (
        isinstance(progress, Mapping)
        and type(progress.get("step")) is int
        and _is_number(progress["step"])
        and _is_number(progress.get("seconds"))
        and _is_number(progress.get("stepping"))
        and is_sums(progress.get("sums"))
        and is_sums(progress.get("recent", {}))  # earlier versions have none
    )
