"""A download: complete and verified, or one line and nothing left behind."""

import contextlib
import hashlib
import logging
import os
import socket
import sys
import urllib.error

import pytest

from cifar_jax.data import download
from cifar_jax.errors import UserError
from tests.loopback import babbling, serving, unanswered_port

CONTENT = bytes(range(256)) * 40


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch):
    monkeypatch.setattr(download, "_PAUSE_SECONDS", 0.0)


def fetch(url, path, content=CONTENT):
    download.fetch(url, hashlib.sha256(content).hexdigest(), len(content), path)


def test_a_file_is_downloaded_once(tmp_path, capsys):
    path = tmp_path / "deep" / "down" / "archive.tar.gz"
    with serving(CONTENT) as (address, requests):
        for _ in range(2):
            fetch(f"{address}/some/archive.tar.gz?x=1", path)
    assert capsys.readouterr().err == ""  # no bar without a terminal
    assert requests == ["/some/archive.tar.gz?x=1"]
    assert path.read_bytes() == CONTENT
    assert [file.name for file in path.parent.iterdir()] == ["archive.tar.gz"]
    (tmp_path / "other").touch()
    assert path.stat().st_mode == (tmp_path / "other").stat().st_mode


@pytest.mark.parametrize(
    ("sent", "length", "message"),
    [
        (CONTENT[:5000], len(CONTENT), f"was cut off after 5000 of {len(CONTENT)} bytes"),
        (CONTENT[:5000], 5000, "gave another file than the published one"),
        (CONTENT[:-1] + b"\0", len(CONTENT), "gave another file than the published one"),
        (CONTENT + b"\0", len(CONTENT) + 1, "gave another file than the published one"),
    ],
)
def test_a_wrong_download_is_deleted(tmp_path, sent, length, message):
    with (
        serving(sent, length=length) as (address, _),
        pytest.raises(UserError, match=message) as caught,
    ):
        fetch(f"{address}/archive.tar.gz", tmp_path / "archive.tar.gz")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_slow_first_byte_is_waited_for(tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(download, "_ANSWER_SECONDS", (0.05, 0.2, 10.0))
    with serving(CONTENT, delay=0.5) as (address, requests):
        fetch(f"{address}/archive.tar.gz", tmp_path / "archive.tar.gz")
    assert (tmp_path / "archive.tar.gz").read_bytes() == CONTENT
    assert len(requests) == 3
    tries = [line.partition("; ")[0].partition(": ")[2] for line in caplog.messages[:2]]
    assert tries == ["no answer within 0.05 seconds", "no answer within 0.2 seconds"]


@pytest.mark.parametrize("first", [429, 502, 503, 504, "cut", "stall"])
def test_a_fault_that_passes_is_tried_again(tmp_path, monkeypatch, caplog, first):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(download, "_STALL_SECONDS", 0.5)
    monkeypatch.setattr(download, "_ANSWER_SECONDS", (0.5, 5.0, 10.0))
    with serving(CONTENT, first=(first,)) as (address, requests):
        fetch(f"{address}/archive.tar.gz", tmp_path / "archive.tar.gz")
    assert (tmp_path / "archive.tar.gz").read_bytes() == CONTENT
    assert [path.name for path in tmp_path.iterdir()] == ["archive.tar.gz"]
    assert len(requests) == 2
    assert [line for line in caplog.messages if line.endswith("; trying again")]


@pytest.mark.parametrize(
    ("error", "tries"),
    [
        (socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution"), 3),
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), 1),
        (ConnectionRefusedError(111, "Connection refused"), 1),
    ],
)
def test_a_name_server_that_is_busy_is_asked_again(tmp_path, monkeypatch, error, tries):
    asked = []

    def urlopen(url, timeout):
        asked.append(url)
        raise urllib.error.URLError(error)

    monkeypatch.setattr(download.urllib.request, "urlopen", urlopen)
    with pytest.raises(UserError, match=rf"cannot download .* \(\[Errno .*{error.strerror}\)"):
        fetch("http://there/archive.tar.gz", tmp_path / "archive.tar.gz")
    assert len(asked) == tries


@pytest.mark.parametrize("kind", ["pipe", "folder", "device"])
def test_the_archive_must_be_a_plain_file(tmp_path, kind):
    path = tmp_path / "archive.tar.gz"
    if kind == "pipe":
        os.mkfifo(path)  # reading it would wait for ever
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero")  # and this has no end
    with pytest.raises(UserError, match=r"archive\.tar\.gz is not a plain file: replace or delete"):
        fetch("http://127.0.0.1:1/archive.tar.gz", path)
    path.rmdir() if kind == "folder" else path.unlink()
    (tmp_path / "real").write_bytes(CONTENT)
    path.symlink_to("real")
    fetch("http://127.0.0.1:1/archive.tar.gz", path)


def test_progress_is_shown_on_a_terminal(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with serving(CONTENT) as (address, _):
        fetch(f"{address}/archive.tar.gz", tmp_path / "archive.tar.gz")
    shown = capsys.readouterr().err
    assert "archive.tar.gz:   0%" in shown
    assert "0/10240" in shown


def test_another_file_in_its_place_is_named_and_kept(tmp_path):
    path = tmp_path / "archive.tar.gz"
    path.write_bytes(b"something else")
    message = r"archive\.tar\.gz has another SHA-256 than the file published at http"
    with pytest.raises(UserError, match=message):
        fetch("http://127.0.0.1:1/archive.tar.gz", path)
    assert path.read_bytes() == b"something else"


@pytest.mark.parametrize("kind", ["refused", "no such host", "404", "not HTTP"])
def test_a_failed_download_names_the_ways_out(tmp_path, kind):
    with contextlib.ExitStack() as stack:
        if kind == "404":
            address, _ = stack.enter_context(serving(b"", status=404))
        elif kind == "not HTTP":
            address = stack.enter_context(babbling())
        else:
            address = {
                "refused": f"http://127.0.0.1:{unanswered_port()}",
                "no such host": "http://nowhere.invalid",
            }[kind]
        url = f"{address}/cifar-10-binary.tar.gz"
        with pytest.raises(UserError) as caught:
            fetch(url, tmp_path / "data" / "archive.tar.gz")
    message = str(caught.value)
    assert "\n" not in message
    place = str(tmp_path / "data" / "archive.tar.gz")
    for way in (url, "TFDS_DATA_DIR", place, "train configs/digits.py"):
        assert way in message
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("stall", "reason"),
    [("before the headers", r"no answer within 0\.3 seconds"), ("in the body", "timed out")],
)
def test_a_silent_server_is_given_up(tmp_path, monkeypatch, stall, reason):
    monkeypatch.setattr(download, "_ANSWER_SECONDS", (0.1, 0.3))
    monkeypatch.setattr(download, "_STALL_SECONDS", 0.3 if stall == "in the body" else 20)
    with contextlib.ExitStack() as stack:
        if stall == "in the body":
            address, _ = stack.enter_context(serving(b"x" * 100, length=1000, stall=True))
        else:
            silent = stack.enter_context(socket.socket())
            silent.bind(("127.0.0.1", 0))
            silent.listen()
            address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(UserError, match=rf"cannot download .* \({reason}\)"):
            fetch(f"{address}/cifar-10-binary.tar.gz", tmp_path / "archive.tar.gz")
    assert list(tmp_path.iterdir()) == []
