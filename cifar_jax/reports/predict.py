"""`--mode=predict`: what a trained model sees in pictures from files."""

import csv
import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cifar_jax import files
from cifar_jax.data import photos
from cifar_jax.errors import UserError
from cifar_jax.runs import workdir as workdir_lib
from cifar_jax.text import format_table, printable, short_names, shorten_middle

# Of more pictures the grid shows the first ones.
MOST_DRAWN = 60
# Pixels of a picture's longer side in the grid.
_DRAWN_SIDE = 192

_log = logging.getLogger(__name__)


def predict(
    workdir: Path,
    given: Iterable[str | Path],
    output: Path | None = None,
    checkpoint: str = "last",
    resize: str = "crop",
    batch_size: int | None = None,
    seed: int | None = None,
) -> int:
    """Predicts pictures from the workdir alone; prints a table and writes predictions.csv, .json
    and .png. A file that cannot be predicted is named in a line; the others are.

    Args:
      workdir: of the run.
      given: files, folders and patterns, as for `photos.find`.
      output: the folder to write to; None: WORKDIR/predictions.
      checkpoint: "last", "best" or a step.
      resize: "crop" or "squeeze", as for `photos.fit`.
      batch_size: pictures of a step; None: the run's own.
      seed: which of several seeds that were trained together; None: the first.

    Returns:
      The exit code: 0, or 1 if some of the files could not be predicted.

    Raises:
      UserError: there is no picture or no model, or the folder cannot be written.
    """
    files.read_json(workdir / workdir_lib.CONFIG)
    paths, failures = photos.find(given)
    if not paths:
        raise UserError("no picture to predict: " + "; ".join(failures[:3] or ["none is named"]))
    for failure in failures:
        _log.warning("%s", failure)
    output = output or workdir / "predictions"
    with files.output_folder(output):
        from cifar_jax.evaluation import trained as trained_lib  # only here: it brings JAX

        own_size = trained_lib.configure(workdir)["eval_batch_size"]
        trained = trained_lib.load(workdir, checkpoint, seed)
        pictures: dict[str, np.ndarray] = {}
        drawn: list[np.ndarray] = []
        for path, image, view in _read(paths, trained.image_shape, resize, failures):
            pictures[path] = image
            if len(drawn) < MOST_DRAWN:
                drawn.append(view)
        if not pictures:
            raise UserError("no picture could be read", exit_code=1)
        images = np.stack(list(pictures.values()))
        probabilities = trained.predict(images, batch_size or own_size)
        paths, names = list(pictures), trained.class_names
        _write_csv(output / "predictions.csv", paths, probabilities, names)
        described = {
            "workdir": str(workdir),
            "step": trained.step,
            "seed": trained.seed,
            "resize": resize,
            "pictures": [
                _describe(*pair, names) for pair in zip(paths, probabilities, strict=True)
            ],
            "failures": failures,
        }
        files.write_json(output / "predictions.json", described)
        _draw(output / "predictions.png", paths, drawn, probabilities, names)
    print(format_top(paths, probabilities, names))
    words = f"{_count(len(paths))} predicted by the checkpoint of step {trained.step}"
    words += f", {len(failures)} could not be read" if failures else ""
    print(f"{words}; predictions.csv, .json and .png are in {printable(str(output))}")
    if len(paths) > MOST_DRAWN:
        print(f"predictions.png shows the first {MOST_DRAWN}")
    return 1 if failures else 0


def _count(number: int) -> str:
    return f"{number} picture{'s' if number > 1 else ''}"


def _read(
    paths: Sequence[str], shape: Sequence[int], resize: str, failures: list[str]
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Yields (path, image for the model, image to be drawn); adds to the failures."""
    height, width, _ = shape
    scale = max(1, _DRAWN_SIDE / max(height, width))
    view_size = (round(scale * height), round(scale * width))
    for path in paths:
        try:
            picture = photos.load(path)
        except UserError as error:
            failures.append(str(error))
            _log.warning("%s", error)
            continue
        channels = 1 if shape[2] == 1 else 3
        yield (
            path,
            photos.fit(picture, shape, resize),
            photos.fit(picture, (*view_size, channels), resize),
        )


def top_classes(
    probabilities: np.ndarray, class_names: Sequence[str], most: int = 3
) -> list[tuple[str, float]]:
    """Returns the most probable classes with their probabilities; of equal ones the first."""
    order = np.argsort(-probabilities, kind="stable")[:most]
    return [(class_names[index], float(probabilities[index])) for index in order]


def format_top(paths: Sequence[str], probabilities: np.ndarray, class_names: Sequence[str]) -> str:
    """Lays out a table of the pictures with their three most probable classes."""
    places = ("first", "second", "third")[: len(class_names)]
    rows = [["picture", *[cell for place in places for cell in (place, "%")]]]
    names = [shorten_middle(name, 60) for name in short_names(paths)]
    for name, row in zip(names, probabilities, strict=True):
        top = top_classes(row, class_names)
        cells = [cell for words, share in top for cell in (words, f"{100 * share:.1f}")]
        rows.append([name, *map(printable, cells)])
    return format_table(rows, right=(2, 4, 6))


def _describe(path: str, probabilities: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
    top = [{"class": name, "probability": p} for name, p in top_classes(probabilities, names)]
    shares = dict(zip(names, probabilities.tolist(), strict=True))
    return {"picture": path, "prediction": top[0]["class"], "top": top, "probabilities": shares}


def _write_csv(
    path: Path, pictures: Sequence[str], probabilities: np.ndarray, names: Sequence[str]
) -> None:
    # A name that is not of the encoding of the file system has parts that UTF-8 cannot hold.
    with path.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["picture", "prediction", "probability", *names])
        for picture, row in zip(pictures, probabilities, strict=True):
            name, share = top_classes(row, names)[0]
            writer.writerow([picture, name, share, *row.tolist()])


def _draw(
    path: Path,
    pictures: Sequence[str],
    drawn: Sequence[np.ndarray],
    probabilities: np.ndarray,
    class_names: Sequence[str],
) -> None:
    from cifar_jax.reports import plots  # only here: it brings matplotlib

    titles = short_names(pictures)[: len(drawn)]
    figure = plots.plot_predictions(drawn, probabilities, class_names, titles=titles)
    plots.save(figure, path)
