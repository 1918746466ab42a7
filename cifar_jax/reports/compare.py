"""`--mode=compare`: shows several runs in one table and one picture."""

import glob
import logging
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cifar_jax import files
from cifar_jax.config import fields, stored
from cifar_jax.data.class_folders import name_some
from cifar_jax.errors import UserError
from cifar_jax.reports import statistics
from cifar_jax.runs import history, sources, weights
from cifar_jax.runs.workdir import CONFIG, RESULT
from cifar_jax.text import (
    format_duration,
    format_number,
    format_table,
    printable,
    short_names,
    shorten_middle,
)

_log = logging.getLogger(__name__)
# The rows of the table: their names, the value that they show, and how it is written.
_ROWS = {
    "epochs": ("epoch", format_number),
    "test accuracy": ("test_accuracy", "{:.2%}".format),
    "test loss": ("test_loss", "{:.4f}".format),
    "validation accuracy": ("validation_accuracy", "{:.2%}".format),
    "validation loss": ("validation_loss", "{:.4f}".format),
    "train accuracy": ("train_accuracy", "{:.2%}".format),
    "train loss": ("train_loss", "{:.4f}".format),
    "time": ("seconds", format_duration),
}


class Record(NamedTuple):
    """What a run has written so far.

    Attributes:
      config: its fields by their dotted names.
      history: the rows of `history.read_history`.
      finished: whether the run has written its result.
      values: the last value of each number in the log, and the numbers of the result.
      split: what it was scored on while it trained: "validation" or "test".
    """

    config: dict[str, Any]
    history: list[dict[str, float]]
    finished: bool
    values: dict[str, float]
    split: str


def read_files(workdir: Path) -> tuple[dict[str, Any], dict[str, float]]:
    """Returns the fields of a run's config and the numbers of its result; {} if it is unfinished.

    Raises:
      UserError: there is no run, or one of these files is damaged.
    """
    path = workdir / RESULT
    return read_run_config(workdir), _read_result(path) if path.exists() else {}


def read_run_config(workdir: Path) -> dict[str, Any]:
    """Returns the fields of a run's config by their dotted names.

    Raises:
      UserError: there is no run, or the file is damaged or that of another program.
    """
    values = files.read_json(workdir / CONFIG)
    if fault := stored.find_fault(values):
        raise UserError(f"{workdir / CONFIG} is not the config of a run: {fault}")
    return dict(fields.flatten(values))


def _read_result(path: Path) -> dict[str, float]:
    result = files.read_json(path)
    seeds = result.get("seeds", [])
    every = [result, *(seeds if isinstance(seeds, list) else [None])]
    if not all(isinstance(x, Mapping) and "test_accuracy" in history.numbers(x) for x in every):
        raise UserError(f"{path} is damaged: it does not hold the test accuracy of each seed")
    return history.numbers(result)


def find_workdirs(
    given: Iterable[Path], from_shell: bool = False, check: Callable[[Path], Any] = read_files
) -> list[Path]:
    """Returns workdirs, each once; a pattern stands for the folders that it matches.

    What a pattern matches and is not a run, or a damaged one, is passed over, which the log says.

    Args:
      given: paths and patterns.
      from_shell: whether the paths may be what a shell has made of a pattern.
      check: raises UserError for the folder of a damaged run.

    Raises:
      UserError: there are none.
    """
    found: dict[str, Path] = {}
    others: list[str] = []
    damaged: dict[str, None] = {}
    for path in given:
        paths = [path]
        if is_pattern := glob.has_magic(str(path)) and not os.path.lexists(path):
            paths = [Path(match) for match in sorted(files.find_matches(str(path)))]
            if not any(match.is_dir() for match in paths):
                raise UserError(f"{printable(str(path))} matches no folder")
        for match in paths:
            if is_pattern or (from_shell and os.path.lexists(match)):
                if not (match / CONFIG).is_file():
                    others.append(str(match))
                    continue
                try:
                    check(match)
                except UserError as error:
                    damaged[f"{printable(str(error))}: passed over"] = None
                    continue
            found[os.path.abspath(match)] = match
    if others:
        damaged[f"not the folder of a run, and passed over: {name_some(others)}"] = None
    if damaged and not found:
        raise UserError("\n".join(damaged))
    for line in damaged:
        _log.warning("%s", line)
    if not found:
        raise UserError("--workdirs is missing: name the folders of the runs to compare")
    return list(found.values())


def compare_runs(workdirs: Sequence[Path], output: Path) -> dict[str, Record]:
    """Prints the results of runs and how their configs differ; draws their curves.

    The runs need not be finished. Writes comparison.csv and comparison.png.

    Args:
      workdirs: the folders of the runs, as `find_workdirs` returns them.
      output: the folder to write to.

    Returns:
      What each run has written, by its shortest name.

    Raises:
      UserError: a workdir holds no run or a damaged one (with a line for each), or the output
        folder cannot be written.
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
    rows = tabulate_runs(names, records)
    with files.output_folder(output):
        files.write_csv(output / "comparison.csv", rows)
        from cifar_jax.reports import plots  # imported late, because it imports matplotlib
        from cifar_jax.reports.style import save_figure

        labels = [shorten_middle(name, 30) for name in names]
        if len(set(labels)) < len(labels):
            labels = names
        histories = dict(zip(labels, (record.history for record in records), strict=True))
        splits = sorted({record.split for record in records})
        figure = plots.plot_curves(histories, split=" or ".join(splits))
        save_figure(figure, output / "comparison.png")
    print(format_table(rows, right=range(1, len(rows[0]))))
    for words in statistics.describe_groups(statistics.group_runs(names, workdirs)):
        print(words)
    single = [record.finished and record.config.get("num_seeds", 1) == 1 for record in records]
    if single == [True, True]:
        print(statistics.describe_pair(names, workdirs))
    print(f"comparison.csv and comparison.png are in {printable(str(output))}")
    return dict(zip(names, records, strict=True))


def read(workdir: Path) -> Record:
    """Returns what a run has written so far.

    Raises:
      UserError: there is no run, or one of its files is damaged.
    """
    config, result = read_files(workdir)
    rows = history.read_history(workdir)
    split = weights.evaluated_split(workdir)
    for field, source in sources.read_record(workdir).items():
        config[f"{field} (SHA-256)"] = source.get("sha256", "")[:12]
    values = {
        name.replace("eval_", f"{split}_", 1): value
        for row in [*rows, *history.whole_lines(rows)[-1:]]
        for name, value in row.items()
    } | result
    values["seconds"] = values.get("wall_seconds", values.get("seconds", math.nan))
    return Record(config, rows, bool(result), values, split)


def tabulate_runs(names: Sequence[str], records: Sequence[Record]) -> list[list[str]]:
    """Returns the cells: a column for each run; scores and time, then the fields that differ."""
    rows = [["", *names]]
    rows.append(["state", *["finished" if r.finished else "not finished" for r in records]])
    for label, (name, write) in _ROWS.items():
        if any(name in record.values for record in records):
            cells = [write(r.values[name]) if name in r.values else "-" for r in records]
            rows.append([label, *cells])
    for field in sorted(set().union(*(record.config for record in records))):
        values = [record.config.get(field, "-") for record in records]
        cells = ["unset" if value is None else printable(str(value)) for value in values]
        # A field that a run's config lacks counts as unset.
        if len({"unset" if cell == "-" else cell for cell in cells}) > 1:
            rows.append([field, *cells])
    return rows
