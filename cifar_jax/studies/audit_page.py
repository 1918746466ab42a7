"""The page of an audit: how many labels are probably wrong, and the most suspicious images."""

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from cifar_jax import files
from cifar_jax.reports import page, plots
from cifar_jax.reports.page import Picture
from cifar_jax.reports.style import render
from cifar_jax.studies.confident import Suspicions
from cifar_jax.text import shorten_middle

PAGE = "audit.html"
_NUM_PICTURES, _PER_PICTURE = 4, 12
_MOST_PAIRS = 15
# Replaced labels are looked for among this many times as many images.
_GENEROUS = 1.2


class Audit(NamedTuple):
    """The labels of a training set and what the folds say of them.

    Attributes:
      config: of the audit.
      class_names: the names of the classes.
      images: uint8 [images, height, width, channels].
      labels: int [images], as the folds were trained on them.
      clean: int [images], as they are in the set; others only with `data.label_noise`.
      probabilities: float64 [images, classes], by models that have not seen the image.
      found: what confident learning concludes.
    """

    config: ConfigDict
    class_names: tuple[str, ...]
    images: np.ndarray
    labels: np.ndarray
    clean: np.ndarray
    probabilities: np.ndarray
    found: Suspicions


def describe_audit(audit: Audit) -> str:
    """Returns in one line how many labels are probably wrong, and how many replaced ones are found.

    Replaced labels count as found if they are among the first 1.2 times as many images.
    """
    flagged, total = int(audit.found.flagged.sum()), len(audit.labels)
    words = f"{flagged} of {total} labels are probably wrong ({flagged / total:.1%})"
    if replaced := count_replaced(audit):
        hits, count, most = replaced
        words += f"; {hits} of {count} replaced labels are among the first {most}"
    return words


def count_replaced(audit: Audit) -> tuple[int, int, int] | None:
    """Returns how many replaced labels are among the first images, of how many, of how many images.

    None if the config replaces no labels.
    """
    wrong = audit.labels != audit.clean
    count = int(wrong.sum())
    most = round(_GENEROUS * count)
    return (int(wrong[audit.found.order[:most]].sum()), count, most) if count else None


def write_audit(audit: Audit, folder: Path, num_folds: int) -> Path:
    """Writes audit.html and its pictures into a folder; returns the page's path."""
    drawn = list(_draw(audit))
    for old in folder.glob("suspicious_*.png"):
        old.unlink(missing_ok=True)
    for picture in drawn:
        (folder / f"{picture.name}.png").write_bytes(picture.light)
    config = audit.config
    text = page.page(
        folder.absolute().name,
        f"labels of {config.data.name}, audited by {config.model.name} in {num_folds} folds",
        [
            page.tiles(list(_tiles(audit))),
            page.pictures("The most suspicious labels", drawn),
            *_tables(audit),
        ],
    )
    files.write_text(folder / PAGE, text)
    return folder / PAGE


def _tiles(audit: Audit) -> Iterator[tuple[str, str]]:
    flagged, total = int(audit.found.flagged.sum()), len(audit.labels)
    right = audit.probabilities.argmax(axis=1) == audit.labels
    yield "images", f"{total:,}"
    yield "agreement with the labels", f"{right.mean():.2%}"
    yield "probably wrong", f"{flagged:,} ({flagged / total:.1%})"
    yield "estimated wrong", f"{1 - np.trace(audit.found.joint):.1%}"
    if replaced := count_replaced(audit):
        hits, count, most = replaced
        yield f"replaced labels in the first {most:,}", f"{hits:,} of {count:,}"


def _draw(audit: Audit) -> Iterator[Picture]:
    names = audit.class_names
    for number in range(_NUM_PICTURES):
        first = number * _PER_PICTURE
        shown = audit.found.order[first : first + _PER_PICTURE]
        if not len(shown):
            return
        titles = [f"{shorten_middle(names[audit.labels[x]], 11)} #{x}" for x in shown]
        cells = (audit.images[shown], audit.probabilities[shown], names, audit.labels[shown])
        light, dark = (
            render(plots.plot_predictions(*cells, titles, dark=dark)) for dark in (False, True)
        )
        words = (
            "Above each image: its label and number. Below: what models that have not seen it say."
        )
        ranks = f"{first + 1} to {first + len(shown)}"
        yield Picture(f"suspicious_{number + 1}", f"Ranks {ranks}", words, light, dark)


def _tables(audit: Audit) -> Iterator[str]:
    joint = audit.found.joint * len(audit.labels)
    np.fill_diagonal(joint, 0)
    names = audit.class_names
    places = np.argsort(-joint, axis=None, kind="stable")[:_MOST_PAIRS]
    pairs = zip(*np.unravel_index(places, joint.shape), strict=True)
    rows = [(names[x], names[y], f"{joint[x, y]:.1f}") for x, y in pairs if joint[x, y] > 0]
    words = "Label and class: estimated numbers of images"
    yield page.fold(words, page.table(("label", "class", "images"), rows, numbers=1), opened=True)
    command = ["python", "main.py", "--mode=explore", f"--dataset={audit.config.data.name}"]
    yield page.fold("Other images of the set", page.code(shlex.join(command)))
