"""Sets of images: the digits, prepared TFDS folders, the decoded cache, the validation split."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
import tiny_cifar

from cifar_jax import datasets, image_cache, records
from cifar_jax.errors import UserError

HAS_TENSORFLOW = importlib.util.find_spec("tensorflow") is not None
REAL_DATA = Path(os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")).expanduser()


def run_python(program, *arguments, **environment):
    """Runs a program in a fresh interpreter; returns what it printed."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent), **environment}
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def prepared_root(tmp_path_factory):
    root = tmp_path_factory.mktemp("tfds")
    tiny_cifar.prepared_cifar10(root)
    return root


@pytest.fixture
def root(prepared_root, tmp_path, monkeypatch):
    """A private copy of the small prepared CIFAR-10, and a private cache folder beside it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    shutil.copytree(prepared_root / "cifar10", tmp_path / "data" / "cifar10")
    return tmp_path / "data"


@pytest.fixture
def no_decoding(monkeypatch):
    """Makes decoding fail, so that what loads came from the cache."""

    def refuse(source, split):
        raise AssertionError(f"decoded {split} again")

    return lambda: monkeypatch.setattr(records, "decode", refuse)


def own_set(root, name, image=None, label=None, examples=((0, "L"), (1, "L"))):
    """Prepares a set of one's own in `root`: images of one grey level, all PNG."""
    import io

    from PIL import Image

    class OwnSet(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            shape = tfds.features.Image(shape=(4, 5, 1)) if image is None else image
            names = tfds.features.ClassLabel(names=["dark", "light"]) if label is None else label
            features = tfds.features.FeaturesDict({"image": shape, "label": names})
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for index, (value, mode) in enumerate(examples):
                png = io.BytesIO()
                Image.new("L", (5, 4), 100 + value).convert(mode).save(png, "PNG")
                yield index, {"image": png.getvalue(), "label": value}

    OwnSet.name = name
    OwnSet(data_dir=root).download_and_prepare(file_format="array_record")


# The digits


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


def test_statistics_are_those_of_numpy():
    images = np.random.default_rng(0).integers(0, 256, (1000, 3, 5, 3), np.uint8)
    images[..., 2] = 51
    mean, std = image_cache.channel_statistics(images)
    as_float = images.astype(np.float64) / 255
    np.testing.assert_allclose(mean, as_float.mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(std[:2], as_float.std((0, 1, 2))[:2], rtol=1e-12)
    assert (mean[2], std[2]) == (0.2, 1.0)  # a constant channel may be divided by its std


# Prepared folders


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


def test_a_set_of_ones_own(tmp_path):
    own_set(tmp_path, "shades", examples=((0, "L"), (1, "RGB"), (0, "P")))
    datasets.check_name("shades", str(tmp_path))
    loaded = datasets.load("shades", str(tmp_path), splits=("train",))
    images, labels = loaded.splits["train"]
    assert loaded.class_names == ("dark", "light")
    assert images.shape == (3, 4, 5, 1)
    np.testing.assert_array_equal(images, 100 + labels[:, None, None, None] + 0 * images)
    assert sorted(labels) == [0, 0, 1]
    # The newest version is taken, by number and not by spelling.
    shutil.copytree(tmp_path / "shades" / "1.0.0", tmp_path / "shades" / "1.0.10")
    shutil.copytree(tmp_path / "shades" / "1.0.0", tmp_path / "shades" / "1.0.9")
    assert records.find_prepared("shades", tmp_path) == tmp_path / "shades" / "1.0.10"


def test_configs_are_found(tmp_path):
    own_set(tmp_path, "shades")
    (tmp_path / "many").mkdir()
    shutil.move(tmp_path / "shades", tmp_path / "many" / "pale")
    (tmp_path / "many" / ".config").mkdir()
    (tmp_path / "many/.config/metadata.json").write_text('{"default_config_name": "pale"}')
    expected = tmp_path / "many" / "pale" / "1.0.0"
    assert records.find_prepared("many/pale", tmp_path) == expected
    assert records.find_prepared("many", tmp_path) == expected
    assert records.find_prepared("many/dark", tmp_path) is None


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ({"image": tfds.features.Image(shape=(None, None, 1))}, "differ in size"),
        ({"image": tfds.features.Image(shape=(4, 5, 1), dtype=np.uint16)}, "8-bit"),
        ({"label": tfds.features.Scalar(dtype=np.int64)}, "not an image classification set"),
    ],
)
def test_sets_of_another_kind_are_refused(tmp_path, features, message):
    own_set(tmp_path, "shades", **features)
    with pytest.raises(UserError, match=message):
        datasets.load("shades", str(tmp_path), splits=("train",))


def test_images_without_a_class_are_refused(tmp_path):
    own_set(tmp_path, "shades", examples=((0, "L"), (-1, "L")))
    with pytest.raises(UserError, match="images without a class"):
        datasets.load("shades", str(tmp_path), splits=("train",))


def test_an_unknown_split_lists_the_known(root):
    with pytest.raises(UserError, match="no split 'validation': it has train, test"):
        datasets.load("cifar10", str(root), splits=("train", "validation"))
    with pytest.raises(UserError, match="no split 'extra': it has train, test"):
        datasets.load("digits", splits=("extra",))


@pytest.mark.skipif(HAS_TENSORFLOW, reason="TensorFlow is installed")
def test_tfrecord_asks_for_tensorflow(root):
    file = root / "cifar10/3.0.2/dataset_info.json"
    file.write_text(file.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(UserError, match=r"needs TensorFlow: pip install 'cifar_jax\[tf\]'"):
        datasets.load("cifar10", str(root))


@pytest.mark.parametrize("damage", ["shortened", "missing", "flipped", "description"])
def test_a_damaged_folder_is_one_clear_error(root, damage):
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
        datasets.load("cifar10", str(root))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("place", ["gs://bucket/data", __file__])
def test_the_data_directory_must_be_a_local_folder(place):
    with pytest.raises(UserError, match="is not a local folder"):
        datasets.load("cifar10", place)


# The decoded cache


def cache_files(root):
    return sorted(path.name for path in (root / "cifar10/3.0.2/decoded").iterdir())


def test_a_split_is_decoded_once_beside_the_data(root, no_decoding, tmp_path):
    first = datasets.load("cifar10", str(root))
    kinds = [name.rpartition("-")[0] or name for name in cache_files(root)]
    assert kinds == [
        "test-images", "test-labels", "test.json", "train-images", "train-labels", "train.json",
    ]  # fmt: skip
    assert not (tmp_path / "cache").exists()
    no_decoding()
    second = datasets.load("cifar10", str(root))
    assert (second.mean, second.std, second.class_names) == (
        first.mean,
        first.std,
        first.class_names,
    )
    np.testing.assert_array_equal(second.splits["train"].images, first.splits["train"].images)
    np.testing.assert_array_equal(second.splits["train"].labels, first.splits["train"].labels)


@pytest.mark.parametrize("damage", ["bit", "short", "empty", "gone", "json", "keys"])
def test_a_damaged_cache_is_rebuilt(root, damage, caplog):
    before = datasets.load("cifar10", str(root)).splits["train"]
    images, labels = np.array(before.images), np.array(before.labels)
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
    else:
        (folder / "train.json").write_text({"json": "{", "keys": "{}"}[damage])
    after = datasets.load("cifar10", str(root)).splits["train"]
    np.testing.assert_array_equal(after.images, images)
    np.testing.assert_array_equal(after.labels, labels)
    assert cache_files(root) == names
    assert len(caplog.messages) == (0 if damage == "gone" else 1)


def test_data_prepared_again_are_decoded_again(root):
    source = root / "cifar10/3.0.2"
    datasets.load("cifar10", str(root))
    before = set(cache_files(root))
    # Another set in the same place: the labels of its classes are the same, the images are not.
    other = tiny_cifar.images_of(tiny_cifar.cifar10_rows(tiny_cifar.NUM_TRAIN, 1))[::-1]
    (source / "features.json").touch()
    built = image_cache.load_or_build(
        source, "cifar10", "train", lambda: (other.copy(), np.arange(60, dtype=np.int32), ("a",))
    )
    np.testing.assert_array_equal(built.images, other)
    assert built.class_names == ("a",)
    after = set(cache_files(root))
    assert len(after) == len(before)  # what is outdated is gone
    assert len(after & before) == 4  # the two JSON files, and the test split


def test_a_read_only_folder_is_left_alone_and_the_cache_folder_is_used(root, tmp_path):
    source = root / "cifar10/3.0.2"
    source.chmod(0o555)
    try:
        datasets.load("cifar10", str(root))
        assert not (source / "decoded").exists()
    finally:
        source.chmod(0o755)
    (folder,) = (tmp_path / "cache" / "cifar_jax").iterdir()
    assert folder.name.startswith("cifar10-3.0.2-")
    assert len(list(folder.iterdir())) == 6


def test_where_nothing_can_be_written_the_images_stay_in_memory(
    root, tmp_path, monkeypatch, caplog
):
    source, cache = root / "cifar10/3.0.2", tmp_path / "cache"
    cache.mkdir()
    cache.chmod(0o555)
    source.chmod(0o555)
    try:
        loaded = datasets.load("cifar10", str(root)).splits["train"]
    finally:
        source.chmod(0o755)
    assert not isinstance(loaded.images, np.memmap)
    assert loaded.images.shape == (60, 32, 32, 3)
    assert not loaded.images.flags.writeable
    assert "kept in memory" in caplog.text
    assert list(cache.iterdir()) == []


def test_a_full_disk_is_no_error(root, tmp_path, monkeypatch, caplog):
    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    loaded = datasets.load("cifar10", str(root))
    assert loaded.splits["train"].images.shape == (60, 32, 32, 3)
    assert "No space left on device" in caplog.text
    leftovers = [path for path in tmp_path.rglob("*") if path.name.startswith(".writing")]
    assert leftovers == []


def test_two_processes_may_decode_at_once(root):
    program = (
        "import sys, numpy as np; from cifar_jax import datasets\n"
        "train = datasets.load('cifar10', sys.argv[1]).splits['train']\n"
        "print(int(np.sum(train.images, dtype=np.int64)), type(train.images).__name__)"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    command = [sys.executable, "-c", program, str(root)]
    started = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    rows = tiny_cifar.cifar10_rows(tiny_cifar.NUM_TRAIN, 1)
    expected = f"{int(rows[:, 1:].sum())} memmap\n"
    assert [process.communicate(timeout=120)[0] for process in started] == [expected] * 3
    assert len(cache_files(root)) == 6


# Names


def test_known_names_pass():
    for name in ("digits", "cifar10", "cifar100", "mnist", "svhn_cropped", "emnist/letters"):
        datasets.check_name(name, "/nowhere")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cifar11", r"unknown dataset 'cifar11': did you mean cifar10 or.* tested are cifar10, "),
        ("fashion-mnist", "did you mean fashion_mnist"),
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
        "import sys; from cifar_jax import datasets\n"
        "datasets.check_name('svhn_cropped', sys.argv[1])\n"
        "for name in ('digits', 'cifar10', 'cifar10'): datasets.load(name, sys.argv[1])\n"
        "print([m for m in ('tensorflow', 'torch', 'jax') if m in sys.modules])"
    )
    assert run_python(program, str(root)) == "[]\n"


def test_what_is_decoded_is_loaded_without_tfds(root):
    datasets.load("cifar10", str(root))
    program = (
        "import sys; from cifar_jax import datasets; datasets.load('cifar10', sys.argv[1])\n"
        "print('tensorflow_datasets' in sys.modules)"
    )
    assert run_python(program, str(root)) == "False\n"


# The validation split


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


# The real CIFAR-10


@pytest.mark.slow
@pytest.mark.skipif(not (REAL_DATA / "cifar10/3.0.2").exists(), reason="no CIFAR-10 at hand")
def test_the_real_cifar10_cold_and_warm(tmp_path):
    (tmp_path / "data/cifar10/3.0.2").mkdir(parents=True)
    for file in (REAL_DATA / "cifar10/3.0.2").iterdir():
        if file.is_file():
            (tmp_path / "data/cifar10/3.0.2" / file.name).symlink_to(file)
    program = (
        "import json, sys, numpy as np; from cifar_jax import datasets\n"
        "d = datasets.load('cifar10', sys.argv[1])\n"
        "counts = [np.bincount(d.splits[s].labels).tolist() for s in ('train', 'test')]\n"
        "tensorflow = 'tensorflow' in sys.modules\n"
        "print(json.dumps([d.class_names, d.mean, d.std, counts, tensorflow]))"
    )
    seconds = []
    for _ in range(2):
        started = time.monotonic()
        output = run_python(program, str(tmp_path / "data"))
        seconds.append(time.monotonic() - started)
        class_names, mean, std, counts, tensorflow = json.loads(output)
        assert class_names == tiny_cifar.CLASSES
        np.testing.assert_allclose(mean, [0.49139968, 0.48215841, 0.44653091], atol=1e-8)
        np.testing.assert_allclose(std, [0.24703223, 0.24348513, 0.26158784], atol=1e-8)
        assert counts == [[5000] * 10, [1000] * 10]
        assert not tensorflow
    assert seconds[0] < 12
    assert seconds[1] < 1
