"""Files: written whole or not at all, read with clear messages; the folder for caches."""

import errno
import os
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
