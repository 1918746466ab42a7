"""What can be told of a run's data before any are decoded: from names and descriptions."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from cifar_jax.config.stored import strip_version
from cifar_jax.data import cifar, names, sources
from cifar_jax.data import splits as splits_lib
from cifar_jax.data.class_folders import FOLDER, find_tree
from cifar_jax.data.splits import SplitSize


class Foreseen(NamedTuple):
    """What is known of the data.

    Attributes:
      sizes: those of the set's splits; {} if they are not known.
      exact: whether a split has no fewer images than that; pictures of a folder may be broken, and
        a share of them may be for testing.
      image_shape: (height, width, channels); None if it is not known.
      num_classes: the number of classes; None if it is not known.
    """

    sizes: Mapping[str, SplitSize] = {}
    exact: bool = True
    image_shape: tuple[int, int, int] | None = None
    num_classes: int | None = None


def foresee(config: ConfigDict, given: str | None = None) -> Foreseen:
    """Returns what can be told of a run's data.

    Args:
      config: of the run.
      given: the folder of the data, instead of the config's.

    Raises:
      UserError: there is no such folder of pictures, or a description cannot be read.
    """
    data = config.data
    if data.name == FOLDER:
        tree = find_tree(given or data.path)
        counts = {name: len(pictures) for name, pictures in tree.splits.items()}
        counts.setdefault("test", counts["train"])
        sizes = {name: SplitSize(count, [count]) for name, count in counts.items()}
        return Foreseen(sizes, False, find_shape(config), len(tree.class_names))
    return _foresee_set(data.name, given or data.data_dir)._replace(image_shape=find_shape(config))


def find_shape(config: ConfigDict) -> tuple[int, int, int] | None:
    """Returns (height, width, channels) of a run's images; None if it is not known."""
    data = config.data
    size, channels = data.image_size, data.channels
    if data.name == FOLDER:
        return (size or 32, size or 32, channels or 3)
    if size and channels:
        return (size, size, channels)
    if (own := _foresee_set(data.name, data.data_dir).image_shape) is None:
        return None
    return (size or own[0], size or own[1], channels or own[2])


def _foresee_set(name: str, data_dir: str | None) -> Foreseen:
    if name == "digits":
        return Foreseen(sources.find_sizes(name, None) or {}, True, (32, 32, 1), 10)
    if folder := names.find_prepared(name, names.data_root(data_dir)):
        sizes = sources.find_sizes(name, data_dir) or {}
        return Foreseen(sizes, True, *_read_features(folder / "features.json"))
    if (base := strip_version(name)) in cifar.NAMES:
        sizes = {x: SplitSize(n, [n]) for x, n in (("train", 50_000), ("test", 10_000))}
        return Foreseen(sizes, True, (32, 32, 3), int(base.removeprefix("cifar")))
    return Foreseen()


def _read_features(file: Path) -> tuple[tuple[int, int, int] | None, int | None]:
    """Returns the images' shape and the number of classes that TFDS describes, where it does."""
    try:
        parts: dict[str, Any] = json.loads(file.read_bytes())["featuresDict"]["features"]
        dimensions = parts["image"]["image"]["shape"]["dimensions"]
        height, width, channels = map(int, dimensions)
        count = int(parts["label"]["classLabel"]["numClasses"])
    except (OSError, LookupError, TypeError, ValueError):  # of another version, or damaged
        return None, None
    return (height, width, channels) if min(height, width, channels) > 0 else None, count


def check_split(config: ConfigDict, name: str, split: str, given: str | None) -> None:
    """Checks that a folder of pictures has a split, before its pictures are decoded.

    Args:
      config: of a run.
      name: of the set, which may be another than the run's.
      split: in TFDS's notation; "validation" may be held out by the run.
      given: the folder.

    Raises:
      UserError: it does not, or there is no such folder.
    """
    held_out = (
        split == "validation" and name == config.data.name and config.data.validation_examples
    )
    if name == FOLDER and not held_out:
        splits_lib.check_notation(split)
        known = {"train": None, "test": None, **dict(find_tree(given or config.data.path).splits)}
        splits_lib.check_known(name, split, known)


def count_training(config: ConfigDict, known: Foreseen) -> int | None:
    """Returns the number of images that a run trains on; None if it is not known.

    It is the most that there can be, if `known` is not exact. Images that are held out for the test
    or for validation do not count.

    Raises:
      UserError: the set has no such split, or it has too few images for what is asked.
    """
    if not known.sizes:
        return None
    data, sizes = config.data, known.sizes
    if not known.exact:
        for role in ("train", "test"):
            if split := data[f"{role}_split"]:
                with splits_lib.advising(role):
                    splits_lib.check_known(data.name, split, sizes)
        mentioned = splits_lib.find_names(data.train_split, sizes)
        return sum(sizes[name].num_examples for name in mentioned)
    chosen = splits_lib.choose_splits(data.name, sizes, data.train_split, data.test_split, False)
    parts = splits_lib.find_parts(data.name, data.train_split, sizes)
    total = sum(part.stop - part.start for part in parts)
    return total if "test" in chosen else total - max(1, round(total / 10))
