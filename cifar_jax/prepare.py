"""Preparing sets in TFDS's own form: CIFAR from its archive without TensorFlow, others with it.

What is written has TFDS's own name, version and features, and comes from the archive that TFDS's
own checksum names, so that a folder prepared here and one prepared by TFDS are read by both.
"""

import http.client
import io
import logging
import sys
import tarfile
import urllib.error
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from cifar_jax import records
from cifar_jax.download import Archive, fetch, open_url
from cifar_jax.errors import UserError
from cifar_jax.image_cache import may_write

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
_log = logging.getLogger(__name__)


def prepare(name: str, root: Path) -> Path:
    """Prepares a set in a TFDS data directory as ArrayRecord, downloading what it needs.

    Args:
      name: the TFDS name, with its config where it has one.
      root: the TFDS data directory.

    Returns:
      The set's folder, `<root>/<name>/<version>`.

    Raises:
      UserError: the directory is read-only; the set is not one of labelled images of one size;
        its files cannot be had; or it needs TensorFlow, which is not installed.
    """
    if not may_write(root):
        raise UserError(
            f"{name} is not prepared in {root}, which is read-only: set TFDS_DATA_DIR to a data "
            "directory that has it or can be written, or take --config=configs/digits.py"
        )
    if name in ARCHIVES:
        return prepare_cifar(name, root)
    return _prepare_with_tensorflow(name, root)


def prepare_cifar(name: str, root: Path, archive: Archive | None = None) -> Path:
    """Prepares CIFAR-10 or CIFAR-100 from its binary archive, without TensorFlow.

    The archive is taken from TFDS's manual directory, `<root>/downloads/manual`, where it lies
    there; otherwise it is downloaded to that place and stays. Its SHA-256 is checked both times.

    Args:
      name: "cifar10" or "cifar100".
      root: the TFDS data directory.
      archive: another archive of the same layout; None takes the published one.

    Raises:
      UserError: the archive cannot be downloaded, is cut off or is another file.
    """
    import tensorflow_datasets as tfds

    archive = archive or ARCHIVES[name]
    manual = root / "downloads" / "manual"
    fetch(archive, manual / archive.filename)
    builder = _cifar_builder(name, archive)(data_dir=root)
    return _build(builder, tfds.download.DownloadConfig(manual_dir=manual, try_download_gcs=False))


def _cifar_builder(name: str, archive: Archive) -> Any:
    """TFDS's own builder of a CIFAR set, with the steps replaced that need TensorFlow."""
    from tensorflow_datasets.core.download.checksums import UrlInfo
    from tensorflow_datasets.core.utils import Size
    from tensorflow_datasets.image_classification import cifar

    base = {"cifar10": cifar.Cifar10, "cifar100": cifar.Cifar100}[name]

    class Builder(base, skip_registration=True):  # type: ignore[valid-type, misc, call-arg]
        """Reads the archive by tarfile, and hands TFDS images that are PNG files already."""

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
    """The contents of the files below `prefix` in a tar archive, by name."""
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


def _prepare_with_tensorflow(name: str, root: Path) -> Path:
    import tensorflow_datasets as tfds

    records.require_tensorflow(f"{name} is not prepared in {root}, and preparing it")
    try:
        builder = tfds.builder(name, data_dir=root)
        urls = list(builder.url_infos or {})
    except Exception as error:  # whatever a builder's own code raises
        raise UserError(f"TFDS cannot make {name}: {records.first_line(error)}") from error
    records.check_features(name, builder.info.features)
    if urls and not (root / "downloads").exists():
        _check_network(name, urls[0])
    records.keep_tensorflow_off_accelerators()
    return _build(builder, tfds.download.DownloadConfig(try_download_gcs=False))


def _check_network(name: str, url: str) -> None:
    """Refuses at once what TFDS would try for minutes."""
    try:
        open_url(url).close()
    except urllib.error.HTTPError:
        return  # a server answered: TFDS may know better how to ask
    except (OSError, http.client.HTTPException) as error:
        raise UserError(
            f"cannot download {name} from {url} ({error}): prepare it elsewhere and set "
            "TFDS_DATA_DIR, or take --config=configs/digits.py"
        ) from error


def _build(builder: Any, config: Any) -> Path:
    """Lets TFDS write the set as ArrayRecord; returns its folder."""
    import tensorflow_datasets as tfds

    if not sys.stderr.isatty():
        tfds.disable_progress_bar()
    folder = Path(builder.data_dir)
    _log.info("preparing %s in %s", builder.name, folder)
    try:
        builder.download_and_prepare(download_config=config, file_format="array_record")
    except Exception as error:  # a builder's own code, the network, the disk
        if not (folder / "dataset_info.json").is_file():  # no other process was quicker
            reason = records.first_line(error)
            raise UserError(f"TFDS could not prepare {builder.name}: {reason}") from error
    return folder
