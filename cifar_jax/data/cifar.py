"""CIFAR-10 and CIFAR-100 from their binary archives, prepared in TFDS's form without TensorFlow.

The archive is the one whose URL and checksum TFDS lists, and the prepared folder has TFDS's name,
version and features: TFDS reads what is prepared here, and the other way round.
"""

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from cifar_jax.data import tfds as tfds_lib
from cifar_jax.data.download import fetch

NAMES = ("cifar10", "cifar100")


def prepare_cifar(name: str, root: Path, url_infos: dict[str, Any] | None = None) -> Path:
    """Prepares CIFAR-10 or CIFAR-100 from its binary archive, without TensorFlow.

    The archive is taken from TFDS's manual directory, `<root>/downloads/manual`, if it is there;
    otherwise it is downloaded to that folder and kept. Its SHA-256 is checked in both cases.

    Args:
      name: "cifar10" or "cifar100".
      root: the TFDS data directory.
      url_infos: another archive of the same layout, as TFDS describes it: {URL: `UrlInfo`}; None
        takes the published one.

    Raises:
      UserError: the archive cannot be downloaded, is incomplete or is another file.
    """
    import tensorflow_datasets as tfds

    builder_class = _cifar_builder(name, url_infos)
    manual = _fetch_archive(builder_class, root).parent
    config = tfds.download.DownloadConfig(manual_dir=manual, try_download_gcs=False)
    return tfds_lib.build(builder_class(data_dir=root), config)


def decode_archive(
    name: str, root: Path, split: str
) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Decodes a split of CIFAR-10 or CIFAR-100 from the archive, for systems without ArrayRecord.

    The result, its order included, is that of `tfds.decode` for the prepared set; arguments and
    errors are those of `prepare_cifar`.
    """
    from tensorflow_datasets.core.hashing import Hasher

    builder_class = _cifar_builder(name, None)
    archive = _fetch_archive(builder_class, root)
    builder = builder_class(data_dir=root)
    every = builder._split_generators(SimpleNamespace(download=lambda url: archive))
    records = sorted(every[split], key=lambda record: Hasher(split).hash_key(record[0]))
    feature, label = (builder.info.features[key] for key in ("image", "label"))
    images = [tfds_lib.decode_image(record["image"], feature.shape) for _, record in records]
    labels = np.array([record["label"] for _, record in records], np.int32)
    return np.stack(images), labels, tuple(label.names)


def find_checksum(name: str) -> str:
    """Returns the SHA-256 of the archive of CIFAR-10 or CIFAR-100."""
    ((_, info),) = _cifar_builder(name, None).url_infos.items()
    return info.checksum


def _fetch_archive(builder_class: Any, root: Path) -> Path:
    ((url, info),) = builder_class.url_infos.items()
    archive = root / "downloads" / "manual" / info.filename
    fetch(url, info.checksum, info.size, archive)
    return archive


def _cifar_builder(name: str, url_infos: dict[str, Any] | None) -> Any:
    """Returns TFDS's builder of a CIFAR set, without the steps that need TensorFlow."""
    from tensorflow_datasets.image_classification import cifar

    base = {"cifar10": cifar.Cifar10, "cifar100": cifar.Cifar100}[name]

    class Builder(base, skip_registration=True):  # type: ignore[valid-type, misc, call-arg]
        """Reads the archive with tarfile, and gives TFDS images that are PNG files already."""

        def _split_generators(self, dl_manager):
            layout = self._cifar_info
            (url,) = self.url_infos
            files = {}
            with tarfile.open(dl_manager.download(url)) as archive:
                for member in archive:
                    if stream := archive.extractfile(member):
                        files[member.name.removeprefix(layout.prefix)] = stream.read()
            for key, file in zip(layout.label_keys, layout.label_files, strict=True):
                lines = files[file].decode().split("\n")
                self.info.features[key].names = [line for line in lines if line]
            return {
                "train": self._generate_examples("train", [files[x] for x in layout.train_files]),
                "test": self._generate_examples("test", [files[x] for x in layout.test_files]),
            }

        def _generate_examples(self, split, contents):
            keys = self._cifar_info.label_keys
            for index, record in enumerate(_read_binary(b"".join(contents), keys)):
                # TFDS shuffles by this key, so its order and ours are the same.
                yield index, {"id": f"{split}_{index:05d}", **record}

    Builder.url_infos = url_infos or base.url_infos
    Builder.name = base.name
    Builder.__module__ = base.__module__  # TFDS writes it into the prepared folder
    return Builder


def _read_binary(content: bytes, keys: list[str]) -> Iterator[dict[str, Any]]:
    """Yields CIFAR's records: one byte for each label, then 32x32 red, green and blue bytes."""
    from PIL import Image

    rows = np.frombuffer(content, np.uint8).reshape(-1, len(keys) + 3 * 32 * 32)
    images = rows[:, len(keys) :].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    for row, image in zip(rows, images, strict=True):
        png = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(image)).save(png, "PNG")
        yield {"image": png.getvalue(), **{key: row[i] for i, key in enumerate(keys)}}
