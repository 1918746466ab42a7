"""`--mode=compare`: several runs in one table and one picture."""

import csv
import glob
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cifar_jax import files
from cifar_jax.config import fields
from cifar_jax.errors import UserError
from cifar_jax.runs import history
from cifar_jax.runs import workdir as workdir_lib
from cifar_jax.text import format_duration, format_table, printable, short_names, shorten_middle


class Record(NamedTuple):
    """What a run has written so far.

    Attributes:
      config: its fields by their dotted names.
      history: of `history.read_history`.
      result: of result.json; empty while the run is not finished.
    """

    config: dict[str, Any]
    history: list[dict[str, float]]
    result: dict[str, float]


def find(given: Iterable[Path]) -> list[Path]:
    """Returns workdirs, each once; a pattern stands for the folders that it matches.

    Raises:
      UserError: there are none.
    """
    found: dict[str, Path] = {}
    for path in given:
        paths = [path]
        if glob.has_magic(str(path)) and not path.exists():
            paths = [Path(match) for match in sorted(glob.glob(str(path)))]
            paths = [match for match in paths if match.is_dir()]
            if not paths:
                raise UserError(f"{printable(str(path))} matches no folder")
        found |= {os.path.abspath(match): match for match in paths}
    if not found:
        raise UserError("--workdirs is missing: the folders of the runs to compare")
    return list(found.values())


def compare(workdirs: Sequence[Path], output: Path) -> None:
    """Prints how runs did and in what their configs differ; draws their curves.

    The runs may still train. Writes comparison.csv and comparison.png.

    Args:
      workdirs: of the runs, as `find` returns them.
      output: the folder to write to.

    Raises:
      UserError: with a line for each workdir that holds no run or a damaged one; or the folder
        cannot be written.
    """
    records, problems = [], []
    for workdir in workdirs:
        try:
            records.append(read(workdir))
        except UserError as error:
            problems.append(str(error))
    if problems:
        raise UserError("\n".join(problems))
    names = short_names(workdirs)
    rows = table(names, records)
    with files.output_folder(output):
        with (output / "comparison.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows(rows)
        from cifar_jax.reports import plots  # only here: it brings matplotlib

        labels = [shorten_middle(name, 30) for name in names]
        if len(set(labels)) < len(labels):
            labels = names
        histories = dict(zip(labels, (record.history for record in records), strict=True))
        plots.save(plots.plot_curves(histories), output / "comparison.png")
    print(format_table(rows, right=range(1, len(rows[0]))))
    print(f"comparison.csv and comparison.png are in {printable(str(output))}")


def read(workdir: Path) -> Record:
    """Returns what a run has written so far.

    Raises:
      UserError: there is no run, or a file of it is damaged.
    """
    config = dict(fields.flatten(files.read_json(workdir / workdir_lib.CONFIG)))
    result = workdir / workdir_lib.RESULT
    finished = files.read_json(result) if result.exists() else {}
    return Record(config, history.read_history(workdir), history.numbers(finished))


def table(names: Sequence[str], records: Sequence[Record]) -> list[list[str]]:
    """Returns the cells: a column for each run; scores and time, then the fields that differ."""
    rows = [["", *names]]
    rows.append(["state", *["finished" if r.result else "not finished" for r in records]])
    rows += [[words, *[cell(r) for r in records]] for words, cell in _SCORES.items()]
    configs = [record.config for record in records]
    for field in sorted(set().union(*configs)):
        values = [_value(config, field) for config in configs]
        # A field that a run's config does not have is as good as unset.
        if len({"unset" if value == "-" else value for value in values}) > 1:
            rows.append([field, *map(printable, values)])
    return rows


def _value(config: Mapping[str, Any], field: str) -> str:
    if field not in config:
        return "-"
    value = config[field]
    return "unset" if value is None else str(value)


def _last(record: Record, name: str) -> float | None:
    """The last value of a metric in the log."""
    return next((line[name] for line in reversed(record.history) if name in line), None)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.2%}"


def _loss(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _time(value: float | None) -> str:
    return "-" if value is None else format_duration(value)


def _epochs(value: float | None) -> str:
    return "-" if value is None else f"{value:g}"


_SCORES = {
    "epochs": lambda run: _epochs(_last(run, "epoch")),
    "test accuracy": lambda run: _percent(run.result.get("test_accuracy")),
    "test loss": lambda run: _loss(run.result.get("test_loss")),
    "eval accuracy": lambda run: _percent(_last(run, "eval_accuracy")),
    "eval loss": lambda run: _loss(_last(run, "eval_loss")),
    "train accuracy": lambda run: _percent(_last(run, "train_accuracy")),
    "train loss": lambda run: _loss(_last(run, "train_loss")),
    "time": lambda run: _time(run.result.get("wall_seconds", _last(run, "seconds"))),
}
