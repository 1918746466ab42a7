"""Groups of parameters with an optimizer of their own: `optimizer.groups` of a config."""

import re
from collections.abc import Mapping
from typing import Any

import jax
from ml_collections import ConfigDict

from cifar_jax.config.fields import GROUP_FIELDS, OPTIMIZER_OPTIONS
from cifar_jax.errors import UserError

# The label of the parameters that are in no group.
REST = "rest"


def resolve_groups(optimizer: ConfigDict) -> dict[str, ConfigDict]:
    """Returns each group by its name, with its unset fields taken from `optimizer`.

    A group with an optimizer of its own does not take over the options of another one.
    """
    resolved = {}
    for name, group in optimizer.groups.items():
        values = {field: group[field] for field in GROUP_FIELDS}
        for field, value in values.items():
            own = field in OPTIMIZER_OPTIONS and group.name is not None
            if value is None and field in optimizer and not own:
                values[field] = optimizer[field]
        resolved[name] = ConfigDict(values)
    return resolved


def label(params: Any, patterns: Mapping[str, str]) -> Any:
    """Returns a tree with the name of each parameter's group, `REST` for none.

    Args:
      params: a tree; a parameter's name is its path, such as "group_0/Conv_0/kernel".
      patterns: regular expressions for the whole path, by the groups' names.

    Raises:
      UserError: a parameter matches two groups, or a group matches none.
    """

    def find(path: Any, _: Any) -> str:
        place = _join(path)
        found = [name for name in patterns if re.fullmatch(patterns[name], place)]
        if len(found) > 1:
            raise UserError(
                f"the parameter {place} is in two of optimizer.groups, {' and '.join(found)}: make "
                "their params narrower"
            )
        return found[0] if found else REST

    labels = jax.tree_util.tree_map_with_path(find, params)
    for name in patterns.keys() - set(jax.tree.leaves(labels)):
        paths = ", ".join(_join(path) for path, _ in jax.tree.leaves_with_path(params))
        raise UserError(
            f"optimizer.groups.{name}.params is {patterns[name]!r}, which matches none of {paths}"
        )
    return labels


def _join(path: Any) -> str:
    return "/".join(key.key for key in path)


def find_group_problems(name: str, pattern: str) -> list[str]:
    """Returns what is wrong with the name and the pattern of a group."""
    if not name.isidentifier() or name == REST:
        return [f"optimizer.groups.{name} must be called by a word other than {REST}"]
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        return [f"optimizer.groups.{name}.params is {pattern!r}, not a regular expression: {error}"]
    return []
