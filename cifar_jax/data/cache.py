"""Decoded splits on disk: two memory-mapped arrays, and a small JSON file to verify them.

A split is decoded once. Its images and labels are two `.npy` files named after their content;
`<split>.json` names them, with their SHA-256, their origin, the split's statistics and a SHA-256 of
its own. Each file is put in place by an atomic rename, the JSON file last: a reader sees a whole
split or none, and processes that decode at the same time write the same files.
"""

import hashlib
import json
import logging
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cifar_jax import files

_FORMAT = 2
_log = logging.getLogger(__name__)


class CachedSplit(NamedTuple):
    """One decoded split.

    Attributes:
      images: uint8 [n, height, width, channels], memory-mapped and read-only.
      labels: int32 [n], memory-mapped and read-only.
      class_names: the names of the classes, in the order of the labels.
      mean: the mean of each channel, in units of pixel / 255.
      std: the standard deviation of each channel, in units of pixel / 255; 1 for a constant
        channel, so that dividing by it is safe.
      notes: what else was found when it was decoded, as JSON values; of a folder, its "files".
    """

    images: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    notes: Mapping[str, Any] = {}


def fingerprint(source: Path) -> str:
    """Returns a hash of the names, sizes and times of the files in a prepared set's folder."""
    paths = sorted(path for path in source.iterdir() if path.is_file())
    lines = [f"{path.name} {path.stat().st_size} {path.stat().st_mtime_ns}" for path in paths]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def channel_statistics(images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns the mean and standard deviation of each channel, from exact integer sums.

    Args:
      images: uint8 [n, height, width, channels].

    Returns:
      (mean, std), one number per channel, in units of pixel / 255; std is 1 for a constant channel.
    """
    channels = images.shape[-1]
    total = np.zeros(images[0].size, np.uint64)
    total_squares = np.zeros(images[0].size, np.uint64)
    for start in range(0, len(images), 256):  # 256 squares of a byte fit into 32 bits
        chunk = images[start : start + 256].reshape(-1, total.size).astype(np.uint32)
        total += chunk.sum(axis=0, dtype=np.uint32)
        total_squares += np.square(chunk).sum(axis=0, dtype=np.uint32)
    count = images.size // channels
    total, total_squares = (x.reshape(-1, channels).sum(axis=0) for x in (total, total_squares))
    sums = [(int(s), int(q)) for s, q in zip(total, total_squares, strict=True)]
    mean = tuple(s / (255 * count) for s, _ in sums)
    std = tuple(math.sqrt(q * count - s * s) / (255 * count) or 1.0 for s, q in sums)
    return mean, std


def load_or_build(
    source: Path,
    name: str,
    split: str,
    build: Callable[[], tuple[np.ndarray, np.ndarray, tuple[str, ...], *tuple[Any, ...]]],
    own_fingerprint: str | None = None,
) -> CachedSplit:
    """Returns a decoded split from the cache; decodes it and stores it there if needed.

    The cache is beside the data (`<source>/decoded`) if that folder can be written, otherwise, and
    for a folder of the user's, in `$XDG_CACHE_HOME/cifar_jax` (or `~/.cache/cifar_jax`). If neither
    can be written, the split is only kept in memory.

    Args:
      source: the folder of the prepared set, `<data_dir>/<name>/<version>`.
      name: the name of the set.
      split: the name of the split.
      build: decodes the split into (images, labels, class_names), and notes if there are any.
      own_fingerprint: of a folder of the user's, in which nothing is written; None: that of
        `source`.
    """
    identity = {"format": _FORMAT, "name": name, "version": source.name, "split": split}
    identity["fingerprint"] = own_fingerprint or fingerprint(source)
    folders = _folders(source, name)[1 if own_fingerprint else 0 :]
    for folder in folders:
        files.clear_unfinished(folder)
        if (cached := _read(folder, split, identity)) is not None:
            return cached
    images, labels, class_names, *notes = build()
    mean, std = channel_statistics(images)
    record = {"identity": identity, "class_names": class_names, "mean": mean, "std": std}
    record |= {"notes": notes[0]} if notes else {}
    for folder in folders:
        if not files.may_write(folder):
            continue
        try:
            _write(folder, split, images, labels, record)
        except OSError as error:
            _log.warning("cannot keep the decoded images in %s (%s)", folder, error)
            continue
        if (cached := _read(folder, split, identity)) is not None:
            return cached
    _log.warning(
        "no folder for the decoded %s of %s can be written: kept in memory only", split, name
    )
    images.flags.writeable = labels.flags.writeable = False
    return CachedSplit(images, labels, class_names, mean, std, *notes)


def _folders(source: Path, name: str) -> list[Path]:
    """Returns the possible folders for the decoded splits of a set, the preferred one first."""
    folders = [source / "decoded"]
    if (root := files.cache_folder()) is not None:
        place = hashlib.sha256(os.fsencode(source.resolve())).hexdigest()[:12]
        folders.append(root / f"{name.replace('/', '-')}-{source.name}-{place}")
    return folders


def _read(folder: Path, split: str, identity: dict[str, Any]) -> CachedSplit | None:
    """Returns the split in a folder, or None if it is missing, outdated or damaged."""
    try:
        record = json.loads((folder / f"{split}.json").read_text(encoding="utf-8"))
        if record["identity"] != identity:
            return None
        if record.pop("sha256") != files.digest(record):
            raise ValueError(f"{split}.json has changed")
        images, labels = (_map(folder, record[kind]) for kind in ("images", "labels"))
        names, mean, std = (tuple(record[key]) for key in ("class_names", "mean", "std"))
        return CachedSplit(images, labels, names, mean, std, record.get("notes", {}))
    except FileNotFoundError:
        return None
    except Exception as error:  # NumPy may raise almost anything for a damaged header
        _log.warning("the decoded %s in %s is damaged (%s): decoding again", split, folder, error)
        return None


def _map(folder: Path, entry: dict[str, Any]) -> np.ndarray:
    array = np.load(folder / entry["file"], mmap_mode="r", allow_pickle=False)
    if [list(array.shape), array.dtype.name] != [entry["shape"], entry["dtype"]]:
        raise ValueError(f"{entry['file']} has another shape")
    if _sha256(array) != entry["sha256"]:
        raise ValueError(f"the SHA-256 of {entry['file']} differs")
    return array


def _write(
    folder: Path, split: str, images: np.ndarray, labels: np.ndarray, record: dict[str, Any]
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    record = dict(record)
    for kind, array in (("images", images), ("labels", labels)):
        digest = _sha256(array)
        file = f"{split}-{kind}-{digest[:12]}.npy"
        with files.replacing(folder / file) as stream:
            np.save(stream, array, allow_pickle=False)
        record[kind] = {
            "file": file,
            "shape": list(array.shape),
            "dtype": array.dtype.name,
            "sha256": digest,
        }
    record["sha256"] = files.digest(record)
    files.write_json(folder / f"{split}.json", record)
    for kind in ("images", "labels"):
        for path in folder.glob(f"{split}-{kind}-*.npy"):
            if path.name != record[kind]["file"]:
                path.unlink(missing_ok=True)


def _sha256(array: np.ndarray) -> str:
    return hashlib.sha256(array.data).hexdigest()
