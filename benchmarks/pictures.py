"""Sets of pictures as files, for `benchmarks.studies`: writes them, and times their loading."""

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import numpy as np
from PIL import Image

from cifar_jax.data import class_folders, datasets, folder

# A photograph is cut into so many rows and columns of tiles.
ROWS, COLUMNS = 5, 6
PHOTOGRAPHS = "photographs"

# The place of a picture in its set, and the picture.
Entry = tuple[str, np.ndarray]


def write_set(name: str, path: Path) -> None:
    """Writes a set as PNG files, unless the folder is there.

    Args:
      name: of a set, whose files are PATH/train/CLASS/INDEX.png and PATH/test/CLASS/INDEX.png; or
        "photographs", whose files are PATH/CLASS/INDEX.png, of which one is cut off.
      path: the folder.
    """
    if path.exists():
        return
    unfinished = path.with_name(f"{path.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    for place, image in _cut_photographs() if name == PHOTOGRAPHS else _read_set(name):
        file = unfinished / place
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(file)
    if name == PHOTOGRAPHS:
        file.write_bytes(file.read_bytes()[:1000])
    unfinished.rename(path)


def _read_set(name: str) -> Iterator[Entry]:
    dataset = datasets.load_dataset(name)
    for split, part in dataset.splits.items():
        for index, (image, label) in enumerate(zip(part.images, part.labels, strict=True)):
            shown = image[..., 0] if image.shape[-1] == 1 else image
            yield f"{split}/{dataset.class_names[label]}/{index:05}.png", shown


def _cut_photographs() -> Iterator[Entry]:
    """Yields tiles that do not overlap, of photographs that come with installed packages."""
    from matplotlib import cbook
    from sklearn.datasets import load_sample_images

    hopper = cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)
    images = [*load_sample_images().images, np.asarray(Image.open(hopper))]
    for name, image in zip(("china", "flower", "hopper"), images, strict=True):
        height, width = image.shape[0] // ROWS, image.shape[1] // COLUMNS
        for index in range(ROWS * COLUMNS):
            top, left = index // COLUMNS * height, index % COLUMNS * width
            yield f"{name}/{index:05}.png", image[top : top + height, left : left + width]


def time_loading(path: Path, image_size: int, channels: int) -> dict[str, float]:
    """Returns what a run finds in a folder of pictures, and how long that takes.

    Args:
      path: the folder.
      image_size: the images' height and width.
      channels: of the images.

    Returns:
      The number of pictures that can be read, of classes and of broken files; the seconds to decode
      the files, and to read the images from the cache at the next start.
    """
    tree = class_folders.find_tree(str(path))
    options = folder.Options(str(path), image_size, channels)
    seconds = []
    with (
        tempfile.TemporaryDirectory() as cache,
        mock.patch.dict(os.environ, XDG_CACHE_HOME=cache),
    ):
        for _ in range(2):
            begun = time.monotonic()
            splits, _ = folder.open_folder(options)
            seconds.append(time.monotonic() - begun)
        pictures = sum(len(part.labels) for part in splits.values())
    return {
        "pictures": pictures,
        "classes": len(tree.class_names),
        "broken": sum(map(len, tree.splits.values())) - pictures,
        "decode_seconds": seconds[0],
        "cached_seconds": seconds[1],
    }
