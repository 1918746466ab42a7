"""A folder of pictures as a data set: PATH/CLASS/*.jpg, or PATH/train/CLASS and PATH/test/CLASS.

Each picture becomes what predict makes of it, is decoded once, and is kept in the user's cache
folder; nothing is written into the folder of pictures.
"""

import functools
import hashlib
import logging
import os
import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import PIL
from tqdm import tqdm

from cifar_jax import limits
from cifar_jax.data import cache, photos
from cifar_jax.data.class_folders import FOLDER, Tree, find_tree, name_some
from cifar_jax.errors import UserError
from cifar_jax.text import format_table, printable

_log = logging.getLogger(__name__)


class Pictures(NamedTuple):
    """The decoded pictures of a split.

    Attributes:
      images: uint8 [n, height, width, channels].
      labels: int32 [n].
      files: the names, relative to the folder, [n].
      digests: hashes of the images, [n].
      sizes: "WIDTHxHEIGHT" of the files, [n].
    """

    images: np.ndarray
    labels: np.ndarray
    files: np.ndarray
    digests: np.ndarray
    sizes: np.ndarray

    def take(self, rows: np.ndarray) -> "Pictures":
        """Returns some of the pictures."""
        return Pictures(*(column[rows] for column in self))


class Options(NamedTuple):
    """Which folder, and how its pictures become images.

    Attributes:
      path: the folder.
      image_size: the images' height and width.
      channels: of the images: 1, 3 or 4 (with transparency).
      test_fraction: the share of each class that is the split "test" if there is no folder for it.
      max_broken: the most files that may be unreadable.
      seed: draws the share.
    """

    path: str | None
    image_size: int = 32
    channels: int = 3
    test_fraction: float = 0.2
    max_broken: int = 10
    seed: int = 0


def open_folder(options: Options) -> tuple[dict[str, cache.CachedSplit], list[str]]:
    """Returns the splits of a folder, and lines to show before training: classes, what looks wrong.

    Pictures are decoded only if they are not in the cache. Without a folder for testing, a share
    of each class becomes the split "test". The mean and standard deviation are those of the
    training images.

    Raises:
      UserError: as for `find_tree`; or more files cannot be read than may be, or none is left for
        testing.
    """
    tree = find_tree(options.path)
    shape = (options.image_size, options.image_size, options.channels)
    name = f"{FOLDER}-{'x'.join(map(str, shape))}"
    broken: list[str] = []
    parts: dict[str, Pictures] = {}
    statistics: dict[str, Any] = {}
    for split in tree.splits:
        build = functools.partial(_decode, tree, split, shape, options.max_broken)
        stored = cache.load_or_build(tree.root, name, split, build, _fingerprint(tree, split))
        broken += stored.notes["broken"]
        _check_broken(broken, options.max_broken)
        columns = (np.array(stored.notes[kind]) for kind in ("files", "digests", "sizes"))
        parts[split] = Pictures(stored.images, stored.labels, *columns)
        statistics[split] = (stored.mean, stored.std)
    lines = [*broken, f"{len(broken)} broken pictures are left out"] if broken else []
    if "test" not in parts:
        chosen = choose_share(parts["train"], options.test_fraction, options.seed)
        if not chosen.any():
            words = "no class has two different pictures, so none can be held out for testing"
            raise UserError(f"{tree.root}: {words}: add pictures, or a folder test")
        total = len(chosen)
        parts |= {"train": parts["train"].take(~chosen), "test": parts["train"].take(chosen)}
        statistics["train"] = cache.channel_statistics(parts["train"].images)
        words = f"data.test_fraction {options.test_fraction:g}, seed {options.seed}"
        lines.append(f"no folder for testing: {chosen.sum()} of {total} pictures are it ({words})")
    mean, std = statistics["train"]
    splits = {
        split: cache.CachedSplit(
            part.images, part.labels, tree.class_names, mean, std, {"files": part.files.tolist()}
        )
        for split, part in parts.items()
    }
    return splits, [*describe(tree, parts), *lines]


def _fingerprint(tree: Tree, split: str) -> str:
    """Returns a hash of what the decoded pictures of a split depend on."""
    lines = [PIL.__version__]
    for file, label in tree.splits[split]:
        try:
            status = os.stat(f"{tree.root}/{file}")
            times = f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"
        except OSError as error:
            times = str(error.strerror)
        lines.append(f"{file!r} {label} {times}")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _decode(tree: Tree, split: str, shape: Sequence[int], max_broken: int) -> tuple[Any, ...]:
    """Decodes a split in several threads; returns images, labels, class names and notes."""
    entries = tree.splits[split]
    _log.info("decoding the %d pictures for %s in %s", len(entries), split, tree.root)
    images = np.empty((len(entries), *shape), np.uint8)

    def read(index: int) -> tuple[str, str] | str:
        try:
            picture = photos.read_in_thread(str(tree.root / entries[index][0]), shape[2])
        except UserError as error:
            return str(error)
        images[index] = photos.fit(picture, shape)
        digest = hashlib.sha256(images[index].data).hexdigest()[:16]
        return digest, f"{picture.width}x{picture.height}"

    kept, broken = {}, []
    pool = ThreadPoolExecutor(limits.num_cores())
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, see `photos.read_in_thread`
            results = pool.map(read, range(len(entries)))
            bar = tqdm(results, f"decoding {split}", len(entries), unit="picture", disable=None)
            for index, result in enumerate(bar):
                if isinstance(result, str):
                    broken.append(result)
                    _check_broken(broken, max_broken)
                else:
                    kept[index] = result
    finally:
        pool.shutdown(cancel_futures=True)
    if not kept:
        raise UserError(f"none of the {len(entries)} pictures for {split} can be read: {broken[0]}")
    rows = list(kept)
    digests, sizes = zip(*kept.values(), strict=True)
    notes = {"files": [entries[row][0] for row in rows], "digests": digests, "sizes": sizes}
    labels = np.array([entries[row][1] for row in rows], np.int32)
    images = images if len(rows) == len(images) else images[rows]
    return images, labels, tree.class_names, notes | {"broken": broken}


def _check_broken(lines: Sequence[str], most: int) -> None:
    if len(lines) > most:
        words = "remove the broken pictures, or let data.max_broken be larger"
        raise UserError("\n".join([*lines, f"more than {most} pictures are broken: {words}"]))


def choose_share(pictures: Pictures, fraction: float, seed: int) -> np.ndarray:
    """Returns which pictures make up a share of each class, bool [n].

    The choice depends on the seed and on the images, not on their names; equal images of a class
    stay together, and a picture that is added moves few others. At least one different image of
    each class is chosen, and at least one is not, which comes first.
    """
    chosen = np.zeros(len(pictures.labels), bool)
    for label in np.unique(pictures.labels):
        own = pictures.labels == label
        drawn = sorted(
            set(pictures.digests[own].tolist()),
            key=lambda digest: hashlib.sha256(f"{seed} {digest}".encode()).digest(),
        )
        count = min(max(1, round(fraction * len(drawn))), len(drawn) - 1)
        chosen |= own & np.isin(pictures.digests, drawn[:count])
    return chosen


def describe(tree: Tree, parts: Mapping[str, Pictures]) -> list[str]:
    """Returns a table of the classes with counts and sizes, and remarks on what looks wrong."""
    rows, remarks = [["class", *parts, "sizes in pixels"]], list(tree.remarks)
    for number, name in enumerate(tree.class_names):
        own = {split: part.labels == number for split, part in parts.items()}
        sizes = {size for split, part in parts.items() for size in part.sizes[own[split]].tolist()}
        ordered = sorted(sizes, key=lambda size: [np.prod([*map(int, size.split("x"))]), size])
        words = " to ".join(dict.fromkeys((ordered[0], ordered[-1]))) if ordered else "-"
        rows.append([printable(name), *(f"{rows.sum():,}" for rows in own.values()), words])
        for split, mask in own.items():
            if not mask.any():
                remarks.append(f"the class {name!r} has no pictures in {split}")
    same: dict[str, list[tuple[str, int, str]]] = defaultdict(list)
    for split, part in parts.items():
        for file, label, digest in zip(part.files, part.labels, part.digests, strict=True):
            same[digest].append((split, int(label), str(file)))
    for words, place in (("are in two splits", 0), ("are in two classes", 1)):
        groups = [group for group in same.values() if len({entry[place] for entry in group}) > 1]
        if groups:
            pairs = [" = ".join(entry[2] for entry in group) for group in groups]
            remarks.append(f"{len(groups)} equal images {words}: {name_some(pairs)}")
    return [format_table(rows, right=range(1, len(parts) + 1)), *remarks]
