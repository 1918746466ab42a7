"""The decoded cache: decoded once, always whole, and only in folders that can be written."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cifar_jax.data import cache, datasets
from cifar_jax.data import tfds as tfds_lib
from tests import tiny_cifar
from tests.faults import damages, stops


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A private copy of the small prepared CIFAR-10, and a private cache folder beside it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tiny_cifar.copy_prepared(tmp_path / "data")


@pytest.fixture
def no_decoding(monkeypatch):
    """Returns a function that makes decoding fail: what loads after it comes from the cache."""

    def refuse(source, split):
        raise AssertionError(f"decoded {split} again")

    return lambda: monkeypatch.setattr(tfds_lib, "decode", refuse)


def test_statistics_are_those_of_numpy():
    images = np.random.default_rng(0).integers(0, 256, (1000, 3, 5, 3), np.uint8)
    images[..., 2] = 51
    mean, std = cache.channel_statistics(images)
    as_float = images.astype(np.float64) / 255
    np.testing.assert_allclose(mean, as_float.mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(std[:2], as_float.std((0, 1, 2))[:2], rtol=1e-12)
    assert (mean[2], std[2]) == (0.2, 1.0)  # a constant channel may be divided by its std


def cache_files(root):
    return sorted(path.name for path in (root / "cifar10/3.0.2/decoded").iterdir())


def test_a_split_is_decoded_once_beside_the_data(root, no_decoding, tmp_path):
    first = datasets.load_dataset("cifar10", str(root))
    kinds = [name.rpartition("-")[0] or name for name in cache_files(root)]
    assert kinds == [
        "test-images", "test-labels", "test.json", "train-images", "train-labels", "train.json",
    ]  # fmt: skip
    assert not (tmp_path / "cache").exists()
    no_decoding()
    second = datasets.load_dataset("cifar10", str(root))
    assert (second.mean, second.std, second.class_names) == (
        first.mean,
        first.std,
        first.class_names,
    )
    np.testing.assert_array_equal(second.splits["train"].images, first.splits["train"].images)
    np.testing.assert_array_equal(second.splits["train"].labels, first.splits["train"].labels)


@pytest.mark.parametrize(
    "damage", ["bit", "short", "empty", "gone", "json", "keys", "mean", "std", "class_names"]
)
def test_a_damaged_cache_is_rebuilt(root, damage, caplog):
    before = datasets.load_dataset("cifar10", str(root))
    images, labels = map(np.array, before.splits["train"][:2])
    folder = root / "cifar10/3.0.2/decoded"
    names = cache_files(root)
    (file,) = folder.glob("train-images-*.npy")
    if damage == "bit":
        content = bytearray(file.read_bytes())
        content[-1000] ^= 4
        file.write_bytes(content)
    elif damage == "short":
        os.truncate(file, 5000)
    elif damage == "empty":
        os.truncate(file, 0)
    elif damage == "gone":
        file.unlink()
    elif damage in ("mean", "std", "class_names"):
        record = json.loads((folder / "train.json").read_text())
        record[damage][0] = "dog" if damage == "class_names" else record[damage][0] + 1e-9
        (folder / "train.json").write_text(json.dumps(record))
    else:
        (folder / "train.json").write_text({"json": "{", "keys": "{}"}[damage])
    after = datasets.load_dataset("cifar10", str(root))
    np.testing.assert_array_equal(after.splits["train"].images, images)
    np.testing.assert_array_equal(after.splits["train"].labels, labels)
    assert (after.mean, after.std, after.class_names) == (
        before.mean,
        before.std,
        before.class_names,
    )
    assert cache_files(root) == names
    warnings = [one for one in caplog.records if one.levelname == "WARNING"]
    assert len(warnings) == (0 if damage == "gone" else 1)


def test_a_set_prepared_again_is_decoded_again(root):
    source = root / "cifar10/3.0.2"
    datasets.load_dataset("cifar10", str(root))
    before = set(cache_files(root))
    # Another set in the same place: the labels of its classes are the same, the images are not.
    other = tiny_cifar.images_of(tiny_cifar.cifar10_rows(tiny_cifar.NUM_TRAIN, 1))[::-1]
    (source / "features.json").touch()
    built = cache.load_or_build(
        source, "cifar10", "train", lambda: (other.copy(), np.arange(60, dtype=np.int32), ("a",))
    )
    np.testing.assert_array_equal(built.images, other)
    assert built.class_names == ("a",)
    after = set(cache_files(root))
    assert len(after) == len(before)  # the outdated files are gone
    assert len(after & before) == 4  # the two JSON files, and the test split


def test_a_read_only_folder_is_left_alone_and_the_cache_folder_is_used(root, tmp_path):
    source = root / "cifar10/3.0.2"
    source.chmod(0o555)
    try:
        datasets.load_dataset("cifar10", str(root))
        assert not (source / "decoded").exists()
    finally:
        source.chmod(0o755)
    (folder,) = (tmp_path / "cache" / "cifar_jax").iterdir()
    assert folder.name.startswith("cifar10-3.0.2-")
    assert len(list(folder.iterdir())) == 6


def test_without_a_writable_folder_the_images_are_kept_in_memory(
    root, tmp_path, monkeypatch, caplog
):
    source, cache = root / "cifar10/3.0.2", tmp_path / "cache"
    cache.mkdir()
    cache.chmod(0o555)
    source.chmod(0o555)
    try:
        loaded = datasets.load_dataset("cifar10", str(root)).splits["train"]
    finally:
        source.chmod(0o755)
    assert not isinstance(loaded.images, np.memmap)
    assert loaded.images.shape == (60, 32, 32, 3)
    assert not loaded.images.flags.writeable
    assert "kept in memory" in caplog.text
    assert list(cache.iterdir()) == []


def test_a_full_disk_is_not_an_error(root, tmp_path, monkeypatch, caplog):
    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    loaded = datasets.load_dataset("cifar10", str(root))
    assert loaded.splits["train"].images.shape == (60, 32, 32, 3)
    assert "No space left on device" in caplog.text
    leftovers = [path for path in tmp_path.rglob("*") if path.name.startswith(".writing")]
    assert leftovers == []


def test_what_a_killed_process_left_is_cleared(root, no_decoding):
    folder = root / "cifar10/3.0.2/decoded"
    datasets.load_dataset("cifar10", str(root))
    (folder / ".writing-0123").write_bytes(bytes(1000))
    no_decoding()
    datasets.load_dataset("cifar10", str(root))
    assert not list(folder.glob(".writing-*"))


def test_two_processes_may_decode_at_once(root):
    program = (
        "import sys, numpy as np; from cifar_jax.data import datasets\n"
        "train = datasets.load_dataset('cifar10', sys.argv[1]).splits['train']\n"
        "print(int(np.sum(train.images, dtype=np.int64)), type(train.images).__name__)"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", program, str(root)]
    started = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    rows = tiny_cifar.cifar10_rows(tiny_cifar.NUM_TRAIN, 1)
    expected = f"{int(rows[:, 1:].sum())} memmap\n"
    assert [process.communicate()[0] for process in started] == [expected] * 3
    assert len(cache_files(root)) == 6


def test_random_damage_is_found_before_use(tmp_path):
    for number in range(100):
        outcome = damages.damage_cache(tmp_path / "set", random.Random(number))
        assert outcome == stops.SURVIVED
