"""CIFAR from its archive to a TFDS folder: over HTTP on the loopback, and all that can go wrong."""

import contextlib
import http.server
import importlib.util
import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
import tiny_cifar

from cifar_jax import datasets, download, prepare
from cifar_jax.errors import UserError

HAS_TENSORFLOW = importlib.util.find_spec("tensorflow") is not None
REAL_DATA = Path(os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")).expanduser()


@contextlib.contextmanager
def serving(content, status=200, length=None, stall=False):
    """Serves one answer at every path; yields the address of the server and a list of requests."""
    requests, over = [], threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            requests.append(self.path)
            self.send_response(status)
            self.send_header("Content-Length", str(len(content) if length is None else length))
            self.end_headers()
            self.wfile.write(content)
            if stall:
                over.wait(20)

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", requests
    finally:
        over.set()
        server.shutdown()
        server.server_close()
        thread.join()


def files_below(root):
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


def read_with_tfds(builder, split):
    """Images, labels and ids as TFDS itself decodes them."""
    records = list(builder.as_data_source(split=split))
    return {key: np.stack([np.asarray(record[key]) for record in records]) for key in records[0]}


def test_archives_are_those_of_tfds():
    folder = tfds.core.utils.tfds_path() / "url_checksums"
    for name, archive in prepare.ARCHIVES.items():
        known = tfds.core.download.checksums.load_url_infos(folder / f"{name}.txt")[archive.url]
        assert (known.checksum, int(known.size)) == (archive.sha256, archive.size)
        assert known.filename == archive.filename


def test_cifar10_over_http_is_read_by_the_builder_of_tfds(tmp_path):
    content = tiny_cifar.cifar10_archive()
    with serving(content) as (address, requests):
        archive = tiny_cifar.describe(content, f"{address}/data/cifar-10-binary.tar.gz")
        folder = prepare.prepare_cifar("cifar10", tmp_path, archive)
        assert requests == ["/data/cifar-10-binary.tar.gz"]
        assert folder == tmp_path / "cifar10" / "3.0.2"
        # What is prepared stays; and without the folder, the archive is not fetched again.
        prepare.prepare_cifar("cifar10", tmp_path, archive)
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
        folder = prepare.prepare_cifar("cifar100", tmp_path, archive)
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
    loaded = datasets.load("cifar100", str(tmp_path))
    assert loaded.class_names[99] == "fine_99"
    train = loaded.splits["train"]
    assert tiny_cifar.by_content(*train) == tiny_cifar.by_content(
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


def test_a_download_cut_off_leaves_nothing_and_the_next_try_works(tmp_path):
    content = tiny_cifar.cifar10_archive()
    with serving(content[:5000], length=len(content)) as (address, _):
        archive = tiny_cifar.describe(content, f"{address}/cifar-10-binary.tar.gz")
        with pytest.raises(UserError, match=f"cut off after 5000 of {len(content)} bytes"):
            prepare.prepare_cifar("cifar10", tmp_path, archive)
    assert files_below(tmp_path) == []
    with serving(content) as (address, _):
        archive = tiny_cifar.describe(content, f"{address}/cifar-10-binary.tar.gz")
        assert prepare.prepare_cifar("cifar10", tmp_path, archive).is_dir()


def test_another_file_than_the_published_one_is_refused(tmp_path):
    content = tiny_cifar.cifar10_archive()
    damaged = content[:-1] + bytes([content[-1] ^ 1])
    with serving(damaged) as (address, _):
        archive = tiny_cifar.describe(content, f"{address}/cifar-10-binary.tar.gz")
        with pytest.raises(UserError, match="another file than the published one") as caught:
            prepare.prepare_cifar("cifar10", tmp_path, archive)
    assert "\n" not in str(caught.value)
    assert files_below(tmp_path) == []


def test_a_wrong_file_in_the_manual_directory_is_named_and_kept(tmp_path):
    manual = tmp_path / "downloads" / "manual"
    manual.mkdir(parents=True)
    (manual / "cifar-10-binary.tar.gz").write_bytes(b"not an archive")
    with pytest.raises(
        UserError, match=r"manual/cifar-10-binary\.tar\.gz is not the file published"
    ):
        prepare.prepare("cifar10", tmp_path)
    assert files_below(tmp_path) == ["downloads/manual/cifar-10-binary.tar.gz"]


def unanswered_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.mark.parametrize("kind", ["refused", "no such host", "404"])
def test_no_network_names_the_ways_out(tmp_path, kind):
    with serving(b"", status=404) as (address, _):
        url = {
            "refused": f"http://127.0.0.1:{unanswered_port()}/cifar-10-binary.tar.gz",
            "no such host": "http://nowhere.invalid/cifar-10-binary.tar.gz",
            "404": f"{address}/cifar-10-binary.tar.gz",
        }[kind]
        archive = tiny_cifar.describe(b"", url)
        started = time.monotonic()
        with pytest.raises(UserError) as caught:
            prepare.prepare_cifar("cifar10", tmp_path / "data", archive)
    assert time.monotonic() - started < 10
    message = str(caught.value)
    assert "\n" not in message
    manual = str(tmp_path / "data/downloads/manual/cifar-10-binary.tar.gz")
    for way in (url, "TFDS_DATA_DIR", manual, "--config=configs/digits.py"):
        assert way in message
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("stall", ["before the headers", "in the body"])
def test_a_silent_server_is_given_up(tmp_path, monkeypatch, stall):
    monkeypatch.setattr(download, "_PATIENCE", 0.3)
    with contextlib.ExitStack() as stack:
        if stall == "in the body":
            address, _ = stack.enter_context(serving(b"x" * 100, length=1000, stall=True))
        else:
            silent = stack.enter_context(socket.socket())
            silent.bind(("127.0.0.1", 0))
            silent.listen()
            address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        archive = tiny_cifar.describe(b"y" * 1000, f"{address}/cifar-10-binary.tar.gz")
        with pytest.raises(UserError, match="cannot download"):
            prepare.prepare_cifar("cifar10", tmp_path, archive)
    assert files_below(tmp_path) == []


def test_a_read_only_directory_is_left_alone(tmp_path):
    tmp_path.chmod(0o555)
    try:
        with pytest.raises(UserError, match="which is read-only: set TFDS_DATA_DIR"):
            datasets.load("cifar100", str(tmp_path))
        assert list(tmp_path.iterdir()) == []
    finally:
        tmp_path.chmod(0o755)


@pytest.mark.skipif(HAS_TENSORFLOW, reason="TensorFlow is installed")
def test_other_sets_ask_for_tensorflow(tmp_path):
    with pytest.raises(UserError, match=r"needs TensorFlow: pip install 'cifar_jax\[tf\]'"):
        datasets.load("svhn_cropped", str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_a_failed_preparation_leaves_no_folder_behind(tmp_path):
    content = tiny_cifar.cifar10_archive().replace(b"\x1f\x8b", b"\x1f\x8c", 1)  # not gzip
    with serving(content) as (address, _):
        archive = tiny_cifar.describe(content, f"{address}/cifar-10-binary.tar.gz")
        with pytest.raises(UserError, match="TFDS could not prepare cifar10: ReadError"):
            prepare.prepare_cifar("cifar10", tmp_path, archive)
    assert files_below(tmp_path) == ["downloads/manual/cifar-10-binary.tar.gz"]
    assert datasets.records.find_prepared("cifar10", tmp_path) is None


def test_two_processes_may_prepare_at_once(tmp_path):
    program = "import sys, pathlib, tiny_cifar; from cifar_jax import prepare; " + (
        "prepare.prepare_cifar('cifar10', pathlib.Path(sys.argv[1]), "
        "tiny_cifar.describe(tiny_cifar.cifar10_archive(), sys.argv[2]))"
    )
    path = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parent.parent)])
    content = tiny_cifar.cifar10_archive()
    with serving(content) as (address, _):
        url = f"{address}/cifar-10-binary.tar.gz"
        command = [sys.executable, "-c", program, str(tmp_path), url]
        environment = {**os.environ, "PYTHONPATH": path}
        pipe = subprocess.PIPE
        started = [
            subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe) for _ in range(2)
        ]
        errors = [process.communicate(timeout=60)[1] for process in started]
    assert [process.returncode for process in started] == [0, 0], errors
    assert len(datasets.load("cifar10", str(tmp_path)).splits["train"].labels) == 60
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
        url = prepare.ARCHIVES["cifar10"].url
        info = tfds.core.download.checksums.UrlInfo(
            tfds.core.utils.Size(len(content)),
            tiny_cifar.describe(content, url).sha256,
            "cifar-10-binary.tar.gz",
        )
        monkeypatch.setattr(type(theirs), "url_infos", {url: info})
        config = tfds.download.DownloadConfig(manual_dir=manual, try_download_gcs=False)
        theirs.download_and_prepare(download_config=config, file_format=file_format)
        loaded = datasets.load("cifar10", str(root)).splits["train"]
        assert tiny_cifar.by_content(*loaded) == tiny_cifar.by_content(read["image"], read["label"])
        if file_format == "array_record":  # even the order is the same
            np.testing.assert_array_equal(loaded.images, read["image"])
            np.testing.assert_array_equal(loaded.labels, read["label"])
