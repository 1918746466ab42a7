"""Prepared TFDS folders: what is found, what is refused, what is damaged."""

import importlib.util
import json
import shutil

import numpy as np
import pytest
import tensorflow_datasets as tfds

from cifar_jax import files
from cifar_jax.data import datasets, names
from cifar_jax.errors import UserError
from tests import own_set, tiny_cifar

HAS_TENSORFLOW = importlib.util.find_spec("tensorflow") is not None


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A private copy of the small prepared CIFAR-10, and a private cache folder beside it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tiny_cifar.copy_prepared(tmp_path / "data")


def test_a_set_of_the_users_own(tmp_path):
    own_set.prepare(tmp_path, "shades", train=[(0, "L"), (1, "RGB"), (0, "P")])
    names.check_name("shades", str(tmp_path))
    loaded = datasets.load_dataset("shades", str(tmp_path), splits=("train",))
    images, labels, _ = loaded.splits["train"]
    assert loaded.class_names == ("dark", "light")
    assert images.shape == (3, 4, 5, 1)
    np.testing.assert_array_equal(images, 100 + labels[:, None, None, None] + 0 * images)
    assert sorted(labels) == [0, 0, 1]
    # The newest version is taken, compared by numbers and not as text.
    shutil.copytree(tmp_path / "shades" / "1.0.0", tmp_path / "shades" / "1.0.10")
    shutil.copytree(tmp_path / "shades" / "1.0.0", tmp_path / "shades" / "1.0.9")
    assert names.find_prepared("shades", tmp_path) == tmp_path / "shades" / "1.0.10"


def test_a_name_may_have_a_version(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    first = own_set.prepare(tmp_path, "shades", train=[(0, "L"), (1, "L")])
    second = shutil.copytree(first, tmp_path / "shades" / "1.1.0")
    for name in ("shades:1.0.0", "shades/1.0.0", "shades:1.0.*", "shades:*.0.*"):
        names.check_name(name, str(tmp_path))
        assert names.find_prepared(name, tmp_path) == first
        loaded = datasets.load_dataset(name, str(tmp_path), splits=("train",))
        assert len(loaded.splits["train"].labels) == 2
    assert names.find_prepared("shades:1.*.*", tmp_path) == second
    # However the set is named, it is decoded once.
    (record,) = (first / "decoded").glob("*.json")
    before = record.stat().st_mtime_ns
    assert len(datasets.load_dataset("shades:1.0.0", str(tmp_path), ("train",)).splits) == 1
    assert record.stat().st_mtime_ns == before
    with pytest.raises(UserError, match=r"'shades:2\.0\.0': there is version 1\.1\.0"):
        names.check_name("shades:2.0.0", str(tmp_path))


@pytest.mark.parametrize("change", ["fewer", "more", "labels"])
def test_class_names_must_fit_the_labels(tmp_path, monkeypatch, change):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    three = tfds.features.ClassLabel(names=["a", "b", "c"])
    examples = [(0, "L"), (1, "L"), (2, "L")]
    folder = own_set.prepare(tmp_path, "shades", label=three, train=examples)
    if change == "labels":  # in a cache of a version that did not notice
        datasets.load_dataset("shades", str(tmp_path), ("train",))
        record = json.loads((folder / "decoded" / "train.json").read_text())
        del record["sha256"], record["class_names"][2]
        record["sha256"] = files.digest(record)
        (folder / "decoded" / "train.json").write_text(json.dumps(record))
        message = "shades has labels from 0 to 2 but 2 class names: prepare it again"
    else:
        kept = ["a", "b"] if change == "fewer" else ["a", "b", "c", "d"]
        (folder / "label.labels.txt").write_text("\n".join(kept) + "\n")
        message = f"has 3 classes but names for {len(kept)} "
    with pytest.raises(UserError, match=message) as caught:
        datasets.load_dataset("shades", str(tmp_path), ("train",))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"dark\ndark\n", r"shades/1.0.0 has two classes 'dark' \(label.labels.txt\): prepare"),
        (b"", r"has 2 classes but names for 0 \(label.labels.txt\): prepare it again"),
        (b"dark\n \n", r"has 2 classes but names for 1 \(label.labels.txt\): prepare it again"),
        (b"dark\n\xff\xfe\n", r"label.labels.txt is not UTF-8 text \(.*\): prepare it again"),
    ],
)
def test_a_file_of_names_that_tfds_passes_over_is_refused(tmp_path, content, message):
    folder = own_set.prepare(tmp_path, "shades", train=[(0, "L"), (1, "L")])
    (folder / "label.labels.txt").write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        datasets.load_dataset("shades", str(tmp_path), ("train",))
    assert "\n" not in str(caught.value)


def test_a_set_without_names_has_numbers(tmp_path):
    three = tfds.features.ClassLabel(num_classes=3)
    own_set.prepare(tmp_path, "shades", label=three, train=[(0, "L"), (2, "L")])
    dataset = datasets.load_dataset("shades", str(tmp_path), ("train",))
    assert dataset.class_names == ("0", "1", "2")


def test_configs_are_found(tmp_path):
    own_set.prepare(tmp_path, "shades", train=[(0, "L"), (1, "L")])
    (tmp_path / "many").mkdir()
    shutil.move(tmp_path / "shades", tmp_path / "many" / "pale")
    (tmp_path / "many" / ".config").mkdir()
    (tmp_path / "many/.config/metadata.json").write_text('{"default_config_name": "pale"}')
    expected = tmp_path / "many" / "pale" / "1.0.0"
    assert names.find_prepared("many/pale", tmp_path) == expected
    assert names.find_prepared("many", tmp_path) == expected
    assert names.find_prepared("many/dark", tmp_path) is None


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ({"image": tfds.features.Image(shape=(None, None, 1))}, "differ in size"),
        ({"image": tfds.features.Image(shape=(4, 5, 1), dtype=np.uint16)}, "8-bit"),
        ({"label": tfds.features.Scalar(dtype=np.int64)}, "not an image classification set"),
    ],
)
def test_sets_of_another_kind_are_refused(tmp_path, features, message):
    own_set.prepare(tmp_path, "shades", train=[(0, "L"), (1, "L")], **features)
    with pytest.raises(UserError, match=message):
        datasets.load_dataset("shades", str(tmp_path), splits=("train",))


def test_images_without_a_class_are_refused(tmp_path):
    own_set.prepare(tmp_path, "shades", train=[(0, "L"), (-1, "L")])
    with pytest.raises(UserError, match="images without a class"):
        datasets.load_dataset("shades", str(tmp_path), splits=("train",))


@pytest.mark.skipif(HAS_TENSORFLOW, reason="TensorFlow is installed")
def test_tfrecord_asks_for_tensorflow(root):
    file = root / "cifar10/3.0.2/dataset_info.json"
    file.write_text(file.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(UserError, match=r"needs TensorFlow: pip install 'cifar_jax\[tf\]'"):
        datasets.load_dataset("cifar10", str(root))


@pytest.mark.parametrize("damage", ["shortened", "missing", "flipped", "description"])
def test_a_damaged_folder_gives_one_clear_error(root, damage):
    folder = root / "cifar10/3.0.2"
    file = folder / "cifar10-train.array_record-00000-of-00001"
    content = bytearray(file.read_bytes())
    if damage == "shortened":
        file.write_bytes(content[: len(content) // 2])
    elif damage == "missing":
        file.unlink()
    elif damage == "flipped":
        content[len(content) // 2] ^= 255
        file.write_bytes(content)
    else:
        (folder / "dataset_info.json").write_text("{")
    with pytest.raises(UserError, match=r"cannot read .*prepare .*again") as caught:
        datasets.load_dataset("cifar10", str(root))
    assert "\n" not in str(caught.value)
