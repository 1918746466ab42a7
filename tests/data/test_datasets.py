"""Loading sets by name: the digits, prepared TFDS folders, the validation split."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cifar_jax.data import datasets, names
from cifar_jax.errors import UserError
from tests import tiny_cifar

REAL_DATA = Path(os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")).expanduser()


def run_python(program, *arguments, **environment):
    """Runs a program in a fresh interpreter; returns what it printed."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), **environment}
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A private copy of the small prepared CIFAR-10, and a private cache folder beside it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tiny_cifar.copy_prepared(tmp_path / "data")


def test_the_digits_are_complete_and_their_split_is_fixed():
    from sklearn.datasets import load_digits

    digits = datasets.load_dataset("digits")
    train, test = digits.splits["train"], digits.splits["test"]
    assert (train.images.shape, test.images.shape) == ((1437, 32, 32, 1), (360, 32, 32, 1))
    assert (train.images.dtype, train.labels.dtype) == (np.uint8, np.int32)
    assert test.labels[:12].tolist() == [0, 3, 7, 8, 9, 4, 5, 8, 9, 1, 6, 7]
    assert np.bincount(test.labels).tolist() == [44, 44, 32, 32, 28, 33, 41, 40, 31, 35]
    assert digits.class_names == tuple("0123456789")
    raw = load_digits()
    both = np.concatenate([train.labels, test.labels])
    assert np.bincount(both).tolist() == np.bincount(raw.target).tolist()
    # Enlarging keeps the mean of an image, except near the border, and makes no pixel brighter.
    assert digits.splits["train"].images.max() == 255
    means = np.concatenate([train.images, test.images]).mean((1, 2, 3))
    np.testing.assert_allclose(np.sort(means), np.sort(raw.images.mean((1, 2)) * 255 / 16), atol=5)
    with pytest.raises(ValueError, match="read-only"):
        train.images[0, 0, 0, 0] = 1


def test_a_prepared_set_is_read_as_written(root, monkeypatch):
    loaded = datasets.load_dataset("cifar10", str(root))
    for split, count, seed in (("train", tiny_cifar.NUM_TRAIN, 1), ("test", 20, 2)):
        rows = tiny_cifar.cifar10_rows(count, seed)
        images, labels, _ = loaded.splits[split]
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
    # The environment can name the directory; the statistics are still those of the training split.
    monkeypatch.setenv("TFDS_DATA_DIR", str(root))
    only_test = datasets.load_dataset("cifar10", splits=("test",))
    assert list(only_test.splits) == ["test"]
    assert only_test.mean == loaded.mean


def test_an_unknown_split_lists_the_known(root):
    with pytest.raises(UserError, match="no split 'validation': it has train, test"):
        datasets.load_dataset("cifar10", str(root), splits=("train", "validation"))
    with pytest.raises(UserError, match="no split 'extra': it has train, test"):
        datasets.load_dataset("digits", splits=("extra",))


@pytest.mark.parametrize("place", ["gs://bucket/data", __file__])
def test_the_data_directory_must_be_a_local_folder(place):
    with pytest.raises(UserError, match="is not a local folder"):
        datasets.load_dataset("cifar10", place)


def test_known_names_pass():
    plain = ("digits", "cifar10", "cifar100", "mnist", "svhn_cropped", "emnist/letters")
    for name in (*plain, "cifar10:3.0.2", "mnist:3.*.*", "emnist/letters:3.1.0"):
        names.check_name(name, "/nowhere")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cifar11", r"unknown dataset 'cifar11': did you mean cifar10 or.* for instance cifar10, "),
        ("fashion-mnist", "did you mean fashion_mnist"),
        ("digits/x", "digits has no configs or versions, leave it out"),
        ("digit", r"did you mean .*\bdigits\b"),
        ("qqqqqqqq", "unknown dataset 'qqqqqqqq': Give NAME, NAME/CONFIG"),
        ("cifar10:9.0.0", "cifar10 has version 3.0.2"),
        ("emnist/letters:9.*.*", "emnist has version 3"),
        ("cifar10:3", r"cifar10 has version 3.0.2"),
        ("cifar10/../mnist", "Give NAME, NAME/CONFIG"),
        ("", "Give NAME, NAME/CONFIG"),
    ],
)
def test_unknown_names_are_refused(name, message):
    with pytest.raises(UserError, match=message) as caught:
        names.check_name(name, "/nowhere")
    assert "\n" not in str(caught.value)


def test_checking_names_and_reading_import_neither_tensorflow_nor_torch(root):
    program = (
        "import sys; from cifar_jax.data import datasets, names\n"
        "names.check_name('svhn_cropped', sys.argv[1])\n"
        "for name in ('digits', 'cifar10', 'cifar10'): datasets.load_dataset(name, sys.argv[1])\n"
        "print([m for m in ('tensorflow', 'torch', 'jax') if m in sys.modules])"
    )
    assert run_python(program, str(root)) == "[]\n"


def test_a_decoded_set_is_loaded_without_tfds(root):
    datasets.load_dataset("cifar10", str(root))
    program = (
        "import sys; from cifar_jax.data import datasets, names\n"
        "datasets.load_dataset('cifar10', sys.argv[1])\n"
        "print('tensorflow_datasets' in sys.modules)"
    )
    assert run_python(program, str(root)) == "False\n"


def test_carving_moves_images_and_loses_none(root):
    whole = datasets.load_dataset("cifar10", str(root))
    carved = datasets.carve_validation(whole, 12, seed=3)
    train, validation = carved.splits["train"], carved.splits["validation"]
    assert (len(train.labels), len(validation.labels)) == (48, 12)
    parts = tiny_cifar.by_content(*train[:2]) + tiny_cifar.by_content(*validation[:2])
    assert sorted(parts) == tiny_cifar.by_content(*whole.splits["train"][:2])
    assert carved.splits["test"] is whole.splits["test"]
    assert (carved.mean, carved.std) == (whole.mean, whole.std)
    again = datasets.carve_validation(whole, 12, seed=3)
    np.testing.assert_array_equal(again.splits["validation"].images, validation.images)
    other = datasets.carve_validation(whole, 12, seed=4).splits["validation"]
    assert tiny_cifar.by_content(*other[:2]) != tiny_cifar.by_content(*validation[:2])


@pytest.mark.parametrize("count", [0, -1, 1437])
def test_a_validation_split_must_fit(count):
    with pytest.raises(UserError, match="give a number from 1 to 1436"):
        datasets.carve_validation(datasets.load_dataset("digits"), count, seed=0)


def test_an_existing_validation_split_is_not_replaced():
    digits = datasets.carve_validation(datasets.load_dataset("digits"), 100, seed=0)
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
        "d = datasets.load_dataset('cifar10', sys.argv[1])\n"
        "counts = [np.bincount(d.splits[s].labels).tolist() for s in ('train', 'test')]\n"
        "tensorflow = 'tensorflow' in sys.modules\n"
        "print(json.dumps([d.class_names, d.mean, d.std, counts, tensorflow]))"
    )
    seconds = []
    for _ in range(2):
        # Processor time: it depends less on other work on the machine.
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        output = run_python(program, str(tmp_path / "data"))
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        class_names, mean, std, counts, tensorflow = json.loads(output)
        assert class_names == tiny_cifar.CLASSES
        np.testing.assert_allclose(mean, [0.49139968, 0.48215841, 0.44653091], atol=1e-8)
        np.testing.assert_allclose(std, [0.24703223, 0.24348513, 0.26158784], atol=1e-8)
        assert counts == [[5000] * 10, [1000] * 10]
        assert not tensorflow
    assert seconds[0] < 12
    assert seconds[1] < 1
