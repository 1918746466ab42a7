"""TFDS's prepared folders: checking, decoding and making them."""

import http.client
import importlib.util
import io
import json
import logging
import sys
import urllib.error
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from cifar_jax.data.download import open_url
from cifar_jax.data.splits import SplitSize
from cifar_jax.errors import UserError
from cifar_jax.text import first_line, is_terminal

_READ_AT_ONCE = 1000
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_log = logging.getLogger(__name__)


def read_sizes(source: Path) -> dict[str, SplitSize]:
    """Returns the sizes of the splits in a prepared folder that hold images, by their names.

    Raises:
      UserError: the folder's description cannot be read.
    """
    file = source / "dataset_info.json"
    try:
        info = json.loads(file.read_text(encoding="utf-8"))
        shards = {split["name"]: list(map(int, split["shardLengths"])) for split in info["splits"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"cannot read {file} ({error}): prepare the set again") from error
    return {name: SplitSize(sum(own), own) for name, own in shards.items() if sum(own)}


def check_features(name: str, features: Any) -> None:
    """Checks that a TFDS set holds labelled 8-bit images of one size.

    Args:
      name: the set's name.
      features: the set's `tfds.features.FeaturesDict`.

    Raises:
      UserError: it does not.
    """
    import tensorflow_datasets as tfds

    parts = dict(features) if isinstance(features, tfds.features.FeaturesDict) else {}
    image, label = parts.get("image"), parts.get("label")
    if not isinstance(image, tfds.features.Image) or not isinstance(
        label, tfds.features.ClassLabel
    ):
        raise UserError(
            f"{name} is not an image classification set: it has no image 'image' with a class "
            "'label'"
        )
    if None in image.shape:
        raise UserError(f"the images of {name} differ in size: only sets with one size can be used")
    if image.np_dtype != np.uint8 or image.shape[-1] not in _MODES:
        raise UserError(f"the images of {name} do not have 8-bit grey or colour pixels")


def require_tensorflow(purpose: str) -> None:
    """Checks that TensorFlow is installed, without importing it.

    Args:
      purpose: what needs it, as the subject of "needs TensorFlow".

    Raises:
      UserError: it is not installed.
    """
    if importlib.util.find_spec("tensorflow") is None:
        raise UserError(
            f"{purpose} needs TensorFlow: pip install 'cifar_jax[tf]'; or prepare the set "
            "elsewhere by TFDS with file_format='array_record', and set TFDS_DATA_DIR"
        )


def has_array_record() -> bool:
    """Whether ArrayRecord can be read and written, whose package some systems lack."""
    try:
        importlib.import_module("array_record.python.array_record_module")
    except ImportError:
        return False
    return True


def keep_tensorflow_off_accelerators() -> None:
    """Imports TensorFlow and hides the accelerators from it: it would reserve their memory."""
    import tensorflow as tf

    for kind in ("GPU", "TPU"):
        tf.config.set_visible_devices([], kind)


def decode(source: Path, split: str) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Decodes a split of a prepared folder, in the order in which it is stored.

    Args:
      source: the prepared folder, `<data_dir>/<name>/<version>`.
      split: the name of the split.

    Returns:
      Images uint8 [n, height, width, channels], labels int32 [n], and the names of the classes.

    Raises:
      UserError: the folder is damaged, does not hold labelled images of one size, or needs
        TensorFlow, which is not installed.
    """
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder_from_directory(source)
        check_features(builder.info.name, builder.info.features)
        feature, label = (builder.info.features[key] for key in ("image", "label"))
        classes = _read_names(source, label)
        count = builder.info.splits[split].num_examples
        _log.info("decoding the %d images of %s in %s", count, split, source)
        images = np.empty((count, *feature.shape), np.uint8)
        labels = np.empty(count, np.int32)
        for index, record in zip(range(count), _read(builder, split), strict=True):
            images[index] = decode_image(record["image"], feature.shape)
            labels[index] = record["label"]
    except UserError:
        raise
    except Exception as error:  # whatever ArrayRecord, Pillow or TFDS raise for damaged files
        raise UserError(
            f"cannot read the {split} split in {source} ({first_line(error)}): prepare it again"
        ) from error
    return images, labels, classes


def _read_names(source: Path, label: Any) -> tuple[str, ...]:
    """Returns the names of the classes; of a set without any, their numbers.

    TFDS does not complain of a file that it cannot use, and gives numbers or equal names.
    """
    file = Path(label.get_names_filepath(source, "label"))
    try:
        names = [line.strip() for line in file.read_text(encoding="utf-8").split("\n")]
    except FileNotFoundError:
        return tuple(label.names)
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not UTF-8 text ({error.reason}): prepare it again") from error
    names = [name for name in names if name]
    if len(names) != label.num_classes:
        words = f"has {label.num_classes} classes but names for {len(names)}"
        raise UserError(f"{source} {words} ({file.name}): prepare it again")
    if twice := [name for number, name in enumerate(names) if name in names[:number]]:
        raise UserError(f"{source} has two classes {twice[0]!r} ({file.name}): prepare it again")
    return tuple(names)


def _read(builder: Any, split: str) -> Iterator[dict[str, Any]]:
    """Yields the records of a split, their images still compressed."""
    import tensorflow_datasets as tfds

    if builder.info.file_format.value == "array_record" and not has_array_record():
        raise UserError(
            f"reading {builder.data_dir} needs array-record, which is not installed: pip install "
            "array-record; or let TFDS prepare the set again with file_format='tfrecord'"
        )
    decoders = {"image": tfds.decode.SkipDecoding()}
    try:
        stored = builder.as_data_source(split=split, decoders=decoders)
    except NotImplementedError:  # TFRecord
        require_tensorflow(f"reading {builder.data_dir}, which is not ArrayRecord,")
        keep_tensorflow_off_accelerators()
        yield from tfds.as_numpy(builder.as_dataset(split=split, decoders=decoders))
        return
    for start in range(0, len(stored), _READ_AT_ONCE):
        # Reading records one by one takes ArrayRecord three times as long.
        yield from stored.__getitems__(list(range(start, min(start + _READ_AT_ONCE, len(stored)))))


def decode_image(encoded: bytes, shape: tuple[int, int, int]) -> np.ndarray:
    """Returns an encoded image, uint8 of a shape [height, width, channels]."""
    from PIL import Image

    mode = _MODES[shape[-1]]
    with Image.open(io.BytesIO(encoded)) as image:
        return np.asarray(image if image.mode == mode else image.convert(mode)).reshape(shape)


def prepare(name: str, root: Path) -> Path:
    """Prepares a set in a TFDS data directory, downloading what it needs.

    Args:
      name: the TFDS name, with its config if it has one.
      root: the TFDS data directory.

    Returns:
      The set's folder, `<root>/<name>/<version>`.

    Raises:
      UserError: the set does not hold labelled images of one size, cannot be downloaded or
        prepared, or needs TensorFlow, which is not installed.
    """
    import tensorflow_datasets as tfds

    require_tensorflow(f"{name} is not prepared in {root}, and preparing it")
    try:
        builder = tfds.builder(name, data_dir=root)
        urls = list(builder.url_infos or {})
    except Exception as error:  # whatever a builder's own code raises
        raise UserError(f"TFDS cannot make {name}: {first_line(error)}") from error
    check_features(name, builder.info.features)
    if urls and not (root / "downloads").exists():
        _check_network(name, urls[0])
    keep_tensorflow_off_accelerators()
    return build(builder, tfds.download.DownloadConfig(try_download_gcs=False))


def _check_network(name: str, url: str) -> None:
    """Fails within seconds where TFDS would retry for minutes."""
    try:
        open_url(url).close()
    except urllib.error.HTTPError:
        return  # a server answered: TFDS may know how to talk to it
    except (OSError, http.client.HTTPException) as error:
        raise UserError(
            f"cannot download {name} from {url} ({error}): prepare it elsewhere and set "
            "TFDS_DATA_DIR, or train configs/digits.py"
        ) from error


def build(builder: Any, config: Any) -> Path:
    """Makes TFDS write a set, as ArrayRecord where that is installed; returns its folder."""
    import tensorflow_datasets as tfds

    if not is_terminal(sys.stderr):
        tfds.disable_progress_bar()
    folder = Path(builder.data_dir)
    _log.info("preparing %s in %s", builder.name, folder)
    try:
        file_format = "array_record" if has_array_record() else "tfrecord"
        builder.download_and_prepare(download_config=config, file_format=file_format)
    except Exception as error:  # a builder's own code, the network, the disk
        if not (folder / "dataset_info.json").is_file():  # else another process prepared it
            reason = first_line(error)
            raise UserError(f"TFDS could not prepare {builder.name}: {reason}") from error
    return folder
