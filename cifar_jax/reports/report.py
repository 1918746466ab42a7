"""`--mode=report`: draws what a run has learned, and shows it on a page."""

import contextlib
import hashlib
import itertools
import logging
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cifar_jax import files
from cifar_jax.config.fields import flatten
from cifar_jax.errors import UserError
from cifar_jax.evaluation import evaluate, scores
from cifar_jax.evaluation.evaluate import Predictions
from cifar_jax.models import layer_table
from cifar_jax.reports import diagnostics, page
from cifar_jax.reports.findings import (
    Findings,
    describe_scores,
    draw_curves,
    draw_errors,
    draw_images,
    score_predictions,
)
from cifar_jax.reports.page import Picture
from cifar_jax.runs import history, weights
from cifar_jax.runs.workdir import ENVIRONMENT, RESULT
from cifar_jax.text import format_duration, format_number, printable, say_every_minute, short_names

FOLDER, PAGE = "report", "report.html"

_log = logging.getLogger(__name__)


@say_every_minute("making the report")
def make_report(
    workdir: Path | Sequence[Path],
    split: str = "test",
    checkpoint: str = "last",
    output: Path | None = None,
    num_mistakes: int = 12,
    **options: Any,
) -> Path:
    """Writes PNGs, predictions.csv and report.html; returns the page's path.

    The pictures are of the first seed, if several were trained together, or of the ensemble.

    Args:
      workdir: as for `evaluate.predict_split`.
      split: as for `evaluate.predict_split`.
      checkpoint: as for `evaluate.predict_split`.
      output: the folder to write to; None: WORKDIR/report, or a folder beside it that names
        another split, checkpoint or seed, or the ensemble; for several runs, in "ensemble".
      num_mistakes: how many of the most confident mistakes to draw.
      **options: as for `evaluate.predict_split`.

    Raises:
      UserError: the folder cannot be written, or as for `evaluate.predict_split`.
    """
    workdirs = weights.list_runs(workdir)
    folder = output or weights.output_folder_of(*workdirs) / _folder_name(
        split, checkpoint, options.get("seed"), options.get("ensemble", False)
    )
    if not files.may_write(folder):
        raise UserError(f"{folder} cannot be written: report on a copy of the run")
    every = list(evaluate.predict_split(workdir, split, checkpoint, **options))
    whole = bool(every[-1].trained.members)
    found = score_predictions(every[-1] if whole else every[0])
    rows = [] if whole else history.read_history(workdirs[0])
    trained = found.predictions.trained
    pictures = [*draw_errors(found), *draw_images(found, num_mistakes)]
    sections = {
        "Training": list(draw_curves(rows, trained.config, weights.evaluated_split(workdirs[0]))),
        f"Predictions for the {split} split": pictures,
    }
    given = {"split": split, "checkpoint": checkpoint, "output": output, **options}
    text = page.page(
        ", ".join(short_names(workdirs)) if workdirs[1:] else workdirs[0].absolute().name,
        _describe(found, split, checkpoint, workdirs[0]),
        [
            *(_seeds(split, every) if len(every) > 1 else ()),
            page.tiles([*describe_scores(found), *_times(found, rows, workdirs[0])]),
            *(page.pictures(title, drawn) for title, drawn in sections.items() if drawn),
            *_tables(found),
            *_origin(workdirs, given | {"num_mistakes": num_mistakes}),
        ],
    )
    _write(folder, found, itertools.chain(*sections.values()), text)
    words = scores.format_scores(split, found.result)
    if len(every) > 1 and not whole:
        words = f"seed {trained.seed}: {words}"
    print(f"{printable(str(folder / PAGE))}: {trained.describe()}, {words}")
    return folder / PAGE


def _write(folder: Path, found: Findings, pictures: Iterable[Picture], text: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    files.clear_unfinished(folder)
    for old in folder.glob("*.png"):
        old.unlink(missing_ok=True)
    for picture in pictures:
        (folder / f"{picture.name}.png").write_bytes(picture.light)
    labels, names = found.predictions.labels, found.predictions.trained.class_names
    origin = found.predictions.origin
    rows = diagnostics.prediction_rows(labels, found.probabilities, names, origin)
    files.write_csv(folder / "predictions.csv", rows)
    files.write_text(folder / PAGE, text)


def _folder_name(split: str, checkpoint: str, seed: int | None, ensemble: bool) -> str:
    words = [FOLDER]
    words += [split] if split != "test" else []
    words += [checkpoint] if checkpoint != "last" else []
    words += [f"seed_{seed}"] if seed is not None else []
    words += ["ensemble"] if ensemble else []
    text = "_".join(words)
    name = re.sub(r"[^\w.-]+", "_", text)
    # Two splits that differ in other characters only have two folders.
    return name if name == text else f"{name}_{hashlib.sha256(text.encode()).hexdigest()[:6]}"


def _describe(found: Findings, split: str, checkpoint: str, workdir: Path) -> str:
    """Returns the line below the title: what was trained, on what, and what is scored."""
    trained = found.predictions.trained
    config = trained.config
    if trained.members:
        return (
            f"{trained.describe()} on {config.data.name}: {split} split, {checkpoint} checkpoints"
        )
    step = f"step {trained.step}"
    which = f"checkpoint of {step}" if checkpoint.isdigit() else f"{checkpoint} checkpoint ({step})"
    words = f"{config.model.name} on {config.data.name}: {split} split, {which}"
    words += f"{scores.format_views(config.test_time)}, seed {trained.seed}"
    if config.num_seeds > 1:
        words += f" of {config.num_seeds} seeds"
    with contextlib.suppress(UserError, KeyError, TypeError):
        words += f", trained on {files.read_json(workdir / ENVIRONMENT)['time'][:10]}"
    return words


def _times(
    found: Findings, rows: Sequence[Mapping[str, Any]], workdir: Path
) -> Iterator[tuple[str, str]]:
    """Yields tiles: how long the run was trained, and when it was best."""
    for row in [row for row in rows if row["step"] <= found.predictions.trained.step][-1:]:
        yield "epochs", format_number(row["epoch"])
        if "seconds" in row:
            yield "training time", format_duration(row["seconds"])
    with contextlib.suppress(UserError, KeyError, TypeError):
        best = files.read_json(workdir / RESULT)["best"]
        name = f"best epoch, with {best['eval_accuracy']:.2%} on validation"
        yield name, format_number(best["epoch"])


def _seeds(split: str, every: Sequence[Predictions]) -> Iterator[str]:
    """Yields the mean over all seeds, and the table of them; or the members of an ensemble."""
    scored = [one.score() for one in every]
    rows = [
        (one.name, f"{own.accuracy:.2%}", f"{own.num_correct:,}", f"{own.loss:.4f}")
        for one, own in zip(every, scored, strict=True)
    ]
    head = ("model", f"{split} accuracy", "correct", "loss")
    if every[-1].trained.members:
        yield page.fold("Members", page.table(head, rows, numbers=4), opened=len(rows) <= 10)
        return
    mean, std, interval = scores.summarize([own.accuracy for own in scored])
    values = [(f"{split} accuracy, mean of {len(every)} seeds", f"{mean:.2%}")]
    if std is not None and interval is not None:
        low, high = interval
        values.append(("standard deviation", f"{std:.2%}"))
        values.append(("95% interval of the mean", f"{low:.2%} to {high:.2%}"))
    yield page.tiles(values)
    head = ("seed", *head[1:])
    yield page.fold("Seeds", page.table(head, rows, numbers=4), opened=len(rows) <= 10)
    yield page.paragraph(f"All that follows is of seed {every[0].trained.seed}.")


def _tables(found: Findings) -> Iterator[str]:
    trained = found.predictions.trained

    def percent(value: float) -> str:
        return f"{value:.1%}" if np.isfinite(value) else "\N{EN DASH}"

    rows = [
        (name, *map(percent, values), f"{support:,}")
        for name, *values, support in zip(trained.class_names, *found.by_class, strict=True)
    ]
    yield "<h2>Numbers</h2>"
    yield page.link("predictions.csv", "predictions.csv: the probabilities of all images")
    head = ("class", "precision", "recall", "F1", "images")
    yield page.fold("Classes", page.table(head, rows, numbers=4), opened=len(rows) <= 20)
    if trained.members:
        return
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


def _origin(workdirs: Sequence[Path], options: Mapping[str, Any]) -> Iterator[str]:
    """Yields the environment of the training, and the commands that produce this page."""
    path = workdirs[0] / ENVIRONMENT
    commands = []
    if path.exists() and not workdirs[1:]:
        try:
            environment = dict(flatten(files.read_json(path)))
            commands.append(["python", *map(str, environment.pop("command", []))])
            yield page.fold("Environment", page.table(("what", "value"), environment.items()))
        except (UserError, TypeError) as error:
            _log.warning("the page leaves out %s: %s", path.name, error)
    defaults = {"split": "test", "checkpoint": "last", "num_mistakes": 12}
    defaults |= {"stored_code": False, "ensemble": False}
    given = [f"--{name}={x}" for name, x in options.items() if x != defaults.get(name)]
    flag = "--workdirs=" if workdirs[1:] else "--workdir="
    run = flag + ",".join(map(str, workdirs))
    commands.append(["python", "main.py", "--mode=report", run, *given])
    text = "\n".join(map(shlex.join, commands))
    yield page.fold("How to reproduce this page", page.code(text), opened=True)
