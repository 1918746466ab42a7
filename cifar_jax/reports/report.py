"""`--mode=report`: draws what a run has learned, and shows it on a page."""

import itertools
import logging
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cifar_jax import files
from cifar_jax.config.fields import flatten
from cifar_jax.errors import UserError
from cifar_jax.evaluation import evaluate, scores
from cifar_jax.models import layer_table
from cifar_jax.reports import diagnostics, page
from cifar_jax.reports.findings import (
    Findings,
    draw_curves,
    draw_errors,
    draw_images,
    score_predictions,
)
from cifar_jax.runs import history
from cifar_jax.runs.workdir import CONFIG, ENVIRONMENT, RESULT
from cifar_jax.text import format_duration, printable

FOLDER, PAGE = "report", "report.html"

_log = logging.getLogger(__name__)


def try_report(workdir: Path) -> None:
    """Makes the report of a run that has just ended; a failure costs a warning, never the run."""
    try:
        make_report(workdir)
    except Exception as error:
        words = " ".join(str(error).split()) or type(error).__name__
        _log.warning("the report could not be made: %s", words)


def make_report(
    workdir: Path, split: str = "test", checkpoint: str = "last", **options: Any
) -> Path:
    """Writes WORKDIR/report: PNGs, predictions.csv and report.html; returns the page's path.

    Args:
      workdir: the run's folder.
      split: as for `evaluate.predict_split`.
      checkpoint: as for `evaluate.predict_split`.
      **options: as for `evaluate.predict_split`.

    Raises:
      UserError: the folder cannot be written, or as for `evaluate.predict_split`.
    """
    files.read_json(workdir / CONFIG)
    folder = workdir / FOLDER
    if not files.may_write(folder):
        raise UserError(f"{folder} cannot be written: report on a copy of the run")
    found = score_predictions(next(evaluate.predict_split(workdir, split, checkpoint, **options)))
    rows = history.read_history(workdir)
    sections = {
        "Training": list(draw_curves(rows)),
        f"Predictions on the {split} split": list(draw_errors(found)),
        "Images": list(draw_images(found)),
    }
    trained = found.predictions.trained
    config = trained.config
    several = config.num_seeds > 1
    which = f", seed {trained.seed} of {config.num_seeds} seeds" if several else ""
    text = page.page(
        workdir.absolute().name,
        f"{config.model.name} on {config.data.name}, checkpoint of step {trained.step}{which}",
        [
            _headline(found, rows),
            *(page.pictures(title, drawn) for title, drawn in sections.items() if drawn),
            *(_seeds(workdir) if several else ()),
            *_tables(found),
            *_origin(workdir, {"split": split, "checkpoint": checkpoint, **options}),
        ],
    )
    folder.mkdir(exist_ok=True)
    for old in folder.glob("*.png"):
        old.unlink(missing_ok=True)
    for picture in itertools.chain(*sections.values()):
        (folder / f"{picture.name}.png").write_bytes(picture.light)
    every = (found.predictions.labels, found.probabilities, trained.class_names)
    files.write_csv(folder / "predictions.csv", diagnostics.prediction_rows(*every))
    files.write_text(folder / PAGE, text)
    words = scores.format_scores(split, found.result)
    print(f"{printable(str(folder / PAGE))}: checkpoint of step {trained.step}, {words}")
    return folder / PAGE


def _headline(found: Findings, rows: Sequence[Mapping[str, Any]]) -> str:
    result = found.result
    values = [
        ("accuracy", f"{result.accuracy:.2%}"),
        ("correct", f"{result.num_correct:,}"),
        ("images", f"{result.num_images:,}"),
        ("loss", f"{result.loss:.4f}"),
        ("mean F1", f"{np.nanmean(found.by_class.f1):.2%}"),
        ("calibration error", f"{found.calibration.error:.2%}"),
    ]
    for row in [row for row in rows if row["step"] <= found.predictions.trained.step][-1:]:
        values.append(("epochs", f"{row['epoch']:.3g}"))
        if "seconds" in row:
            values.append(("training time", format_duration(row["seconds"])))
    return page.tiles(values)


def _seeds(workdir: Path) -> Iterator[str]:
    """Yields the table of all seeds, once the run is finished."""
    path = workdir / RESULT
    if not path.exists():
        return
    seeds = files.read_json(path)["seeds"]
    rows = [(x["seed"], f"{x['test_accuracy']:.4f}", f"{x['test_loss']:.4f}") for x in seeds]
    words = scores.format_summary([x["test_accuracy"] for x in seeds])
    table = page.table(("seed", "test accuracy", "test loss"), rows, numbers=3)
    yield page.fold(f"Seeds: test accuracy {words}", table, opened=True)


def _tables(found: Findings) -> Iterator[str]:
    trained = found.predictions.trained

    def percent(value: float) -> str:
        return f"{value:.1%}" if np.isfinite(value) else "\N{EN DASH}"

    rows = [
        (name, *map(percent, values), f"{support:,}")
        for name, *values, support in zip(trained.class_names, *found.by_class, strict=True)
    ]
    yield "<h2>Numbers</h2>"
    head = ("class", "precision", "recall", "F1", "images")
    yield page.fold("Classes", page.table(head, rows, numbers=4), opened=len(rows) <= 20)
    layers = layer_table.layer_table(trained.model, trained.image_shape)
    shapes = [
        (row.path, row.kind, " x ".join(map(str, row.output_shape[1:])), f"{row.num_variables:,}")
        for row in layers
    ]
    total = sum(row.num_trainable for row in layers)
    table = page.table(("layer", "kind", "output", "parameters"), shapes, numbers=1)
    yield page.fold(f"Layers: {total:,} trainable parameters", table)
    fields = [(name, "unset" if x is None else x) for name, x in flatten(trained.config)]
    yield page.fold("Config", page.table(("field", "value"), fields))


def _origin(workdir: Path, options: Mapping[str, Any]) -> Iterator[str]:
    """Yields the environment of the training, and the commands that produce this page."""
    path = workdir / ENVIRONMENT
    commands = []
    if path.exists():
        try:
            environment = dict(flatten(files.read_json(path)))
            commands.append(["python", *map(str, environment.pop("command", []))])
            yield page.fold("Environment", page.table(("what", "value"), environment.items()))
        except (UserError, TypeError) as error:
            _log.warning("the page leaves out %s: %s", path.name, error)
    defaults = {"split": "test", "checkpoint": "last"}
    given = [f"--{name}={x}" for name, x in options.items() if x != defaults.get(name)]
    commands.append(["python", "main.py", "--mode=report", f"--workdir={workdir}", *given])
    text = "\n".join(map(shlex.join, commands))
    yield page.fold("How to reproduce this page", page.code(text), opened=True)
