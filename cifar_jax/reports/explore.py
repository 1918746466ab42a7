"""`--mode=explore`: what is in a data set."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from cifar_jax import files
from cifar_jax.data import datasets
from cifar_jax.data.sampling import random_order
from cifar_jax.reports import plots
from cifar_jax.text import format_table, printable, shorten_middle

IMAGES_OF_A_CLASS = 10
# Classes that one picture shows; a set with more gets several pictures.
CLASSES_OF_A_PICTURE = 20
_SPLITS = ("train", "validation", "test")
_CHANNELS = {1: ("grey",), 3: ("red", "green", "blue"), 4: ("red", "green", "blue", "alpha")}


def explore(
    name: str,
    data_dir: str | None = None,
    output: Path | None = None,
    seed: int = 0,
    validation_examples: int = 0,
) -> None:
    """Prints the classes, counts, mean and deviation of a set, and draws it.

    Writes images.png (images_1.png and so on where there are many classes), counts.png and
    data.json. Of a set's splits train, validation and test count, or all if it has none of these.

    Args:
      name: of the set, as for `datasets.load`.
      data_dir: likewise.
      output: the folder to write to; None: explore/NAME.
      seed: of the choice of the images, and of the validation split.
      validation_examples: training images that are set aside, as a run does.

    Raises:
      UserError: the data cannot be had, or the folder cannot be written.
    """
    output = output or Path("explore") / name.replace("/", "_")
    with files.output_folder(output):
        known = datasets.split_names(name, data_dir)
        splits = [split for split in _SPLITS if split in known] or list(known)
        dataset = datasets.load(name, data_dir, splits)
        if validation_examples:
            dataset = datasets.carve_validation(dataset, validation_examples, seed)
        counts = count_classes(dataset)
        print(format_counts(dataset.class_names, counts))
        print("\n" + format_statistics(dataset))
        described = {
            "name": name,
            "image_shape": next(iter(dataset.splits.values())).images.shape[1:],
            "mean": dataset.mean,
            "std": dataset.std,
            "class_names": dataset.class_names,
            "counts": {split: count.tolist() for split, count in counts.items()},
        }
        files.write_json(output / "data.json", described)
        plots.save(plot_counts(dataset.class_names, counts), output / "counts.png")
        pictures = _draw_classes(dataset, output, seed)
    print(f"{', '.join(pictures)}, counts.png and data.json are in {printable(str(output))}")


def count_classes(dataset: datasets.Dataset) -> dict[str, np.ndarray]:
    """Returns the number of images of each class, int [classes], by split."""
    size = len(dataset.class_names)
    order = sorted(dataset.splits, key=lambda name: (*_SPLITS, name).index(name))
    return {name: np.bincount(dataset.splits[name].labels, minlength=size) for name in order}


def format_counts(class_names: Sequence[str], counts: Mapping[str, np.ndarray]) -> str:
    """Lays out the table of the classes and their images in each split."""
    rows = [["class", *counts]]
    for number, name in enumerate(class_names):
        rows.append([printable(name), *[f"{count[number]:,}" for count in counts.values()]])
    rows.append(["all", *[f"{count.sum():,}" for count in counts.values()]])
    return format_table(rows, right=range(1, len(rows[0])))


def format_statistics(dataset: datasets.Dataset) -> str:
    """Lays out the mean and the deviation of each channel, in units of pixel / 255."""
    channels = _CHANNELS[len(dataset.mean)]
    values = zip(channels, dataset.mean, dataset.std, strict=True)
    rows = [["channel", "mean", "deviation"], *[[c, f"{m:.4f}", f"{s:.4f}"] for c, m, s in values]]
    return format_table(rows, right=(1, 2))


def _draw_classes(dataset: datasets.Dataset, output: Path, seed: int) -> list[str]:
    """Writes the pictures of the classes and returns the files' names."""
    split = next(iter(dataset.splits.values()))
    chosen = choose(split.labels, len(dataset.class_names), seed)
    starts = range(0, len(chosen), CLASSES_OF_A_PICTURE)
    names = []
    for number, start in enumerate(starts, 1):
        part = slice(start, start + CLASSES_OF_A_PICTURE)
        images = [split.images[indices] for indices in chosen[part]]
        names.append(f"images_{number}.png" if len(starts) > 1 else "images.png")
        plots.save(plot_classes(images, dataset.class_names[part]), output / names[-1])
    return names


def choose(labels: np.ndarray, num_classes: int, seed: int) -> list[np.ndarray]:
    """Returns for each class the indices of ten images at random, or of all if there are fewer."""
    order = random_order(seed, len(labels))
    shuffled = labels[order]
    return [order[shuffled == c][:IMAGES_OF_A_CLASS] for c in range(num_classes)]


@plots.styled
def plot_classes(images: Sequence[np.ndarray], class_names: Sequence[str]) -> Figure:
    """Draws a row of images for each class, its name to the left.

    Args:
      images: for each class uint8 [up to ten, height, width, channels].
      class_names: as many.
    """
    count, gap = IMAGES_OF_A_CLASS, 0.08
    height, width = next(iter(images)).shape[1:3]
    row, side = height / width, 0.42  # of an image: its height over its width, its width in inches
    label = 0.2 + 0.075 * max(len(shorten_middle(name, 20)) for name in class_names)
    size = (label + count * side * (1 + gap), 0.1 + len(images) * side * (row + gap))
    figure = Figure(figsize=size)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    for number, (name, shown) in enumerate(zip(class_names, images, strict=True)):
        top = number * (row + gap)
        axes.text(-0.15, top + row / 2, shorten_middle(name, 20), ha="right", va="center")
        for place, image in enumerate(shown):
            image = image[..., 0] if image.shape[2] == 1 else image
            left = place * (1 + gap)
            extent = (left, left + 1, top + row, top)
            axes.imshow(image, cmap="gray", vmin=0, vmax=255, extent=extent)
    bottom = len(images) * (row + gap)
    axes.set(xlim=(-label / side, count * (1 + gap)), ylim=(bottom, -0.1 / side), aspect="equal")
    return figure


@plots.styled
def plot_counts(class_names: Sequence[str], counts: Mapping[str, np.ndarray]) -> Figure:
    """Draws the images of each class as bars, a row of them for each class, by split."""
    figure = plots.new_figure(0.9 + 0.19 * len(class_names))
    axes = figure.add_subplot()
    left = np.zeros(len(class_names))
    places = np.arange(len(class_names))
    for number, (split, count) in enumerate(counts.items()):
        colour = plots.colour_of(number)
        axes.barh(places, count, left=left, height=0.7, label=f"{split} {count.sum():,}", fc=colour)
        left = left + count
    axes.set_yticks(places, [shorten_middle(name, 20) for name in class_names])
    axes.set(xlabel="images", ylim=(len(class_names) - 0.4, -0.6))
    axes.grid(False, axis="y")
    figure.legend(loc="outside upper center", ncols=len(counts))
    return figure
