"""`--mode=predict`: classifies pictures from files with a trained model."""

import functools
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cifar_jax import files
from cifar_jax.data import photos, picture_files
from cifar_jax.errors import UserError
from cifar_jax.runs import weights
from cifar_jax.text import format_table, printable, short_names, shorten_middle

# The grid shows the first pictures only, up to this number.
MOST_DRAWN = 60
_DRAWN_SIDE = 192  # pixels of a picture's longer side in the grid
# How many standard deviations of the training pixels a picture's mean must be off for a hint.
_FAR = 1.0

_log = logging.getLogger(__name__)


def predict_pictures(
    workdir: Path | Sequence[Path],
    given: Iterable[str | Path],
    output: Path | None = None,
    resize: str = "crop",
    batch_size: int | None = None,
    background: str = "white",
    invert: bool = False,
    explain: bool = False,
    ensemble: bool = False,
    **which: Any,
) -> int:
    """Classifies pictures; prints a table and writes predictions.csv, .json and .png.

    Where folders are called like classes, it also says how many predictions are right. Needs only
    the workdir. A file that cannot be read is reported in one line; the others are classified.

    Args:
      workdir: the run's folder; several: an ensemble of their models.
      given: files, folders and patterns, as for `picture_files.find_pictures`.
      output: the folder to write to; None: "predictions" in WORKDIR, or in "ensemble".
      resize: "crop" or "squeeze", as for `photos.fit`.
      batch_size: pictures per step; None: the run's own.
      background: the colour behind transparent parts, as for `photos.read_picture`.
      invert: whether to swap dark and light.
      explain: whether to draw by Grad-CAM, in explanations.png, what speaks for each class.
      ensemble: whether the seeds of a run form an ensemble.
      **which: checkpoint, seed and stored_code, as for `trained.load`.

    Returns:
      The exit code: 0, or 1 if some of the files could not be read.

    Raises:
      UserError: there is no picture, model or feature map, or the folder cannot be written.
    """
    photos.check_background(background)
    workdirs = weights.list_runs(workdir)
    paths, failures = _find_pictures(given)
    output = output or weights.output_folder_of(*workdirs) / "predictions"
    with files.output_folder(output):
        from cifar_jax.evaluation import gradcam, trained  # imported late: they import JAX

        own_size = trained.configure_for_run(workdirs[0])["eval_batch_size"]
        several = ensemble or len(workdirs) > 1
        model = trained.load(workdirs if several else workdirs[0], **which)
        if explain:
            gradcam.require_map(model)
        how: dict[str, Any] = {"background": background, "invert": invert}
        read = functools.partial(photos.read_picture, channels=model.image_shape[2], **how)
        pictures, drawn = _read(paths, read, model.image_shape, resize, failures)
        paths, images, names = list(pictures), np.stack([*pictures.values()]), model.class_names
        probabilities = model.predict(images, batch_size or own_size)
        facts = {**_describe(workdirs, model), "resize": resize, **how, "failures": failures}
        if explain:
            _explain(output, paths, model, images, drawn, probabilities)
        _write(output, paths, drawn, probabilities, names, facts)
    print(format_top(paths, probabilities, names))
    _print_summary(images, model, len(failures), output)
    _print_right(find_classes(paths, names), [names[place] for place in probabilities.argmax(1)])
    return 1 if failures else 0


def _explain(
    output: Path,
    paths: Sequence[str],
    model: Any,
    images: np.ndarray,
    drawn: Sequence[np.ndarray],
    probabilities: np.ndarray,
) -> None:
    """Writes explanations.png: the pictures as in predictions.png, with what they rest on."""
    from cifar_jax.evaluation import gradcam
    from cifar_jax.reports import plots
    from cifar_jax.reports.style import save_figure

    count = len(drawn)
    heat = gradcam.explain_images(model, images[:count], probabilities[:count].argmax(axis=1))
    shining = [plots.overlay_heat(*pair) for pair in zip(drawn, heat, strict=True)]
    titles = short_names(paths)[:count]
    figure = plots.plot_predictions(shining, probabilities, model.class_names, titles=titles)
    save_figure(figure, output / "explanations.png")


def _describe(workdirs: Sequence[Path], model: Any) -> dict[str, Any]:
    """Returns what predictions.json says about the model."""
    if not model.members:
        facts = {"workdir": str(workdirs[0]), "step": model.step, "seed": model.seed}
        return facts | {"temperature": model.temperature}
    return {
        "workdirs": list(map(str, workdirs)),
        "members": [
            {"step": one.step, "seed": one.seed, "temperature": one.temperature}
            for one in model.members
        ],
    }


def _find_pictures(given: Iterable[str | Path]) -> tuple[list[str], list[str]]:
    paths, failures, others, folders = picture_files.find_pictures(given)
    passed_over = [picture_files.describe_others(others, folders)] if others or folders else []
    if not paths:
        reasons = [*failures[:3], *passed_over] or ["name some with --images"]
        raise UserError(f"no picture to predict: {'; '.join(reasons)}")
    for failure in [*failures, *passed_over]:
        _log.warning("%s", failure)
    return paths, failures


def _read(
    paths: Sequence[str],
    read: Callable[[str], Image.Image],
    shape: Sequence[int],
    resize: str,
    failures: list[str],
) -> tuple[dict[str, np.ndarray], list[np.ndarray]]:
    """Returns the images for the model by path, and those to draw; adds to the failures."""
    height, width, _ = shape
    scale = max(1, _DRAWN_SIDE / max(height, width))
    view = (round(scale * height), round(scale * width), 1 if shape[2] == 1 else 3)
    pictures: dict[str, np.ndarray] = {}
    drawn: list[np.ndarray] = []
    for path in paths:
        try:
            picture = read(path)
        except UserError as error:
            failures.append(str(error))
            _log.warning("%s", error)
            continue
        pictures[path] = photos.fit(picture, shape, resize)
        if len(drawn) < MOST_DRAWN:
            drawn.append(photos.fit(picture, view, resize))
    if not pictures:
        raise UserError("no picture could be read", exit_code=1)
    return pictures, drawn


def _print_right(classes: Sequence[str | None], predicted: Sequence[str]) -> None:
    """Says how many predictions are right, of those whose class is known."""
    right = [own == other for own, other in zip(classes, predicted, strict=True) if own]
    if right:
        share = f"{sum(right)} of {len(right)} ({sum(right) / len(right):.2%})"
        print(f"{share} are right: their folders are called like their classes")


def _print_summary(images: np.ndarray, model: Any, num_failures: int, output: Path) -> None:
    """Says what predicted the pictures, where the files are, which pictures are drawn, and if most
    are of another brightness than in training."""
    words = f"{len(images)} picture{'s' if len(images) > 1 else ''} predicted by {model.describe()}"
    words += f", {num_failures} could not be read" if num_failures else ""
    print(f"{words}; predictions.csv, .json and .png are in {printable(str(output))}")
    if len(images) > MOST_DRAWN:
        print(f"predictions.png shows the first {MOST_DRAWN}")
    brightness = images.mean(axis=(1, 2)) / 255  # [images, channels]
    distance = float(np.median(np.mean((brightness - model.mean) / model.std, axis=1)))
    if abs(distance) >= _FAR:
        words = "brighter" if distance > 0 else "darker"
        print(
            f"hint: most of these pictures are much {words} than the training images; if they are "
            "dark where those are light, try --invert (and --background for transparent ones)"
        )


def top_classes(
    probabilities: np.ndarray, class_names: Sequence[str], most: int = 3
) -> list[tuple[str, float]]:
    """Returns the most probable classes with their probabilities; a tie keeps the order."""
    order = np.argsort(-probabilities, kind="stable")[:most]
    return [(class_names[index], float(probabilities[index])) for index in order]


def find_classes(paths: Sequence[str], class_names: Sequence[str]) -> list[str | None]:
    """Returns for each picture the class that the innermost of its folders is called like."""
    folders = [Path(path).absolute().parent for path in paths]
    # A folder around all pictures says nothing about them, unless they are directly in it.
    whole = os.path.commonpath(folders)
    around = ([folder.name, *folder.relative_to(whole).parts[::-1]] for folder in folders)
    return [next((name for name in names if name in class_names), None) for names in around]


def format_top(paths: Sequence[str], probabilities: np.ndarray, class_names: Sequence[str]) -> str:
    """Returns a text table of the pictures with their three most probable classes."""
    places = ("first", "second", "third")[: len(class_names)]
    rows = [["picture", *[cell for place in places for cell in (place, "%")]]]
    names = [shorten_middle(name, 60) for name in short_names(paths)]
    for name, row in zip(names, probabilities, strict=True):
        top = top_classes(row, class_names)
        cells = [cell for words, share in top for cell in (words, f"{100 * share:.1f}")]
        rows.append([name, *map(printable, cells)])
    return format_table(rows, right=(2, 4, 6))


def _write(
    output: Path,
    paths: Sequence[str],
    drawn: Sequence[np.ndarray],
    probabilities: np.ndarray,
    names: Sequence[str],
    facts: Mapping[str, Any],
) -> None:
    """Writes predictions.csv, predictions.json and predictions.png."""
    from cifar_jax.reports import plots  # imported late, because it imports matplotlib
    from cifar_jax.reports.style import save_figure

    rows: list[list[object]] = [["picture", "class", "prediction", "probability", *names]]
    entries = []
    classes = find_classes(paths, names)
    for path, row, own in zip(paths, probabilities, classes, strict=True):
        top = top_classes(row, names)
        rows.append([path, own, *top[0], *row.tolist()])
        entries.append(
            {
                "picture": path,
                "class": own,
                "prediction": top[0][0],
                "top": [{"class": name, "probability": share} for name, share in top],
                "probabilities": dict(zip(names, row.tolist(), strict=True)),
            }
        )
    files.write_csv(output / "predictions.csv", rows)
    files.write_json(output / "predictions.json", {**facts, "pictures": entries})
    titles = short_names(paths)[: len(drawn)]
    figure = plots.plot_predictions(drawn, probabilities, names, titles=titles)
    save_figure(figure, output / "predictions.png")
