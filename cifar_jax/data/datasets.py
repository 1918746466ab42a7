"""Loads the data: any TFDS set of images of one size, or scikit-learn's handwritten digits.

A set is read from its prepared TFDS folder, decoded once, and kept as memory-mapped uint8 arrays.
Reading a set that is prepared as ArrayRecord does not import TensorFlow; once it is decoded, not
even TFDS.
"""

import dataclasses
import difflib
import functools
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cifar_jax import files
from cifar_jax.data import cache, cifar
from cifar_jax.data import tfds as tfds_lib
from cifar_jax.data.sampling import random_order
from cifar_jax.errors import UserError

_EXAMPLES = ("cifar10", "cifar100", "mnist", "fashion_mnist", "svhn_cropped", "digits")
_NUM_DIGITS_TEST = 360


class Split(NamedTuple):
    """Images and labels of one split.

    Attributes:
      images: uint8 [n, height, width, channels], read-only.
      labels: int32 [n], read-only.
    """

    images: np.ndarray
    labels: np.ndarray


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
    """

    name: str
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    splits: dict[str, Split]


def load_dataset(
    name: str, data_dir: str | None = None, splits: Sequence[str] = ("train", "test")
) -> Dataset:
    """Loads splits of a set; prepares and decodes them if needed.

    Args:
      name: "digits"; or the name of a TFDS set, with its config where it has one
        ("emnist/letters"); or the name of a folder of your own in `data_dir` that TFDS prepared.
      data_dir: the TFDS data directory; None: `$TFDS_DATA_DIR` or `~/tensorflow_datasets`.
      splits: names of the set's splits.

    Raises:
      UserError: the set or a split does not exist, does not hold labelled images of one size, or
        cannot be read, downloaded or prepared.
    """
    check_name(name, data_dir)
    if name == "digits":
        return _load_digits(splits)
    source = _find_or_prepare(name, data_root(data_dir))
    known = tfds_lib.read_split_names(source)
    _check_splits(name, splits, known)
    reference = "train" if "train" in known else splits[0]
    loaded = {}
    try:
        for split in dict.fromkeys([reference, *splits]):
            build = functools.partial(tfds_lib.decode, source, split)
            loaded[split] = cache.load_or_build(source, name, split, build)
    except OSError as error:
        raise UserError(f"cannot read {source}: {error}") from error
    parts = {split: Split(loaded[split].images, loaded[split].labels) for split in splits}
    first = loaded[reference]
    return Dataset(name, first.class_names, first.mean, first.std, parts)


def split_names(name: str, data_dir: str | None = None) -> tuple[str, ...]:
    """Returns the names of a set's splits; arguments and errors are those of `load_dataset`."""
    check_name(name, data_dir)
    if name == "digits":
        return ("train", "test")
    return tfds_lib.read_split_names(_find_or_prepare(name, data_root(data_dir)))


def _find_or_prepare(name: str, root: Path) -> Path:
    """Returns a set's folder in a TFDS data directory; prepares the set if needed."""
    if source := tfds_lib.find_prepared(name, root):
        return source
    if not files.may_write(root):
        raise UserError(
            f"{name} is not prepared in {root}, which is read-only: set TFDS_DATA_DIR to a data "
            "directory that has it or can be written, or use --config=configs/digits.py"
        )
    if name in cifar.NAMES:
        return cifar.prepare_cifar(name, root)
    return tfds_lib.prepare(name, root)


def data_root(data_dir: str | None = None) -> Path:
    """Returns the TFDS data directory: `data_dir`, `$TFDS_DATA_DIR` or `~/tensorflow_datasets`.

    Raises:
      UserError: it is not a local folder.
    """
    chosen = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    try:
        root = Path(chosen).expanduser().absolute()
        usable = "://" not in chosen and (root.is_dir() or not root.exists())
    except (RuntimeError, OSError) as error:  # no home; no permission
        raise UserError(f"the data directory {chosen} cannot be used: {error}") from error
    if not usable:
        raise UserError(f"the data directory {chosen} is not a local folder")
    return root


def check_name(name: str, data_dir: str | None = None) -> None:
    """Checks that a set of this name exists, without reading any data.

    Args:
      name: the set's name, as for `load_dataset`.
      data_dir: the TFDS data directory, as for `load_dataset`: it may hold a prepared set that TFDS
        does not know.

    Raises:
      UserError: there is no such set; the message suggests similar names.
    """
    well_formed = re.fullmatch(r"\w+(/[\w+-][\w.+-]*)?", name) is not None
    if name == "digits" or (well_formed and tfds_lib.find_prepared(name, data_root(data_dir))):
        return
    import tensorflow_datasets as tfds

    known = ["digits", *tfds.list_builders(with_community_datasets=False)]
    base = re.split("[/:]", name)[0]
    if well_formed and base in known and base != "digits":
        _check_builder_config(name)
        return
    near = difflib.get_close_matches(base, known, n=3)
    near.sort(key=lambda other: other not in _EXAMPLES)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    raise UserError(
        f"unknown dataset {name!r}: {hint}Give NAME or NAME/CONFIG of a TFDS set of labelled "
        f"images of one size, for instance {', '.join(_EXAMPLES)}"
    )


def _check_builder_config(name: str) -> None:
    """Checks the part of a TFDS name after the slash: a config of the set, or a version."""
    import tensorflow_datasets as tfds

    base, _, config = name.partition("/")
    if not config or re.fullmatch(r"[\d.*]+", config):
        return
    try:
        known = list(tfds.builder_cls(base).builder_configs)
    except Exception:  # needs TensorFlow, as preparing the set does anyway
        return
    if config not in known:
        hint = f"one of {', '.join(known)}" if known else "no config: leave it out"
        raise UserError(f"unknown dataset {name!r}: {base} takes {hint}")


def carve_validation(dataset: Dataset, num_examples: int, seed: int) -> Dataset:
    """Moves images from "train" to a new split "validation".

    The choice is a fixed function of (seed, number of training images). The mean and standard
    deviation stay those of the whole "train" split.

    Args:
      dataset: a set with a "train" split and no "validation" split.
      num_examples: how many images to move; both splits must keep at least one.
      seed: a non-negative integer.

    Raises:
      UserError: the numbers do not fit the set.
    """
    train = dataset.splits["train"]
    if "validation" in dataset.splits:
        raise UserError(f"{dataset.name} already has a validation split: use that one")
    if not 0 < num_examples < len(train.labels):
        raise UserError(
            f"cannot hold out {num_examples} validation images of the {len(train.labels)} training "
            f"images of {dataset.name}: give a number from 1 to {len(train.labels) - 1}"
        )
    held_out, kept = _partition(len(train.labels), num_examples, seed)
    splits = dict(dataset.splits)
    splits["train"] = _take(train, kept)
    splits["validation"] = _take(train, held_out)
    return dataclasses.replace(dataset, splits=splits)


def _partition(total: int, first: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Splits range(total) at random into `first` indices and the rest, each in ascending order."""
    order = random_order(seed, total)
    return np.sort(order[:first]), np.sort(order[first:])


def _take(split: Split, indices: np.ndarray) -> Split:
    taken = Split(split.images[indices], split.labels[indices])
    for array in taken:
        array.flags.writeable = False
    return taken


def _load_digits(splits: Sequence[str]) -> Dataset:
    """Returns scikit-learn's 1,797 digits, enlarged bilinearly from 8x8 to 32x32x1.

    The test split is 360 fixed images, drawn by `_partition` with seed 0.
    """
    from PIL import Image
    from sklearn.datasets import load_digits

    _check_splits("digits", splits, ("train", "test"))
    digits = load_digits()
    small = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    size, resample = (32, 32), Image.Resampling.BILINEAR
    images = np.stack([np.asarray(Image.fromarray(x).resize(size, resample)) for x in small])
    everything = Split(images[..., None], digits.target.astype(np.int32))
    test, train = _partition(len(small), _NUM_DIGITS_TEST, seed=0)
    parts = {"train": _take(everything, train), "test": _take(everything, test)}
    mean, std = cache.channel_statistics(parts["train"].images)
    names = tuple(str(name) for name in digits.target_names)
    return Dataset("digits", names, mean, std, {split: parts[split] for split in splits})


def _check_splits(name: str, splits: Sequence[str], known: Sequence[str]) -> None:
    for split in splits:
        if split not in known:
            raise UserError(f"{name} has no split {split!r}: it has {', '.join(known)}")
