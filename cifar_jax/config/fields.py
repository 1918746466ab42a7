"""The fields of a config: their names and types, compared with configs/default.py."""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_flags import config_path

from cifar_jax.errors import UserError

# Options that are passed to the optimizer's function if they are set. To offer another one of
# optax's, add it here, which gives `optimizer` and every group the field, and its range to
# config/rules.py.
OPTIMIZER_OPTIONS: dict[str, type] = {
    "momentum": float,
    "nesterov": bool,
    "b1": float,
    "b2": float,
    "b3": float,
    "eps": float,
}
# The fields of each group in `optimizer.groups`; all but the first may be unset.
GROUP_FIELDS: dict[str, type] = {
    "params": str,
    "name": str,
    "learning_rate": float,
    **OPTIMIZER_OPTIONS,
    "weight_decay": float,
    "decay_norm_and_bias": bool,
    "decoupled_decay": bool,
    "num_epochs": float,
}
# What None means in a field that is no placeholder: the value that turns it off, which is 0, False,
# "" or () where that is the default, and else one of these. No other field can be off.
_OFF: dict[str, Any] = {
    "eval_every_epochs": 0.0,
    "checkpoint.every_epochs": 0.0,
    "log.tensorboard": False,
    "log.report": False,
    "optimizer.learning_rate_scaling": "none",
    "schedule.name": "constant",
    "test_time.views": "plain",
}
_ALWAYS_ON = ("seed", "data.name")
# Parts of a config that have no fixed fields.
OPEN = ("model.", "optimizer.groups.")


def flatten(config: Mapping[str, Any] | ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields (dotted name, value) of every field."""
    for name, value in config.items():
        if isinstance(value, Mapping | ConfigDict):
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def turn_off(config: ConfigDict, default: ConfigDict) -> None:
    """Gives each field that is None, and no placeholder, the value that turns it off.

    `num_epochs` may be None where `num_steps` counts. Where nothing can be off, None stays.

    Args:
      config: is changed in place.
      default: what `get_config` of configs/default.py returns.
    """
    given = dict(flatten(config))
    for name, usual in flatten(default):
        # (None,) is what the command line makes of None for a tuple.
        if usual is None or given.get(name, "") not in (None, (None,)):
            continue
        if name == "num_epochs" and given.get("num_steps") is not None:
            config.num_epochs = usual
        elif name in _OFF or (not usual and name not in _ALWAYS_ON):
            config.update_from_flattened_dict({name: _OFF.get(name, usual)})


def ignored_durations(fields: Mapping[str, Any]) -> list[str]:
    """Returns the names of the durations in epochs for which those in steps are set.

    Args:
      fields: a config by the dotted names of its fields.
    """
    names = (name for name in fields if name.endswith("_epochs"))
    return [x for x in names if fields.get(f"{x.removesuffix('epochs')}steps") is not None]


def unknown(name: Any, known: Any) -> str:
    """Returns a phrase for an unknown name, with the known ones and the nearest of them."""
    lower = {other.lower(): other for other in known}
    near = difflib.get_close_matches(str(name).lower(), lower, n=1)
    hint = f"; did you mean {lower[near[0]]!r}?" if near else ""
    return f"{name!r}, none of {', '.join(known)}{hint}"


def suggest_field(name: str, known: Sequence[str], prefix: str = "") -> str:
    """Returns the end of a message about an unknown field: the one that may have been meant.

    Args:
      name: the unknown field.
      known: the dotted names of the known ones.
      prefix: is written before the suggested field.
    """
    leaves = [field for field in known if field.rpartition(".")[2] == name.rpartition(".")[2]]
    near = leaves or difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {prefix}{near[0]}?" if near else "; see configs/default.py"


def check_fields(config: Any, default: ConfigDict) -> None:
    """Checks the names and types of a config's fields; the model's class checks those of `model`.

    Args:
      config: what `get_config` of the config file returned, overrides included.
      default: what `get_config` of configs/default.py returns.

    Raises:
      UserError: one line for each field that is missing, unknown or of a wrong type.
    """
    advice = "let get_config() change what configs/default.py returns"
    if not isinstance(config, ConfigDict):
        raise UserError(f"the config is of the type {type(config).__name__}: {advice}")
    given = {name: value for name, value in flatten(config) if not name.startswith(OPEN)}
    known = {name: value for name, value in flatten(default) if not name.startswith(OPEN)}
    problems = []
    for name in given.keys() - known.keys():
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]}?" if near else "; see configs/default.py"
        problems.append(f"{name}: there is no such field{hint}")
    problems += [f"{name} is missing: {advice}" for name in known.keys() - given.keys()]
    for name in given.keys() & known.keys():
        wanted = config_path.get_type(name, default)
        if not fits(given[name], wanted, known[name] is None):
            words = f"{name} is {given[name]!r} but must be of the type {wanted.__name__}"
            if given[name] is None:
                words += f": it cannot be off, and the default is {known[name]!r}"
            if (name, given[name]) == ("num_epochs", None):
                words = "num_epochs and num_steps are both None: set the one that counts"
            problems.append(words)
    problems += _check_groups(config)
    model = config.get("model")
    if not isinstance(model, ConfigDict) or not isinstance(model.get("name"), str):
        problems.append("model.name is missing: config.model = ConfigDict({'name': ...})")
    if problems:
        raise UserError("\n".join(sorted(problems)))


def _check_groups(config: ConfigDict) -> Iterator[str]:
    """Yields what is wrong with the fields of `optimizer.groups`."""
    optimizer = config.get("optimizer")
    groups = optimizer.get("groups") if isinstance(optimizer, ConfigDict) else None
    if not isinstance(groups, ConfigDict):
        yield "optimizer.groups is missing: it holds groups of parameters, or none"
        return
    for name, group in groups.items():
        where = f"optimizer.groups.{name}"
        if not isinstance(group, ConfigDict) or set(group) != set(GROUP_FIELDS):
            yield f"{where} must have the fields {', '.join(GROUP_FIELDS)}: see default.get_group()"
            continue
        for field, value in group.items():
            wanted = GROUP_FIELDS[field]
            if not fits(value, wanted, field != "params"):
                yield f"{where}.{field} is {value!r} but must be of the type {wanted.__name__}"


def fits(value: Any, wanted: type, optional: bool) -> bool:
    """Whether a value is of a field's type; an integer is a float too, and None may be allowed."""
    if value is None:
        return optional
    if isinstance(value, bool):
        return wanted in (bool, object)
    return isinstance(value, (int, float) if wanted is float else wanted)
