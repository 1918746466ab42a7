"""Loading sets by name: the digits, prepared TFDS folders, the validation split."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cifar_jax.data import datasets
from cifar_jax.errors import UserError
from tests import tiny_cifar

REAL_DATA = Path(os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")).expanduser()


def run_python(program, *arguments, **environment):
    """Runs a program in a fresh interpreter; returns what it printed."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), **environment}
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A private copy of the small prepared CIFAR-10, and a private cache folder beside it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tiny_cifar.copy_prepared(tmp_path / "data")


def test_digits_are_all_there_and_the_split_is_fixed():
    from sklearn.datasets import load_digits

    digits = datasets.load("digits")
    train, test = digits.splits["train"], digits.splits["test"]
    assert (train.images.shape, test.images.shape) == ((1437, 32, 32, 1), (360, 32, 32, 1))
    assert (train.images.dtype, train.labels.dtype) == (np.uint8, np.int32)
    assert test.labels[:12].tolist() == [0, 3, 7, 8, 9, 4, 5, 8, 9, 1, 6, 7]
    assert np.bincount(test.labels).tolist() == [44, 44, 32, 32, 28, 33, 41, 40, 31, 35]
    assert digits.class_names == tuple("0123456789")
    raw = load_digits()
    both = np.concatenate([train.labels, test.labels])
    assert np.bincount(both).tolist() == np.bincount(raw.target).tolist()
    # Enlarging keeps the mean of an image but for the border, and makes no pixel brighter.
    assert digits.splits["train"].images.max() == 255
    means = np.concatenate([train.images, test.images]).mean((1, 2, 3))
    np.testing.assert_allclose(np.sort(means), np.sort(raw.images.mean((1, 2)) * 255 / 16), atol=5)
    with pytest.raises(ValueError, match="read-only"):
        train.images[0, 0, 0, 0] = 1


def test_a_prepared_set_is_read_as_it_was_written(root, monkeypatch):
    loaded = datasets.load("cifar10", str(root))
    for split, count, seed in (("train", tiny_cifar.NUM_TRAIN, 1), ("test", 20, 2)):
        rows = tiny_cifar.cifar10_rows(count, seed)
        images, labels = loaded.splits[split]
        assert isinstance(images, np.memmap)
        assert (images.dtype, labels.dtype) == (np.uint8, np.int32)
        assert tiny_cifar.by_content(images, labels) == tiny_cifar.by_content(
            tiny_cifar.images_of(rows), rows[:, 0]
        )
        with pytest.raises(ValueError, match="read-only"):
            images[0, 0, 0, 0] = 1
    assert loaded.class_names == tuple(tiny_cifar.CLASSES)
    train = tiny_cifar.images_of(tiny_cifar.cifar10_rows(tiny_cifar.NUM_TRAIN, 1)) / 255
    np.testing.assert_allclose(loaded.mean, train.mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(loaded.std, train.std((0, 1, 2)), rtol=1e-12)
    # The environment names the directory too; the statistics stay those of the training split.
    monkeypatch.setenv("TFDS_DATA_DIR", str(root))
    only_test = datasets.load("cifar10", splits=("test",))
    assert list(only_test.splits) == ["test"]
    assert only_test.mean == loaded.mean


def test_an_unknown_split_lists_the_known(root):
    with pytest.raises(UserError, match="no split 'validation': it has train, test"):
        datasets.load("cifar10", str(root), splits=("train", "validation"))
    with pytest.raises(UserError, match="no split 'extra': it has train, test"):
        datasets.load("digits", splits=("extra",))


@pytest.mark.parametrize("place", ["gs://bucket/data", __file__])
def test_the_data_directory_must_be_a_local_folder(place):
    with pytest.raises(UserError, match="is not a local folder"):
        datasets.load("cifar10", place)


def test_known_names_pass():
    for name in ("digits", "cifar10", "cifar100", "mnist", "svhn_cropped", "emnist/letters"):
        datasets.check_name(name, "/nowhere")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cifar11", r"unknown dataset 'cifar11': did you mean cifar10 or.* for instance cifar10, "),
        ("fashion-mnist", "did you mean fashion_mnist"),
        ("digits/x", "Give NAME or NAME/CONFIG"),
        ("digit", r"did you mean .*\bdigits\b"),
        ("qqqqqqqq", "unknown dataset 'qqqqqqqq': Give NAME or NAME/CONFIG"),
        ("cifar10:3.0.2", "did you mean cifar10.* Give NAME or NAME/CONFIG"),
        ("cifar10/../mnist", "Give NAME or NAME/CONFIG"),
        ("", "Give NAME or NAME/CONFIG"),
    ],
)
def test_unknown_names_are_refused(name, message):
    with pytest.raises(UserError, match=message) as caught:
        datasets.check_name(name, "/nowhere")
    assert "\n" not in str(caught.value)


def test_neither_names_nor_reading_import_tensorflow_or_torch(root):
    program = (
        "import sys; from cifar_jax.data import datasets\n"
        "datasets.check_name('svhn_cropped', sys.argv[1])\n"
        "for name in ('digits', 'cifar10', 'cifar10'): datasets.load(name, sys.argv[1])\n"
        "print([m for m in ('tensorflow', 'torch', 'jax') if m in sys.modules])"
    )
    assert run_python(program, str(root)) == "[]\n"


def test_what_is_decoded_is_loaded_without_tfds(root):
    datasets.load("cifar10", str(root))
    program = (
        "import sys; from cifar_jax.data import datasets; datasets.load('cifar10', sys.argv[1])\n"
        "print('tensorflow_datasets' in sys.modules)"
    )
    assert run_python(program, str(root)) == "False\n"


def test_carving_moves_images_and_loses_none(root):
    whole = datasets.load("cifar10", str(root))
    carved = datasets.carve_validation(whole, 12, seed=3)
    train, validation = carved.splits["train"], carved.splits["validation"]
    assert (len(train.labels), len(validation.labels)) == (48, 12)
    parts = tiny_cifar.by_content(*train) + tiny_cifar.by_content(*validation)
    assert sorted(parts) == tiny_cifar.by_content(*whole.splits["train"])
    assert carved.splits["test"] is whole.splits["test"]
    assert (carved.mean, carved.std) == (whole.mean, whole.std)
    again = datasets.carve_validation(whole, 12, seed=3)
    np.testing.assert_array_equal(again.splits["validation"].images, validation.images)
    other = datasets.carve_validation(whole, 12, seed=4).splits["validation"]
    assert tiny_cifar.by_content(*other) != tiny_cifar.by_content(*validation)


def test_the_carved_choice_is_fixed_for_ever():
    held_out, kept = datasets._partition(10, 3, seed=0)
    assert (held_out.tolist(), kept.tolist()) == ([0, 8, 9], [1, 2, 3, 4, 5, 6, 7])


@pytest.mark.parametrize("count", [0, -1, 1437])
def test_a_validation_split_must_fit(count):
    with pytest.raises(UserError, match="give a number from 1 to 1436"):
        datasets.carve_validation(datasets.load("digits"), count, seed=0)


def test_a_validation_split_that_is_there_stays():
    digits = datasets.carve_validation(datasets.load("digits"), 100, seed=0)
    with pytest.raises(UserError, match="already has a validation split"):
        datasets.carve_validation(digits, 100, seed=0)


@pytest.mark.slow
@pytest.mark.skipif(not (REAL_DATA / "cifar10/3.0.2").exists(), reason="no CIFAR-10 at hand")
def test_the_real_cifar10_cold_and_warm(tmp_path):
    (tmp_path / "data/cifar10/3.0.2").mkdir(parents=True)
    for file in (REAL_DATA / "cifar10/3.0.2").iterdir():
        if file.is_file():
            (tmp_path / "data/cifar10/3.0.2" / file.name).symlink_to(file)
    program = (
        "import json, sys, numpy as np; from cifar_jax.data import datasets\n"
        "d = datasets.load('cifar10', sys.argv[1])\n"
        "counts = [np.bincount(d.splits[s].labels).tolist() for s in ('train', 'test')]\n"
        "readers = [name in sys.modules for name in ('tensorflow', 'tensorflow_datasets')]\n"
        "print(json.dumps([d.class_names, d.mean, d.std, counts, readers]))"
    )
    for cold in (True, False):
        output = run_python(program, str(tmp_path / "data"))
        class_names, mean, std, counts, readers = json.loads(output)
        assert class_names == tiny_cifar.CLASSES
        np.testing.assert_allclose(mean, [0.49139968, 0.48215841, 0.44653091], atol=1e-8)
        np.testing.assert_allclose(std, [0.24703223, 0.24348513, 0.26158784], atol=1e-8)
        assert counts == [[5000] * 10, [1000] * 10]
        assert readers == [False, cold]  # the second time reads the decoded images
