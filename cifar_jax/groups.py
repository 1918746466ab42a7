"""Groups of parameters that are trained in a way of their own: `optimizer.groups` of a config."""

import re
from collections.abc import Mapping
from typing import Any

import jax
from ml_collections import ConfigDict

from cifar_jax.errors import UserError
from cifar_jax.fields import GROUP_FIELDS

# The label of the parameters that are in no group.
REST = "rest"
# What belongs to the optimizer's name: a group with a name of its own does not take these over.
_OF_THE_NAME = ("momentum", "nesterov", "b1", "b2")


def resolve(optimizer: ConfigDict) -> dict[str, ConfigDict]:
    """Returns each group with what it leaves unset taken over from `optimizer`, by its name."""
    resolved = {}
    for name, group in optimizer.groups.items():
        values = {field: group[field] for field in GROUP_FIELDS}
        for field, value in values.items():
            own = field in _OF_THE_NAME and group.name is not None
            if value is None and field in optimizer and not own:
                values[field] = optimizer[field]
        resolved[name] = ConfigDict(values)
    return resolved


def label(params: Any, patterns: Mapping[str, str]) -> Any:
    """Returns a tree of the names of the groups in which the parameters are, `REST` for none.

    Args:
      params: a tree; a parameter is called by its path, such as "group_0/Conv_0/kernel".
      patterns: regular expressions for the whole path, by the groups' names.

    Raises:
      UserError: a parameter matches two groups, or a group has none.
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


def find_problems(name: str, pattern: str) -> list[str]:
    """Returns what is wrong with the name and the pattern of a group, in words."""
    if not name.isidentifier() or name == REST:
        return [f"optimizer.groups.{name} must be called by a word other than {REST}"]
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        return [f"optimizer.groups.{name}.params is {pattern!r}, no regular expression: {error}"]
    return []
