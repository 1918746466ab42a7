"""Where the data come from: the digits, folders that TFDS prepared, folders of pictures."""

import functools
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from cifar_jax import files
from cifar_jax.data import cache, cifar, photos
from cifar_jax.data import folder as folder_lib
from cifar_jax.data import tfds as tfds_lib
from cifar_jax.data.class_folders import FOLDER
from cifar_jax.data.names import check_name, data_root, find_prepared, join_name, split_name
from cifar_jax.data.sampling import partition
from cifar_jax.data.splits import SplitSize
from cifar_jax.errors import UserError

_DIGIT_SIZES = {"train": SplitSize(1437, [1437]), "test": SplitSize(360, [360])}


class Source(NamedTuple):
    """A set that is at hand.

    Attributes:
      sizes: those of its splits.
      load: returns a split.
      remarks: lines about the set, to show before training.
    """

    sizes: Mapping[str, SplitSize]
    load: Callable[[str], cache.CachedSplit]
    remarks: tuple[str, ...] = ()


def find_place(
    config: ConfigDict,
    name: str | None = None,
    given: str | None = None,
    image_shape: tuple[int, ...] | None = None,
) -> str | Source | None:
    """Returns where data for a run are: the argument `data_dir` of the functions in `datasets`.

    Args:
      config: of the run.
      name: of the set; None: the run's own.
      given: the folder of the data, instead of the config's.
      image_shape: (height, width, channels) of the images of a folder; None: by the config.

    Raises:
      UserError: as for `open_source`.
    """
    data = config.data
    name = name or data.name
    size, channels = data.image_size, data.channels
    if name == FOLDER:
        size, _, channels = image_shape or (size or 32, size or 32, channels or 3)
        seed = config.seed if data.seed is None else data.seed
        fields = (size, channels, data.test_fraction, data.max_broken, seed)
        return _open_folder(folder_lib.Options(given or data.path, *fields))
    place = given or data.data_dir
    if not size and not channels:
        return place
    source = open_source(name, place)
    return source._replace(load=lambda split: _resize(source.load(split), size, channels))


def _resize(split: cache.CachedSplit, size: int | None, channels: int | None) -> cache.CachedSplit:
    """Returns a split whose images are of another size or have other channels."""
    old = split.images.shape[1:]
    shape = (size or old[0], size or old[1], channels or old[2])
    pictures = (photos.from_array(image) for image in split.images)
    images = np.stack([photos.fit(picture, shape) for picture in pictures])
    mean, std = cache.channel_statistics(images)
    return split._replace(images=images, mean=mean, std=std)


def _open_folder(options: folder_lib.Options) -> Source:
    splits, remarks = folder_lib.open_folder(options)
    sizes = {name: SplitSize(len(one.labels), [len(one.labels)]) for name, one in splits.items()}
    return Source(sizes, splits.__getitem__, tuple(remarks))


def find_sizes(name: str, data_dir: str | None) -> Mapping[str, SplitSize] | None:
    """Returns the sizes of the splits of a set, or None if they are not known yet."""
    if name == "digits":
        return _DIGIT_SIZES
    if name == FOLDER:
        return None
    folder = find_prepared(name, data_root(data_dir))
    return tfds_lib.read_sizes(folder) if folder else None


def open_source(name: str, data_dir: str | Source | None) -> Source:
    """Returns a set, prepared if needed; a source is returned as it is."""
    if isinstance(data_dir, Source):
        return data_dir
    check_name(name, data_dir)
    if name == "digits":
        return Source(_DIGIT_SIZES, lambda split: _load_digits()[split])
    if name == FOLDER:
        return _open_folder(folder_lib.Options(data_dir))
    root = data_root(data_dir)
    if _is_cifar(name) and not find_prepared(name, root) and not tfds_lib.has_array_record():
        return _open_archive(name, root)
    folder = _find_or_prepare(name, root)
    whole_name = folder.relative_to(root).parent.as_posix()  # the same however the user named it

    def load(split: str) -> cache.CachedSplit:
        build = functools.partial(tfds_lib.decode, folder, split)
        try:
            return cache.load_or_build(folder, whole_name, split, build)
        except OSError as error:
            raise UserError(f"cannot read {folder}: {error}") from error

    return Source(tfds_lib.read_sizes(folder), load)


def _find_or_prepare(name: str, root: Path) -> Path:
    """Returns a set's folder in a TFDS data directory; prepares the set if needed."""
    if source := find_prepared(name, root):
        return source
    if not files.may_write(root):
        raise UserError(
            f"{name} is not prepared in {root}, which is read-only: set TFDS_DATA_DIR to a data "
            "directory that has it or can be written, or train configs/digits.py"
        )
    base, config, version = split_name(name) or (name, "", "")
    if _is_cifar(name):
        return cifar.prepare_cifar(base, root)
    return tfds_lib.prepare(join_name(base, config, version), root)


def _is_cifar(name: str) -> bool:
    base, config, _ = split_name(name) or (name, "", "")
    return base in cifar.NAMES and not config


def _open_archive(name: str, root: Path) -> Source:
    """Returns CIFAR-10 or CIFAR-100 from its archive, decoded once, in the user's cache folder."""
    base = re.split("[/:]", name)[0]
    checksum = cifar.find_checksum(base)

    @functools.cache
    def load(split: str) -> cache.CachedSplit:
        build = functools.partial(cifar.decode_archive, base, root, split)
        return cache.load_or_build(root / base, base, split, build, checksum)

    counts = {split: len(load(split).labels) for split in ("train", "test")}
    return Source({split: SplitSize(count, [count]) for split, count in counts.items()}, load)


@functools.cache
def _load_digits() -> dict[str, cache.CachedSplit]:
    """Returns scikit-learn's 1,797 digits, enlarged bilinearly from 8x8 to 32x32x1.

    The test split is 360 fixed images, drawn by `partition` with seed 0.
    """
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    small = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    size, resample = (32, 32), Image.Resampling.BILINEAR
    images = np.stack([np.asarray(Image.fromarray(x).resize(size, resample)) for x in small])
    images, labels = images[..., None], digits.target.astype(np.int32)
    test, train = partition(len(small), _DIGIT_SIZES["test"].num_examples, seed=0)
    names = tuple(str(name) for name in digits.target_names)
    statistics = cache.channel_statistics(images[train])
    return {
        split: cache.CachedSplit(images[rows], labels[rows], names, *statistics)
        for split, rows in (("train", train), ("test", test))
    }
