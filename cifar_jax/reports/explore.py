"""`--mode=explore`: shows what is in a data set."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cifar_jax import files
from cifar_jax.data import datasets
from cifar_jax.data.class_folders import FOLDER
from cifar_jax.data.sampling import random_order
from cifar_jax.data.sources import Source
from cifar_jax.reports.backend import Figure
from cifar_jax.reports.style import colour_of, new_canvas, new_figure, save_figure, styled
from cifar_jax.text import format_table, printable, shorten_middle

IMAGES_PER_CLASS = 10
# A set with more classes gets several pictures.
CLASSES_PER_PICTURE = 20
_SPLITS = ("train", "validation", "test")
_CHANNELS = {1: ("grey",), 3: ("red", "green", "blue"), 4: ("red", "green", "blue", "alpha")}


def explore_dataset(
    name: str,
    data_dir: str | Source | None = None,
    output: Path | None = None,
    seed: int = 0,
    **run_splits: Any,
) -> None:
    """Prints the classes, counts, mean and standard deviation of a set, and draws it.

    Writes images.png (or images_1.png and so on, if there are many classes), counts.png and
    data.json. Looks at the splits train, validation and test, or at all if the set has none of
    these; those whose images have no classes are left out.

    Args:
      name: the set's name, as for `datasets.load_dataset`.
      data_dir: the folder of the data, as for `datasets.load_dataset`.
      output: the folder to write to; None: `default_output` of the name.
      seed: determines which images are shown.
      **run_splits: those of a run, as for `datasets.load_run_data`; without them, the set's own.

    Raises:
      UserError: the data cannot be read, or the folder cannot be written.
    """
    output = output or default_output(name, data_dir if isinstance(data_dir, str) else None)
    with files.output_folder(output):
        if run_splits:
            dataset = datasets.load_run_data(name, data_dir, seed=seed, **run_splits)
        else:
            known = datasets.open_source(name, data_dir).sizes
            splits = [split for split in _SPLITS if split in known] or list(known)
            dataset = datasets.load_labelled(name, data_dir, splits)
        counts = count_classes(dataset)
        print(format_counts(dataset.class_names, counts))
        print("\n".join(["", format_statistics(dataset), *dataset.remarks]))
        described = {
            "name": name,
            "image_shape": next(iter(dataset.splits.values())).images.shape[1:],
            "mean": dataset.mean,
            "std": dataset.std,
            "class_names": dataset.class_names,
            "counts": {split: count.tolist() for split, count in counts.items()},
        }
        files.write_json(output / "data.json", described)
        save_figure(plot_counts(dataset.class_names, counts), output / "counts.png")
        pictures = _draw_classes(dataset, output, seed)
    print(f"{', '.join(pictures)}, counts.png and data.json are in {printable(str(output))}")


def default_output(name: str, path: str | None) -> Path:
    """Returns explore/NAME or, for a folder of pictures, explore/folder_PATH."""
    whole = f"{name}_{path.rstrip('/')}" if name == FOLDER and path else name
    return Path("explore") / re.sub("[/:]", "_", whole)


def count_classes(dataset: datasets.Dataset) -> dict[str, np.ndarray]:
    """Returns for each split the number of images of each class, int [classes]."""
    size = len(dataset.class_names)
    order = sorted(dataset.splits, key=lambda name: (*_SPLITS, name).index(name))
    return {name: np.bincount(dataset.splits[name].labels, minlength=size) for name in order}


def format_counts(class_names: Sequence[str], counts: Mapping[str, np.ndarray]) -> str:
    """Returns a text table of the number of images of each class in each split."""
    rows = [["class", *counts]]
    for number, name in enumerate(class_names):
        rows.append([printable(name), *[f"{count[number]:,}" for count in counts.values()]])
    rows.append(["all", *[f"{count.sum():,}" for count in counts.values()]])
    return format_table(rows, right=range(1, len(rows[0])))


def format_statistics(dataset: datasets.Dataset) -> str:
    """Returns a text table of each channel's mean and deviation, in units of pixel / 255."""
    channels = _CHANNELS[len(dataset.mean)]
    values = zip(channels, dataset.mean, dataset.std, strict=True)
    rows = [[channel, f"{mean:.4f}", f"{std:.4f}"] for channel, mean, std in values]
    return format_table([["channel", "mean", "deviation"], *rows], right=(1, 2))


def _draw_classes(dataset: datasets.Dataset, output: Path, seed: int) -> list[str]:
    """Writes the pictures of the classes; returns the names of the files."""
    split = next(iter(dataset.splits.values()))
    chosen = choose(split.labels, len(dataset.class_names), seed)
    starts = range(0, len(chosen), CLASSES_PER_PICTURE)
    names = []
    for number, start in enumerate(starts, 1):
        part = slice(start, start + CLASSES_PER_PICTURE)
        images = [split.images[indices] for indices in chosen[part]]
        names.append(f"images_{number}.png" if len(starts) > 1 else "images.png")
        save_figure(plot_classes(images, dataset.class_names[part]), output / names[-1])
    return names


def choose(labels: np.ndarray, num_classes: int, seed: int) -> list[np.ndarray]:
    """Returns for each class the indices of ten random images, or of all if there are fewer."""
    order = random_order(seed, len(labels))
    shuffled = labels[order]
    return [order[shuffled == c][:IMAGES_PER_CLASS] for c in range(num_classes)]


@styled
def plot_classes(images: Sequence[np.ndarray], class_names: Sequence[str]) -> Figure:
    """Draws a row of images for each class, with its name to the left.

    Args:
      images: for each class uint8 [up to ten, height, width, channels].
      class_names: the names of these classes.
    """
    count, gap = IMAGES_PER_CLASS, 0.08
    height, width = next(iter(images)).shape[1:3]
    row, side = height / width, 0.42  # an image's height in units of its width; its width in inches
    label = 0.2 + 0.075 * max(len(shorten_middle(name, 20)) for name in class_names)
    size = (label + count * side * (1 + gap), 0.1 + len(images) * side * (row + gap))
    figure, axes = new_canvas(*size)
    for number, (name, shown) in enumerate(zip(class_names, images, strict=True)):
        top = number * (row + gap)
        axes.text(-0.15, top + row / 2, shorten_middle(name, 20), ha="right", va="center")
        for place, image in enumerate(shown):
            left = place * (1 + gap)
            extent = (left, left + 1, top + row, top)
            axes.imshow(image, cmap="gray", vmin=0, vmax=255, extent=extent)
    bottom = len(images) * (row + gap)
    axes.set(xlim=(-label / side, count * (1 + gap)), ylim=(bottom, -0.1 / side), aspect="equal")
    return figure


@styled
def plot_counts(class_names: Sequence[str], counts: Mapping[str, np.ndarray]) -> Figure:
    """Draws for each class a bar of its number of images, divided into splits."""
    figure = new_figure(0.9 + 0.19 * len(class_names))
    axes = figure.add_subplot()
    left = np.zeros(len(class_names))
    places = np.arange(len(class_names))
    for number, (split, count) in enumerate(counts.items()):
        colour = colour_of(number)
        axes.barh(places, count, left=left, height=0.7, label=f"{split} {count.sum():,}", fc=colour)
        left = left + count
    axes.set_yticks(places, [shorten_middle(name, 20) for name in class_names])
    axes.set(xlabel="images", ylim=(len(class_names) - 0.4, -0.6))
    axes.grid(False, axis="y")
    figure.legend(loc="outside upper center", ncols=len(counts))
    return figure
