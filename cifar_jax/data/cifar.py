"""CIFAR-10 and CIFAR-100 from their binary archives, prepared in TFDS's form without TensorFlow.

The prepared folder has TFDS's own name, version and features, and comes from the archive that
TFDS's own checksum names, so TFDS reads what is prepared here and the other way round.
"""

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from cifar_jax.data import tfds as tfds_lib
from cifar_jax.data.download import Archive, fetch

ARCHIVES = {
    "cifar10": Archive(
        url="https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
        sha256="c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
        size=170052171,
    ),
    "cifar100": Archive(
        url="https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
        sha256="58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
        size=168513733,
    ),
}


def prepare_cifar(name: str, root: Path, archive: Archive | None = None) -> Path:
    """Prepares CIFAR-10 or CIFAR-100 from its binary archive, without TensorFlow.

    The archive is taken from TFDS's manual directory, `<root>/downloads/manual`, if it is there;
    otherwise it is downloaded to that folder and kept. Its SHA-256 is checked in both cases.

    Args:
      name: "cifar10" or "cifar100".
      root: the TFDS data directory.
      archive: another archive of the same layout; None takes the published one.

    Raises:
      UserError: the archive cannot be downloaded, is incomplete or is another file.
    """
    import tensorflow_datasets as tfds

    archive = archive or ARCHIVES[name]
    manual = root / "downloads" / "manual"
    fetch(archive, manual / archive.filename)
    builder = _cifar_builder(name, archive)(data_dir=root)
    return tfds_lib.build(
        builder, tfds.download.DownloadConfig(manual_dir=manual, try_download_gcs=False)
    )


def _cifar_builder(name: str, archive: Archive) -> Any:
    """Returns TFDS's builder of a CIFAR set, without the steps that need TensorFlow."""
    from tensorflow_datasets.core.download.checksums import UrlInfo
    from tensorflow_datasets.core.utils import Size
    from tensorflow_datasets.image_classification import cifar

    base = {"cifar10": cifar.Cifar10, "cifar100": cifar.Cifar100}[name]

    class Builder(base, skip_registration=True):  # type: ignore[valid-type, misc, call-arg]
        """Reads the archive with tarfile, and gives TFDS images that are already PNG files."""

        def _split_generators(self, dl_manager):
            layout = self._cifar_info
            files = _unpack(dl_manager.download(archive.url), layout.prefix)
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

    info = UrlInfo(Size(archive.size), archive.sha256, archive.filename)
    Builder.url_infos = {archive.url: info}
    Builder.name = base.name
    Builder.__module__ = base.__module__  # TFDS notes it in the prepared folder
    return Builder


def _unpack(path: Any, prefix: str) -> dict[str, bytes]:
    """Returns the contents of the files below `prefix` in a tar archive, by name."""
    files = {}
    with tarfile.open(path) as archive:
        for member in archive:
            stream = archive.extractfile(member)
            if stream is not None:
                files[member.name.removeprefix(prefix)] = stream.read()
    return files


def _read_binary(content: bytes, keys: list[str]) -> Iterator[dict[str, Any]]:
    """Yields CIFAR's records: one byte for each label, then 32x32 red, green and blue bytes."""
    from PIL import Image

    rows = np.frombuffer(content, np.uint8).reshape(-1, len(keys) + 3 * 32 * 32)
    images = rows[:, len(keys) :].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    for row, image in zip(rows, images, strict=True):
        png = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(image)).save(png, "PNG")
        yield {"image": png.getvalue(), **{key: row[i] for i, key in enumerate(keys)}}
