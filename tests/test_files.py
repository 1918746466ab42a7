"""Files: written whole or not at all, read with clear messages; the folder for caches."""

import csv
import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cifar_jax import files
from cifar_jax.errors import UserError


@pytest.mark.parametrize("fault", ["write", "fsync", "replace"])
def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch, fault):
    path = tmp_path / "result.json"
    files.write_json(path, {"old": 1})

    def fail(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if fault == "replace":
        monkeypatch.setattr(Path, "replace", fail)
    elif fault == "fsync":
        monkeypatch.setattr(os, "fsync", fail)
    values = {"new": object() if fault == "write" else 2}
    with pytest.raises((OSError, TypeError)):
        files.write_json(path, values)
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]
    assert files.read_json(path) == {"old": 1}


def test_what_a_killed_process_was_writing_is_cleared(tmp_path):
    program = (
        "import sys, time; from pathlib import Path; from cifar_jax import files\n"
        "with files.replacing(Path(sys.argv[1])) as stream:\n"
        "    stream.write(b'new'); stream.flush(); print('writing', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "data")]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert process.stdout.readline() == "writing\n"
        with files.replacing(tmp_path / "own") as stream:
            stream.write(b"own")
            files.clear_unfinished(tmp_path)  # of living processes, this one included
            assert len(list(tmp_path.glob(".writing-*"))) == 2
    finally:
        process.kill()
        process.communicate()
    assert len(list(tmp_path.glob(".writing-*"))) == 1
    files.clear_unfinished(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["own"]


def test_cells_that_a_spreadsheet_would_compute_are_escaped(tmp_path):
    texts = ["=1+1", "+cmd|x", "-1+2", "@SUM(A1)", "\t=1", "\r=1", "=", "--5", "-inf", "+1.jpg"]
    plain = ["a=b", "-", "-5", "+1.5e-3", "-.5", "cat", "'=1", "", " =1"]
    files.write_csv(tmp_path / "x.csv", [[*texts], [*plain], [-1.5, None, 3]])
    with (tmp_path / "x.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows == [[f"'{text}" for text in texts], plain, ["-1.5", "", "3"]]


def test_an_interrupted_write_leaves_the_old_file_and_no_litter(tmp_path):
    path = tmp_path / "data"
    path.write_bytes(b"old")

    def write():
        with files.replacing(path) as stream:
            stream.write(b"new")
            raise SystemExit

    with pytest.raises(SystemExit):
        write()
    assert [file.name for file in tmp_path.iterdir()] == ["data"]
    assert path.read_bytes() == b"old"


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"[1]", b"null"])
def test_a_damaged_record_is_named(tmp_path, content):
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"config\.json is damaged") as caught:
        files.read_json(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"does not exist: is .* the workdir of a run"):
        files.read_json(tmp_path / "other.json")


@pytest.mark.parametrize(
    ("home", "xdg", "folder"),
    [
        ("/a", "/b", "/b/cifar_jax"),
        ("/a", "", "/a/.cache/cifar_jax"),
        ("/a", "relative", "/a/.cache/cifar_jax"),
        ("/a", "~/b", "/a/b/cifar_jax"),
        ("", "/b", "/b/cifar_jax"),
        ("", "", None),
    ],
)
def test_the_cache_is_in_the_home_if_there_is_one(monkeypatch, home, xdg, folder):
    monkeypatch.setenv("HOME", home)
    monkeypatch.setenv("XDG_CACHE_HOME", xdg)
    assert files.cache_folder() == (folder and Path(folder))
