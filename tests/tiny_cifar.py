"""Small archives of CIFAR's layout, and folders prepared from them."""

import atexit
import functools
import gzip
import hashlib
import io
import shutil
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from tensorflow_datasets.core.download.checksums import UrlInfo
from tensorflow_datasets.core.utils import Size

from cifar_jax.data import cifar

CLASSES = [
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
]
NUM_TRAIN, NUM_TEST = 60, 20


def cifar10_rows(count: int, seed: int) -> np.ndarray:
    """Random records, uint8 [count, 1 + 3072]: the label, then red, green and blue planes."""
    rows = np.random.default_rng(seed).integers(0, 256, (count, 3073), np.uint8)
    rows[:, 0] = np.arange(count) % 10
    return rows


def cifar10_archive() -> bytes:
    """An archive like cifar-10-binary.tar.gz, of 60 training and 20 test images."""
    train = cifar10_rows(NUM_TRAIN, seed=1)
    files = {f"data_batch_{i + 1}.bin": part.tobytes() for i, part in enumerate(np.split(train, 5))}
    files["test_batch.bin"] = cifar10_rows(NUM_TEST, seed=2).tobytes()
    files["batches.meta.txt"] = "\n".join([*CLASSES, "", ""]).encode()
    return _pack("cifar-10-batches-bin", files)


def cifar100_rows(count: int, seed: int) -> np.ndarray:
    """Random records, uint8 [count, 2 + 3072]: coarse label, fine label, then the planes."""
    rows = np.random.default_rng(seed).integers(0, 256, (count, 3074), np.uint8)
    rows[:, 0], rows[:, 1] = np.arange(count) % 20, np.arange(count) % 100
    return rows


def cifar100_archive() -> bytes:
    """An archive like cifar-100-binary.tar.gz, of 120 training and 20 test images."""
    files = {
        "train.bin": cifar100_rows(120, seed=3).tobytes(),
        "test.bin": cifar100_rows(20, seed=4).tobytes(),
        "coarse_label_names.txt": "".join(f"coarse_{i}\n" for i in range(20)).encode(),
        "fine_label_names.txt": "".join(f"fine_{i}\n" for i in range(100)).encode(),
    }
    return _pack("cifar-100-binary", files)


def images_of(rows: np.ndarray) -> np.ndarray:
    """The images of records, uint8 [count, 32, 32, 3]."""
    return rows[:, -3072:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)


def by_content(images: np.ndarray, labels: np.ndarray) -> list[tuple[bytes, int]]:
    """Images and labels as a list, sorted by content."""
    pairs = zip(images, labels, strict=True)
    return sorted((image.tobytes(), int(label)) for image, label in pairs)


def describe(content: bytes, url: str) -> dict[str, Any]:
    """What TFDS knows about an archive before it is downloaded."""
    digest = hashlib.sha256(content).hexdigest()
    return {url: UrlInfo(Size(len(content)), digest, url.rpartition("/")[2])}


def prepared_cifar10(root: Path) -> Path:
    """Prepares the small CIFAR-10 in `root` from an archive in the manual directory."""
    content = cifar10_archive()
    manual = root / "downloads" / "manual"
    manual.mkdir(parents=True)
    (manual / "cifar-10-binary.tar.gz").write_bytes(content)
    known = describe(content, "http://127.0.0.1:1/cifar-10-binary.tar.gz")
    return cifar.prepare_cifar("cifar10", root, known)


def copy_prepared(root: Path) -> Path:
    """Puts a copy of the small prepared CIFAR-10 into `root`, without its archive."""
    shutil.copytree(Path(_prepared_once().name) / "cifar10", root / "cifar10")
    return root


@functools.cache
def _prepared_once() -> tempfile.TemporaryDirectory[str]:
    folder: tempfile.TemporaryDirectory[str] = tempfile.TemporaryDirectory()
    atexit.register(folder.cleanup)  # an implicit clean-up would give a warning
    prepared_cifar10(Path(folder.name))
    return folder


def _pack(folder: str, files: dict[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(f"{folder}/{name}")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return gzip.compress(packed.getvalue(), mtime=0)  # the same bytes every time
