"""A download: whole and right, or one line and nothing left behind."""

import contextlib
import socket

import pytest

from cifar_jax.data import download
from cifar_jax.errors import UserError
from tests import tiny_cifar
from tests.loopback import babbling, serving, unanswered_port

CONTENT = bytes(range(256)) * 40


def test_the_archive_is_fetched_once(tmp_path):
    path = tmp_path / "deep" / "down" / "archive.tar.gz"
    with serving(CONTENT) as (address, requests):
        archive = tiny_cifar.describe(CONTENT, f"{address}/some/archive.tar.gz?x=1")
        assert archive.filename == "archive.tar.gz"
        for _ in range(2):
            download.fetch(archive, path)
    assert requests == ["/some/archive.tar.gz?x=1"]
    assert path.read_bytes() == CONTENT
    assert [file.name for file in path.parent.iterdir()] == ["archive.tar.gz"]
    assert path.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize(
    ("sent", "length", "message"),
    [
        (CONTENT[:5000], len(CONTENT), f"was cut off after 5000 of {len(CONTENT)} bytes"),
        (CONTENT[:5000], 5000, "gave another file than the published one"),
        (CONTENT[:-1] + b"\0", len(CONTENT), "gave another file than the published one"),
        (CONTENT + b"\0", len(CONTENT) + 1, "gave another file than the published one"),
    ],
)
def test_a_wrong_download_is_thrown_away(tmp_path, sent, length, message):
    path = tmp_path / "archive.tar.gz"
    with serving(sent, length=length) as (address, _):
        archive = tiny_cifar.describe(CONTENT, f"{address}/archive.tar.gz")
        with pytest.raises(UserError, match=message) as caught:
            download.fetch(archive, path)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_file_in_its_place_is_named_and_kept(tmp_path):
    path = tmp_path / "archive.tar.gz"
    path.write_bytes(b"something else")
    archive = tiny_cifar.describe(CONTENT, "http://127.0.0.1:1/archive.tar.gz")
    with pytest.raises(UserError, match=r"archive\.tar\.gz is not the file published at http"):
        download.fetch(archive, path)
    assert path.read_bytes() == b"something else"


@pytest.mark.parametrize("kind", ["refused", "no such host", "404", "not HTTP"])
def test_no_network_names_the_ways_out(tmp_path, kind):
    requests = []
    with contextlib.ExitStack() as stack:
        if kind == "404":
            address, requests = stack.enter_context(serving(b"", status=404))
        elif kind == "not HTTP":
            address = stack.enter_context(babbling())
        else:
            address = {
                "refused": f"http://127.0.0.1:{unanswered_port()}",
                "no such host": "http://nowhere.invalid",
            }[kind]
        url = f"{address}/cifar-10-binary.tar.gz"
        archive = tiny_cifar.describe(b"", url)
        with pytest.raises(UserError) as caught:
            download.fetch(archive, tmp_path / "data" / "archive.tar.gz")
        assert len(requests) == (kind == "404")  # it does not try again
    message = str(caught.value)
    assert "\n" not in message
    place = str(tmp_path / "data" / "archive.tar.gz")
    for way in (url, "TFDS_DATA_DIR", place, "--config=configs/digits.py"):
        assert way in message
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("stall", ["before the headers", "in the body"])
def test_a_silent_server_is_given_up(tmp_path, monkeypatch, stall):
    monkeypatch.setattr(download, "_ANSWER_SECONDS", 0.3)
    monkeypatch.setattr(download, "_STALL_SECONDS", 0.3 if stall == "in the body" else 20)
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
            download.fetch(archive, tmp_path / "archive.tar.gz")
    assert list(tmp_path.iterdir()) == []
