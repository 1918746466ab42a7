"""The space of a search: which fields of a config vary, and between what. Imports no Optuna."""

import itertools
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict
from ml_collections.config_flags import config_path

from cifar_jax.config import stored
from cifar_jax.config.fields import flatten, unknown
from cifar_jax.errors import UserError
from cifar_jax.studies.training import change_config
from cifar_jax.text import printable
from cifar_jax.training import check

_FORM = "NAME=log(LOW,HIGH), float(LOW,HIGH), int(LOW,HIGH) or choice(A,B,...)"
# Each kind with the types of the fields that it can be given for.
_KINDS = {"log": (float,), "float": (float,), "int": (int, float), "choice": ()}
# They say what is compared, not what is tried.
_FIXED = ("seed", "num_seeds", "data.")
_MOST_COMBINATIONS = 200
_WORDS = {"true": True, "false": False, "none": None}


class Parameter(NamedTuple):
    """A field that varies.

    Attributes:
      name: its dotted name.
      kind: "log", "float", "int" or "choice".
      values: the lowest and the highest value; for "choice", all values.
    """

    name: str
    kind: str
    values: tuple[Any, ...]

    def holds(self, value: Any) -> bool:
        """Whether a value is in the parameter's range."""
        if self.kind == "choice":
            return value in self.values
        return isinstance(value, int | float) and self.values[0] <= value <= self.values[1]


def parse_space(texts: Sequence[str], config: ConfigDict) -> list[Parameter]:
    """Returns the parameters of a space.

    Args:
      texts: such as "optimizer.learning_rate=log(1e-4,1e-1)".
      config: the checked config whose fields vary.

    Raises:
      UserError: a line for each text that is wrong; or the space holds a config that is wrong.
    """
    if not texts:
        raise UserError(f"--space is missing: give {_FORM}, each in quotes")
    space, problems = [], []
    for text in texts:
        try:
            space.append(_parse(text, config))
        except UserError as error:
            problems.append(f"--space {printable(text)}: {error}")
    names = [parameter.name for parameter in space]
    problems += [f"--space has {x} twice" for x in sorted(set(names)) if names.count(x) > 1]
    if problems:
        raise UserError("\n".join(problems))
    for values in _corners(space):
        _check(config, values)
    return space


def _parse(text: str, config: ConfigDict) -> Parameter:
    if text.startswith("-"):
        raise UserError("flags come before --space")
    if not (match := re.fullmatch(r"([\w.]+)=(\w+)\((.*)\)", text.strip())):
        raise UserError(f"give {_FORM}")
    name, kind, inside = match.groups()
    known = dict(flatten(config))
    if name not in known:
        raise UserError(
            f"there is no field {unknown(name, known).partition(', none of ')[0]}"
            f"{_hint(name, known)}"
        )
    if name.startswith((*_FIXED, *stored.HARMLESS)):
        raise UserError(
            "a search cannot vary this field, which does not change how well a run learns"
        )
    if kind not in _KINDS:
        raise UserError(f"{unknown(kind, _KINDS)}")
    wanted = config_path.get_type(name, config)
    words = [word.strip() for word in inside.split(",")]
    if kind == "choice":
        values = tuple(_convert(word, wanted) for word in words)
        if len(set(values)) < max(2, len(values)):
            raise UserError("give at least two values, each once")
        return Parameter(name, kind, values)
    if wanted not in _KINDS[kind]:
        fitting = [x for x, kinds in _KINDS.items() if wanted in kinds] + ["choice"]
        raise UserError(f"the field is of the type {wanted.__name__}: use {' or '.join(fitting)}")
    if len(words) != 2:
        raise UserError(f"give {kind}(LOW,HIGH)")
    low, high = (_convert(word, int if kind == "int" else float) for word in words)
    if not low < high:
        raise UserError(f"{low} is not less than {high}")
    if kind == "log" and low <= 0:
        raise UserError(f"{low} has no logarithm: give numbers greater than 0")
    return Parameter(name, kind, (low, high))


def _hint(name: str, known: dict[str, Any]) -> str:
    _, marker, near = unknown(name, known).partition("; did you mean")
    leaves = [field for field in known if field.rpartition(".")[2] == name.rpartition(".")[2]]
    if leaves:
        return f"; did you mean {leaves[0]}?"
    return f"{marker}{near}" if marker else "; see configs/default.py"


def _convert(word: str, wanted: type) -> Any:
    """Returns a word as a value for a field of a type."""
    if not word:
        raise UserError("a value is missing")
    if word.lower() in _WORDS and wanted is not str:
        return _WORDS[word.lower()]
    try:
        if wanted in (int, float, str):
            value = wanted(word.strip("'\""))
            if not isinstance(value, float) or math.isfinite(value):
                return value
        elif wanted is not bool:
            raise UserError(f"a search cannot vary a field of the type {wanted.__name__}")
    except ValueError:
        pass
    raise UserError(f"{word!r} is not of the type {wanted.__name__}, or not finite")


def _corners(space: Sequence[Parameter]) -> Iterator[dict[str, Any]]:
    """Yields the lowest and the highest values with each combination of choices, up to a number."""
    sets = [x.values if x.kind == "choice" else (None,) for x in space]
    for chosen in itertools.islice(itertools.product(*sets), _MOST_COMBINATIONS):
        for end in (0, 1):
            pairs = zip(space, chosen, strict=True)
            yield {x.name: own if x.kind == "choice" else x.values[end] for x, own in pairs}


def _check(config: ConfigDict, values: dict[str, Any]) -> None:
    """Raises UserError if a config with these values is wrong."""
    try:
        check.check_config(change_config(config, values))
    except (UserError, TypeError, ValueError) as error:
        given = ", ".join(f"{name}={value}" for name, value in values.items())
        lines = [f"--space holds a wrong config ({given}): {x}" for x in str(error).splitlines()]
        raise UserError("\n".join(lines)) from error
