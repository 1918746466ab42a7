"""The fields of a config by their names, and whether they are those of configs/default.py."""

import difflib
from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from cifar_jax.errors import UserError


def flatten(config: Mapping[str, Any] | ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields (dotted name, value) of every field."""
    for name, value in config.items():
        if isinstance(value, Mapping | ConfigDict):
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def unknown(name: Any, known: Any) -> str:
    """Returns words for a name that is none of the known ones, with the nearest one if any."""
    near = difflib.get_close_matches(str(name), known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"{name!r}, none of {', '.join(known)}{hint}"


def check(config: Any, default: ConfigDict) -> None:
    """Checks what a config file returned; `model` is left to the model's own class.

    Args:
      config: what `get_config` of the file returned, overrides included.
      default: what that of configs/default.py returns.

    Raises:
      UserError: with one line for each field that is missing, unknown or of a wrong type.
    """
    advice = "let get_config() change what configs/default.py returns"
    if not isinstance(config, ConfigDict):
        raise UserError(f"the config is of the type {type(config).__name__}: {advice}")
    given = {name: value for name, value in flatten(config) if not name.startswith("model.")}
    known = {name: value for name, value in flatten(default) if not name.startswith("model.")}
    problems = []
    for name in given.keys() - known.keys():
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]}?" if near else "; see configs/default.py"
        problems.append(f"{name}: there is no such field{hint}")
    problems += [f"{name} is missing: {advice}" for name in known.keys() - given.keys()]
    for name in given.keys() & known.keys():
        wanted = _type(default, name)
        if not _fits(given[name], wanted, known[name] is None):
            problems.append(f"{name} is {given[name]!r} but must be of the type {wanted.__name__}")
    model = config.get("model")
    if not isinstance(model, ConfigDict) or not isinstance(model.get("name"), str):
        problems.append("model.name is missing: config.model = ConfigDict({'name': ...})")
    if problems:
        raise UserError("\n".join(sorted(problems)))


def _type(config: ConfigDict, name: str) -> type:
    *parts, field = name.split(".")
    for part in parts:
        config = config[part]
    return config.get_type(field)


def _fits(value: Any, wanted: type, optional: bool) -> bool:
    if value is None:
        return optional
    if isinstance(value, bool):
        return wanted is bool
    return isinstance(value, (int, float) if wanted is float else wanted)
