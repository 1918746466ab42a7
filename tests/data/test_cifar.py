"""CIFAR from its archive to a TFDS folder, over HTTP on the loopback, and what can go wrong."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import tensorflow_datasets as tfds

from cifar_jax.data import cifar, datasets, names
from cifar_jax.data import tfds as tfds_lib
from cifar_jax.errors import UserError
from tests import tiny_cifar
from tests.loopback import serving, unanswered_port

HAS_TENSORFLOW = importlib.util.find_spec("tensorflow") is not None
REAL_DATA = Path(os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")).expanduser()


def files_below(root):
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


def read_with_tfds(builder, split):
    """Images, labels and ids as TFDS itself decodes them."""
    records = list(builder.as_data_source(split=split))
    return {key: np.stack([np.asarray(record[key]) for record in records]) for key in records[0]}


@pytest.mark.parametrize(
    ("name", "file", "size", "sha256"),
    [
        ("cifar10", "cifar-10-binary.tar.gz", 170052171, "c4a38c50a1bc5f3a1c5537f2155ab9d6"),
        ("cifar100", "cifar-100-binary.tar.gz", 168513733, "58a81ae192c23a4be8b1804d68e518ed"),
    ],
)
def test_the_published_archives_are_downloaded(tmp_path, monkeypatch, name, file, size, sha256):
    asked = []

    def fetch(*arguments):
        asked.append(arguments)
        raise UserError("that will do")

    monkeypatch.setattr(cifar, "fetch", fetch)
    with pytest.raises(UserError, match="that will do"):
        datasets.load_dataset(name, str(tmp_path))
    ((url, *rest),) = asked
    assert url == f"https://www.cs.toronto.edu/~kriz/{file}"
    assert rest[0].startswith(sha256)
    assert rest[1:] == [size, tmp_path / "downloads" / "manual" / file]


def test_cifar10_over_http_is_read_by_the_builder_of_tfds(tmp_path):
    content = tiny_cifar.cifar10_archive()
    with serving(content) as (address, requests):
        archive = tiny_cifar.describe(content, f"{address}/data/cifar-10-binary.tar.gz")
        folder = cifar.prepare_cifar("cifar10", tmp_path, archive)
        assert requests == ["/data/cifar-10-binary.tar.gz"]
        assert folder == tmp_path / "cifar10" / "3.0.2"
        # A second time, nothing is downloaded.
        cifar.prepare_cifar("cifar10", tmp_path, archive)
        assert len(requests) == 1
    assert files_below(tmp_path) == [
        "cifar10/3.0.2/cifar10-test.array_record-00000-of-00001",
        "cifar10/3.0.2/cifar10-train.array_record-00000-of-00001",
        "cifar10/3.0.2/dataset_info.json",
        "cifar10/3.0.2/features.json",
        "cifar10/3.0.2/label.labels.txt",
        "downloads/manual/cifar-10-binary.tar.gz",
    ]
    builder = tfds.builder("cifar10", data_dir=tmp_path)
    assert type(builder).__module__ == "tensorflow_datasets.image_classification.cifar"
    assert builder.info.features["label"].names == tiny_cifar.CLASSES
    for split, rows in (
        ("train", tiny_cifar.cifar10_rows(tiny_cifar.NUM_TRAIN, seed=1)),
        ("test", tiny_cifar.cifar10_rows(tiny_cifar.NUM_TEST, seed=2)),
    ):
        assert builder.info.splits[split].num_examples == len(rows)
        read = read_with_tfds(builder, split)
        place = np.argsort(read["id"])
        assert read["id"][place[7]] == f"{split}_00007".encode()
        np.testing.assert_array_equal(read["image"][place], tiny_cifar.images_of(rows))
        np.testing.assert_array_equal(read["label"][place], rows[:, 0])


def test_cifar100_over_http(tmp_path):
    content = tiny_cifar.cifar100_archive()
    with serving(content) as (address, _):
        archive = tiny_cifar.describe(content, f"{address}/cifar-100-binary.tar.gz")
        folder = cifar.prepare_cifar("cifar100", tmp_path, archive)
    builder = tfds.builder("cifar100", data_dir=tmp_path)
    assert folder == Path(builder.data_dir)
    assert builder.info.features["label"].names == [f"fine_{i}" for i in range(100)]
    assert builder.info.features["coarse_label"].names == [f"coarse_{i}" for i in range(20)]
    rows = tiny_cifar.cifar100_rows(120, seed=3)
    read = read_with_tfds(builder, "train")
    place = np.argsort(read["id"])
    np.testing.assert_array_equal(read["image"][place], tiny_cifar.images_of(rows))
    np.testing.assert_array_equal(read["coarse_label"][place], rows[:, 0])
    np.testing.assert_array_equal(read["label"][place], rows[:, 1])
    loaded = datasets.load_dataset("cifar100", str(tmp_path))
    assert loaded.class_names[99] == "fine_99"
    train = loaded.splits["train"]
    assert tiny_cifar.by_content(*train[:2]) == tiny_cifar.by_content(
        tiny_cifar.images_of(rows), rows[:, 1]
    )


@pytest.mark.skipif(not (REAL_DATA / "cifar10/3.0.2").exists(), reason="no CIFAR-10 at hand")
def test_a_prepared_folder_has_the_form_of_the_real_one(tmp_path):
    ours, real = tiny_cifar.prepared_cifar10(tmp_path), REAL_DATA / "cifar10/3.0.2"
    for file in ("features.json", "label.labels.txt"):
        assert (ours / file).read_text().split() == (real / file).read_text().split()
    infos = [json.loads((folder / "dataset_info.json").read_text()) for folder in (ours, real)]
    for info in infos:
        info.pop("downloadSize", None)
        for split in info["splits"]:
            del split["numBytes"], split["shardLengths"]
    assert infos[0] == infos[1]


def test_an_interrupted_download_leaves_nothing_and_the_next_one_works(tmp_path):
    content = tiny_cifar.cifar10_archive()
    with serving(content[:5000], length=len(content)) as (address, _):
        archive = tiny_cifar.describe(content, f"{address}/cifar-10-binary.tar.gz")
        with pytest.raises(UserError, match=f"cut off after 5000 of {len(content)} bytes"):
            cifar.prepare_cifar("cifar10", tmp_path, archive)
    assert files_below(tmp_path) == []
    with serving(content) as (address, _):
        archive = tiny_cifar.describe(content, f"{address}/cifar-10-binary.tar.gz")
        assert cifar.prepare_cifar("cifar10", tmp_path, archive).is_dir()


WITHOUT_ARRAY_RECORD = """
import sys
class Hide:
    def find_spec(self, name, *_):
        if name.partition(".")[0] == "array_record":
            raise ModuleNotFoundError(f"no {name}", name="array_record")
sys.meta_path.insert(0, Hide())
from tensorflow_datasets.image_classification import cifar
from cifar_jax.data import datasets
from cifar_jax.errors import UserError
from tests import tiny_cifar
content = tiny_cifar.cifar10_archive()
cifar.Cifar10.url_infos = tiny_cifar.describe(content, "http://127.0.0.1:1/cifar-10-binary.tar.gz")
for name in ("cifar10", "cifar10:3.0.2"):
    loaded = datasets.load_dataset(name, sys.argv[1])
    print([split.labels.tolist() for split in loaded.splits.values()], loaded.class_names)
try:
    datasets.load_dataset("cifar10", sys.argv[2])
except UserError as error:
    print(error)
"""


def test_without_array_record_the_archive_is_decoded(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    prepared = tmp_path / "prepared"
    tiny_cifar.prepared_cifar10(prepared)
    manual = tmp_path / "data" / "downloads" / "manual"
    manual.mkdir(parents=True)
    (manual / "cifar-10-binary.tar.gz").write_bytes(tiny_cifar.cifar10_archive())
    arguments = (str(tmp_path / "data"), str(prepared))
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_ARRAY_RECORD, *arguments],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    first, second, refusal = done.stdout.splitlines()
    assert first == second
    assert refusal.startswith(f"reading {prepared}/cifar10/3.0.2 needs array-record, which is not")
    assert refusal.endswith(
        "pip install array-record; or let TFDS prepare the set again with file_format='tfrecord'"
    )
    # In the order, and with the bits, of the prepared set.
    expected = datasets.load_dataset("cifar10", str(prepared))
    labels = [split.labels.tolist() for split in expected.splits.values()]
    assert first == f"{labels} {expected.class_names}"
    (file,) = (tmp_path / "cache").rglob("train-images-*.npy")
    np.testing.assert_array_equal(np.load(file), expected.splits["train"].images)


@pytest.mark.parametrize(("installed", "wanted"), [(True, "array_record"), (False, "tfrecord")])
def test_the_file_format_is_one_that_can_be_written(tmp_path, monkeypatch, installed, wanted):
    monkeypatch.setattr(tfds_lib, "has_array_record", lambda: installed)
    builder = mock.Mock(data_dir=str(tmp_path))
    tfds_lib.build(builder, None)
    assert builder.download_and_prepare.call_args.kwargs["file_format"] == wanted


def test_another_file_than_the_published_one_is_refused(tmp_path):
    content = tiny_cifar.cifar10_archive()
    damaged = content[:-1] + bytes([content[-1] ^ 1])
    with serving(damaged) as (address, _):
        archive = tiny_cifar.describe(content, f"{address}/cifar-10-binary.tar.gz")
        with pytest.raises(UserError, match="another file than the published one") as caught:
            cifar.prepare_cifar("cifar10", tmp_path, archive)
    assert "\n" not in str(caught.value)
    assert files_below(tmp_path) == []


def test_a_wrong_file_in_the_manual_directory_is_named_and_kept(tmp_path):
    manual = tmp_path / "downloads" / "manual"
    manual.mkdir(parents=True)
    (manual / "cifar-10-binary.tar.gz").write_bytes(b"not an archive")
    with pytest.raises(
        UserError, match=r"manual/cifar-10-binary\.tar\.gz has another SHA-256 than"
    ):
        datasets.load_dataset("cifar10", str(tmp_path))
    assert files_below(tmp_path) == ["downloads/manual/cifar-10-binary.tar.gz"]


def test_a_read_only_directory_is_left_alone(tmp_path):
    tmp_path.chmod(0o555)
    try:
        with pytest.raises(UserError, match="which is read-only: set TFDS_DATA_DIR"):
            datasets.load_dataset("cifar100", str(tmp_path))
        assert list(tmp_path.iterdir()) == []
    finally:
        tmp_path.chmod(0o755)


@pytest.mark.skipif(HAS_TENSORFLOW, reason="TensorFlow is installed")
def test_other_sets_ask_for_tensorflow(tmp_path):
    with pytest.raises(UserError, match=r"needs TensorFlow: pip install 'cifar_jax\[tf\]'"):
        datasets.load_dataset("svhn_cropped", str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_a_failed_preparation_leaves_no_folder_behind(tmp_path):
    content = tiny_cifar.cifar10_archive().replace(b"\x1f\x8b", b"\x1f\x8c", 1)  # not gzip
    with serving(content) as (address, _):
        archive = tiny_cifar.describe(content, f"{address}/cifar-10-binary.tar.gz")
        with pytest.raises(UserError, match="TFDS could not prepare cifar10: ReadError"):
            cifar.prepare_cifar("cifar10", tmp_path, archive)
    assert files_below(tmp_path) == ["downloads/manual/cifar-10-binary.tar.gz"]
    assert names.find_prepared("cifar10", tmp_path) is None


def test_two_processes_may_prepare_at_once(tmp_path):
    program = (
        "import sys, pathlib; from cifar_jax.data import cifar; from tests import tiny_cifar; "
        + (
            "cifar.prepare_cifar('cifar10', pathlib.Path(sys.argv[1]), "
            "tiny_cifar.describe(tiny_cifar.cifar10_archive(), sys.argv[2]))"
        )
    )
    content = tiny_cifar.cifar10_archive()
    with serving(content) as (address, _):
        url = f"{address}/cifar-10-binary.tar.gz"
        command = [sys.executable, "-c", program, str(tmp_path), url]
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
        pipe = subprocess.PIPE
        started = [
            subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe) for _ in range(2)
        ]
        errors = [process.communicate()[1] for process in started]
    assert [process.returncode for process in started] == [0, 0], errors
    assert len(datasets.load_dataset("cifar10", str(tmp_path)).splits["train"].labels) == 60
    assert not list(tmp_path.rglob("*incomplete*"))


@pytest.mark.slow
@pytest.mark.skipif(not HAS_TENSORFLOW, reason="TensorFlow is not installed")
def test_tensorflow_and_this_package_read_each_others_folders(tmp_path, monkeypatch):
    tiny_cifar.prepared_cifar10(tmp_path / "ours")
    builder = tfds.builder("cifar10", data_dir=tmp_path / "ours")
    read = read_with_tfds(builder, "train")
    assert len(read["label"]) == 60
    # The same archive prepared by TFDS's own code, in both of its formats.
    content = tiny_cifar.cifar10_archive()
    for file_format in ("array_record", "tfrecord"):
        root = tmp_path / file_format
        theirs = tfds.builder("cifar10", data_dir=root)
        manual = tmp_path / "ours" / "downloads" / "manual"
        (url,) = theirs.url_infos
        monkeypatch.setattr(type(theirs), "url_infos", tiny_cifar.describe(content, url))
        config = tfds.download.DownloadConfig(manual_dir=manual, try_download_gcs=False)
        theirs.download_and_prepare(download_config=config, file_format=file_format)
        loaded = datasets.load_dataset("cifar10", str(root)).splits["train"]
        assert tiny_cifar.by_content(*loaded[:2]) == tiny_cifar.by_content(
            read["image"], read["label"]
        )
        if file_format == "array_record":  # even the order is the same
            np.testing.assert_array_equal(loaded.images, read["image"])
            np.testing.assert_array_equal(loaded.labels, read["label"])


@pytest.mark.slow
@pytest.mark.skipif(not HAS_TENSORFLOW, reason="TensorFlow is not installed")
def test_other_sets_are_prepared_with_tensorflow(tmp_path, monkeypatch):
    grey = np.arange(6, dtype=np.uint8).reshape(1, 2, 3, 1) * np.ones((4, 1, 1, 1), np.uint8)
    grey[:, 0, 0, 0] = 100 + np.arange(4)

    class TinyGrey(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")
        url_infos = None

        def _info(self):
            image = tfds.features.Image(shape=(2, 3, 1))
            label = tfds.features.ClassLabel(num_classes=4)
            features = tfds.features.FeaturesDict({"image": image, "label": label})
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(), "test": self._generate_examples()}

        def _generate_examples(self):
            for index, image in enumerate(grey):
                yield index, {"image": image, "label": index}

    with monkeypatch.context() as patch:
        info = tfds.core.download.checksums.UrlInfo(tfds.core.utils.Size(1), "0", None)
        url = f"http://127.0.0.1:{unanswered_port()}/grey.zip"
        patch.setattr(TinyGrey, "url_infos", {url: info})
        with pytest.raises(UserError, match=f"cannot download tiny_grey from {url}.*TFDS_DATA_DIR"):
            datasets.load_dataset("tiny_grey", str(tmp_path))
        assert list(tmp_path.iterdir()) == []
    loaded = datasets.load_dataset("tiny_grey", str(tmp_path))
    for images, labels in loaded.splits.values():
        np.testing.assert_array_equal(images, grey[labels])
        assert sorted(labels) == [0, 1, 2, 3]


@pytest.mark.slow
@pytest.mark.skipif(not HAS_TENSORFLOW, reason="TensorFlow is not installed")
@pytest.mark.parametrize(
    ("name", "message"),
    [("imdb_reviews", "not an image classification set"), ("cats_vs_dogs", "differ in size")],
)
def test_sets_of_another_kind_are_refused_before_they_are_downloaded(tmp_path, name, message):
    with pytest.raises(UserError, match=message):
        datasets.load_dataset(name, str(tmp_path))
    assert list(tmp_path.iterdir()) == []
