"""Reading and rewinding a run's metrics.jsonl."""

import itertools
import json
import logging
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cifar_jax import files
from cifar_jax.config.rules import MOST_FLOAT
from cifar_jax.errors import UserError
from cifar_jax.runs import workdir as workdir_lib

_log = logging.getLogger(__name__)


def rewind(path: Path, step: int) -> None:
    """Deletes the lines of a metrics.jsonl past a step, and lines that cannot be read."""
    try:
        kept = [line for line in read_lines(path) if line["step"] <= step]
    except FileNotFoundError:
        return
    files.write_text(path, "".join(json.dumps(line) + "\n" for line in kept))


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Returns the objects in a metrics.jsonl that have a step and an epoch.

    A line that cannot be read is skipped with a warning.

    Raises:
      OSError: the file cannot be read.
    """
    lines = []
    texts = path.read_bytes().splitlines()
    for number, text in enumerate(texts, start=1):
        try:
            line = json.loads(text)
            if type(line["step"]) is not int or not {"step", "epoch"} <= numbers(line).keys():
                raise TypeError
            if not math.isfinite(line["epoch"]):
                raise TypeError
            lines.append(line)
        except (ValueError, TypeError, KeyError, RecursionError):
            state = "damaged" if number < len(texts) else "incomplete"
            _log.warning("line %d of %s is %s and skipped", number, path, state)
    return lines


def read_history(workdir: Path) -> list[dict[str, float]]:
    """Returns the numbers that a run has logged so far, one dict per line.

    The lines of several seeds are merged into their mean, with the lowest and highest values of
    each metric as NAME_low and NAME_high.

    Raises:
      UserError: the log cannot be read.
    """
    path = workdir / workdir_lib.METRICS
    try:
        lines = [numbers(line) for line in read_lines(path)]
    except (FileNotFoundError, NotADirectoryError):
        lines = []
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    return [
        row
        for _, group in itertools.groupby(lines, key=lambda line: (line["step"], "seed" in line))
        for row in _merge(list(group))
    ]


def _merge(lines: list[dict[str, float]]) -> list[dict[str, float]]:
    if "seed" not in lines[0]:
        return lines
    edges = {
        f"{name}_{edge}": choose(line[name] for line in lines if name in line)
        for name in lines[0]
        if name.startswith(("train_", "eval_"))
        for edge, choose in (("low", min), ("high", max))
    }
    return [average(lines) | edges]


def whole_lines(lines: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Returns the lines at which an epoch or an evaluation ends.

    Their training metrics are the means over all steps since the one before.

    Args:
      lines: of one run and one seed, in order.
    """
    found, part, step = [], [], 0
    for line in lines:
        part.append((line["step"] - step, line))
        step = line["step"]
        if "seconds" not in line and "eval_loss" not in line:
            continue
        means = {}
        for name in line if len(part) > 1 else ():
            if name.startswith("train_"):
                pairs = [(count, own[name]) for count, own in part if name in own]
                means[name] = sum(count * x for count, x in pairs) / sum(n for n, _ in pairs)
        found.append({**line, **means})
        part = []
    return found


def average(lines: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Returns the mean of each number over the seeds; a single line unchanged."""
    every = [numbers(line) for line in lines]
    if len(every) == 1 and "seed" not in every[0]:
        return every[0]
    names = dict.fromkeys(name for line in every for name in line if name != "seed")
    means = {name: statistics.fmean(x[name] for x in every if name in x) for name in names}
    return means | {"step": every[0]["step"]}


def numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """Returns the values that are numbers, infinite ones and nan too, which a float32 holds."""
    return {
        name: value
        for name, value in values.items()
        if isinstance(value, int | float) and type(value) is not bool
        if abs(value) <= MOST_FLOAT or (isinstance(value, float) and not math.isfinite(value))
    }
