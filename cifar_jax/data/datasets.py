"""Loads the data: any TFDS set of images of one size, a folder of pictures, or the digits."""

import dataclasses
import functools
import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from cifar_jax.data import cache
from cifar_jax.data import splits as splits_lib
from cifar_jax.data.sampling import check_held_out, partition, replace_labels
from cifar_jax.data.sources import Source, find_place, open_source
from cifar_jax.errors import UserError

_log = logging.getLogger(__name__)


class Split(NamedTuple):
    """Images and labels of one split.

    Attributes:
      images: uint8 [n, height, width, channels], read-only.
      labels: int32 [n], read-only.
      origin: where each image is in the set, as columns [n]: see `splits.trace_images`.
    """

    images: np.ndarray
    labels: np.ndarray
    origin: Mapping[str, np.ndarray] = {}

    @property
    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """The images and the labels."""
        return self.images, self.labels


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A set of labelled images of one size.

    Attributes:
      name: the set's name, as for `load_dataset`.
      class_names: the names of the classes, in the order of the labels.
      mean: the mean of each channel, in units of pixel / 255, over the whole "train" split (for a
        set without "train": over the first of `splits`).
      std: the standard deviation of each channel, in units of pixel / 255, over the same images.
      splits: the splits that were loaded, by name.
      remarks: lines about a folder of pictures, to show before training.
    """

    name: str
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    splits: dict[str, Split]
    remarks: tuple[str, ...] = ()


class _NoLabels(UserError):
    """A split has images without a class."""

    def __init__(self, name: str, split: str, advice: str = "choose another split or set"):
        super().__init__(f"the split {split!r} of {name} has images without a class: {advice}")
        self.split = split


def load_dataset(
    name: str, data_dir: str | Source | None = None, splits: Sequence[str] = ("train", "test")
) -> Dataset:
    """Loads splits of a set; prepares and decodes them if needed.

    Args:
      name: "digits"; or "folder", for a folder of pictures; or the name of a TFDS set, with its
        config where it has one ("emnist/letters"); or the name of a set of your own that TFDS
        prepared in `data_dir`.
      data_dir: the TFDS data directory (None: `$TFDS_DATA_DIR` or `~/tensorflow_datasets`) or the
        folder of pictures; or the result of `sources.find_place`.
      splits: the set's splits or parts of them, in TFDS's notation ("train[:90%]").

    Raises:
      UserError: the set or a split does not exist, does not hold labelled images of one size, or
        cannot be read, downloaded or prepared.
    """
    source = open_source(name, data_dir)
    parts = {split: splits_lib.find_parts(name, split, source.sizes) for split in splits}
    reference = "train" if "train" in source.sizes else parts[splits[0]][0].split
    load = functools.cache(source.load)
    first = load(reference)
    loaded = {}
    for split, own in parts.items():
        labels = splits_lib.join(own, lambda part: load(part).labels)
        if not -1 <= labels.min() <= labels.max() < len(first.class_names):
            words = f"has labels from {labels.min()} to {labels.max()} but {len(first.class_names)}"
            raise UserError(f"{name} {words} class names: prepare it again")
        if labels.min() < 0:
            raise _NoLabels(name, split)
        images = splits_lib.join(own, lambda part: load(part).images)
        loaded[split] = Split(images, labels, splits_lib.trace_images(own, lambda x: load(x).notes))
    return Dataset(name, first.class_names, first.mean, first.std, loaded, source.remarks)


def load_labelled(name: str, data_dir: str | Source | None, splits: Sequence[str]) -> Dataset:
    """Loads those splits whose images all have a class; the others are named in the log.

    Arguments and errors are otherwise those of `load_dataset`.
    """
    left = list(splits)
    while True:
        try:
            return load_dataset(name, data_dir, tuple(left))
        except _NoLabels as error:
            left.remove(error.split)
            if not left:
                raise
            _log.info("the split %s of %s has images without a class: left out", error.split, name)


def load_run_data(
    name: str,
    data_dir: str | Source | None = None,
    train_split: str = "train",
    test_split: str | None = None,
    validation_examples: int = 0,
    seed: int = 0,
    validation_fold: int = 0,
    label_noise: float = 0.0,
    test_seed: int = 0,
) -> Dataset:
    """Loads what a run uses, as the splits "train", "test" and, if there is one, "validation".

    Args:
      name, data_dir: as for `load_dataset`.
      train_split: the training images, in TFDS's notation.
      test_split: the test images. None: the set's split "test" if its images have classes and none
        is in `train_split`; otherwise a tenth of the training images.
      validation_examples: the number of training images to hold out. 0: "validation" is the set's
        split of that name, if it has classes and none of its images is used otherwise.
      seed: chooses the images to hold out for validation, and the labels to replace.
      validation_fold: which part of that size to hold out, counted from 0.
      label_noise: the share of the labels, of these images too, that get another class.
      test_seed: chooses that tenth.

    Returns:
      The set. Its mean and standard deviation are those of its training images, the ones held out
      for validation included.

    Raises:
      UserError: as for `load_dataset`; or the splits overlap, or have too few images.
    """
    sizes = (source := open_source(name, data_dir)).sizes
    chosen = splits_lib.choose_splits(name, sizes, train_split, test_split, not validation_examples)
    dataset = load_labelled(name, source, tuple(chosen.values()))
    for role, split in (("train", train_split), ("test", test_split)):
        if split is not None and split not in dataset.splits:
            raise _NoLabels(name, split, f"change data.{role}_split")
    parts = {x: dataset.splits[y] for x, y in chosen.items() if y in dataset.splits}
    dataset = dataclasses.replace(dataset, splits=parts)
    if "test" not in parts:
        dataset = _carve_test(dataset, ", ".join(sizes), test_seed)
    if "test" not in parts or train_split != "train":
        mean, std = cache.channel_statistics(dataset.splits["train"].images)
        dataset = dataclasses.replace(dataset, mean=mean, std=std)
    if label_noise:
        train = dataset.splits["train"]
        labels = replace_labels(train.labels, len(dataset.class_names), label_noise, seed)
        dataset.splits["train"] = train._replace(labels=labels)
    if validation_examples:
        dataset = carve_validation(dataset, validation_examples, seed, validation_fold)
    return dataset


def load_for(config: ConfigDict, **changes: Any) -> Dataset:
    """Loads what a run with this config uses; `changes` replace arguments of `load_run_data`."""
    options = run_options(config) | changes
    return load_run_data(config.data.name, find_place(config), **options)


def run_options(config: ConfigDict) -> dict[str, Any]:
    """Returns the arguments of `load_run_data`, apart from the set and its place, for a run."""
    data, seed = config.data, config.seed if config.data.seed is None else config.data.seed
    names = ("train_split", "test_split", "validation_examples", "validation_fold", "label_noise")
    # So that runs can be compared, a test split does not follow the run's own seed.
    return {name: data[name] for name in names} | {"seed": seed, "test_seed": data.seed or 0}


def carve_validation(dataset: Dataset, num_examples: int, seed: int, fold: int = 0) -> Dataset:
    """Moves images from "train" to a new split "validation".

    The choice is a fixed function of (seed, number of training images, number moved, fold). The
    mean and standard deviation stay those of the whole "train" split.

    Args:
      dataset: a set with a "train" split and no "validation" split.
      num_examples: how many images to move; both splits must keep at least one.
      seed: a non-negative integer.
      fold: which of the parts of that size to move; the last part may be smaller.

    Raises:
      UserError: the numbers do not fit the set.
    """
    train = dataset.splits["train"]
    if "validation" in dataset.splits:
        raise UserError(f"{dataset.name} already has a validation split: use that one")
    check_held_out(dataset.name, len(train.labels), num_examples, fold)
    return _carve(dataset, "validation", num_examples, seed, fold)


def _carve_test(dataset: Dataset, known: str, seed: int) -> Dataset:
    total = len(dataset.splits["train"].labels)
    if total < 2:
        raise UserError(f"{dataset.name} has {total} training image: none is left for the test")
    count = max(1, round(total / 10))
    words = f"{count} of {total} training images, chosen by data.seed ({seed}), are held out"
    _log.info("%s has no test images with classes (its splits: %s): %s", dataset.name, known, words)
    return _carve(dataset, "test", count, seed)


def _carve(dataset: Dataset, name: str, num_examples: int, seed: int, fold: int = 0) -> Dataset:
    """Moves images from "train" to a new split, as `carve_validation` chooses them."""
    train = dataset.splits["train"]
    held_out, kept = partition(len(train.labels), num_examples, seed, fold)
    splits = {**dataset.splits, "train": _take(train, kept), name: _take(train, held_out)}
    return dataclasses.replace(dataset, splits=splits)


def _take(split: Split, indices: np.ndarray) -> Split:
    origin = {name: column[indices] for name, column in split.origin.items()}
    images, labels = split.images[indices], split.labels[indices]
    images.flags.writeable = labels.flags.writeable = False
    return Split(images, labels, origin)
