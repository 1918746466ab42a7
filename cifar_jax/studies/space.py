"""The space of a search: which fields of a config vary, and between what. Imports no Optuna."""

import ast
import itertools
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict
from ml_collections.config_flags import config_path

from cifar_jax.config import stored
from cifar_jax.config.fields import flatten, suggest_field, unknown
from cifar_jax.errors import UserError
from cifar_jax.evaluation import trained
from cifar_jax.models import registry
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
        try:
            apply_values(config, values)
        except UserError as error:
            given = ", ".join(f"{name}={value}" for name, value in values.items())
            words = f"--space holds a wrong config ({given})"
            lines = [f"{words}: {line}" for line in str(error).splitlines()]
            raise UserError("\n".join(lines)) from error
    return space


def apply_values(config: ConfigDict, values: dict[str, Any]) -> ConfigDict:
    """Returns the config with other values, given by dotted names.

    Raises:
      UserError: it is wrong; there is a line for each mistake.
    """
    try:
        changed = change_config(config, values)
        check.check_config(changed)
    except (TypeError, ValueError) as error:
        raise UserError(str(error)) from error
    return changed


def write_parameter(parameter: Parameter) -> str:
    """Returns the text for a parameter with which a study remembers it."""
    return f"{parameter.name}={parameter.kind}{parameter.values}"


def read_parameter(text: str) -> Parameter:
    """Returns the parameter for what `write_parameter` returned."""
    name, _, rest = text.partition("=")
    kind, _, values = rest.partition("(")
    return Parameter(name, kind, ast.literal_eval(f"({values}"))


def is_same(texts: Sequence[str], others: Sequence[str]) -> bool:
    """Whether two spaces, as `write_parameter` writes them, differ in nothing but their order."""

    def plain(space: Sequence[str]) -> list[Any]:
        every = map(read_parameter, space)
        return sorted(
            (name, kind, sorted(map(repr, values)) if kind == "choice" else list(map(repr, values)))
            for name, kind, values in every
        )

    return plain(texts) == plain(others)


def _parse(text: str, config: ConfigDict) -> Parameter:
    if text.startswith("-"):
        raise UserError("flags come before --space")
    if not (match := re.fullmatch(r"([\w.]+)=(\w+)\((.*)\)", text.strip())):
        raise UserError(f"give {_FORM}")
    name, kind, inside = match.groups()
    known = dict(flatten(config))
    if name not in known:
        if name.startswith("model."):
            registry.find_default(config.model.name, name.removeprefix("model."))
            raise UserError(f"the config does not set this option: set it too, --config.{name}=...")
        raise UserError(f"there is no field {name!r}{suggest_field(name, list(known))}")
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
        if name == "init_from":
            for value in filter(None, values):
                trained.check_run(Path(value))
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


def _convert(word: str, wanted: type) -> Any:
    """Returns a word as a value for a field of a type."""
    if not word:
        raise UserError("a value is missing")
    if word.lower() in _WORDS and wanted is not str:
        return _WORDS[word.lower()]
    try:
        kind = str if wanted is object else wanted  # what else it may be, cannot be written
        if kind in (int, float, str):
            value = kind(word.strip("'\""))
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
