"""A run's folder: its lock and its records."""

import errno
import json
import os
import platform
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from cifar_jax import files
from cifar_jax.errors import UserError
from cifar_jax.runs import provenance
from cifar_jax.runs import workdir as workdir_lib

HOLD = (
    "import sys; from pathlib import Path; from cifar_jax.runs import workdir\n"
    "with workdir.lock(Path(sys.argv[1])):\n"
    "    print('held', flush=True); sys.stdin.read()\n"
)


def hold_lock(folder):
    """Starts a process that holds the lock of a folder until its stdin is closed."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, folder],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
        text=True,
    )
    assert process.stdout.readline() == "held\n"
    return process


def test_the_lock_is_one_process_alone_and_ends_with_it(tmp_path):
    with hold_lock(tmp_path) as process:
        with pytest.raises(
            UserError, match=f"process {process.pid} on {socket.gethostname()}: stop"
        ):
            workdir_lib.lock(tmp_path).__enter__()
        process.kill()
        process.wait()
        assert json.loads((tmp_path / "lock.json").read_text())["pid"] == process.pid
        with workdir_lib.lock(tmp_path):
            assert json.loads((tmp_path / "lock.json").read_text())["pid"] == os.getpid()
    assert not (tmp_path / "lock.json").exists()


def test_only_what_the_lock_made_and_nobody_filled_goes_again(tmp_path):
    with workdir_lib.lock(tmp_path / "a" / "b"):
        pass
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "a").mkdir()
    with workdir_lib.lock(tmp_path / "a" / "b"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    with workdir_lib.lock(tmp_path / "a" / "b"):
        (tmp_path / "a" / "b" / "config.json").write_text("{}")
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["config.json"]


def test_a_lock_file_that_its_owner_took_away_is_not_claimed(tmp_path, monkeypatch):
    real = workdir_lib.fcntl.flock
    taken = []

    def flock(file, how):
        if not taken:  # between our opening and our locking, the owner ends
            taken.append((tmp_path / "lock.json").unlink())
        real(file, how)

    monkeypatch.setattr(workdir_lib.fcntl, "flock", flock)
    with workdir_lib.lock(tmp_path):
        assert json.loads((tmp_path / "lock.json").read_text())["pid"] == os.getpid()


def test_a_file_system_without_locks_is_named(tmp_path, monkeypatch):
    def flock(file, how):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(workdir_lib.fcntl, "flock", flock)
    with pytest.raises(UserError, match="No locks available"):
        workdir_lib.lock(tmp_path).__enter__()


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


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"[1]", b"null"])
def test_a_damaged_record_is_named(tmp_path, content):
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"config\.json is damaged") as caught:
        files.read_json(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"does not exist: is .* the workdir of a run"):
        files.read_json(tmp_path / "other.json")


def test_the_environment_names_versions_and_machine():
    environment = provenance.environment()
    assert environment["versions"]["python"] == sys.version.split()[0]
    assert {"jax", "flax", "optax", "orbax-checkpoint", "numpy"} <= environment["versions"].keys()
    assert environment["host"] == socket.gethostname()
    assert environment["cores"] == os.cpu_count()
    json.dumps(environment)


@pytest.mark.parametrize(
    ("home", "xdg", "folder"),
    [
        ("/a", "/b", "/b/cifar_jax"),
        ("/a", "", "/a/.cache/cifar_jax"),
        ("/a", "relative", "/a/.cache/cifar_jax"),
        ("", "/b", "/b/cifar_jax"),
        ("", "", None),
    ],
)
def test_the_cache_lies_in_the_home_if_there_is_one(monkeypatch, home, xdg, folder):
    monkeypatch.setenv("HOME", home)
    monkeypatch.setenv("XDG_CACHE_HOME", xdg)
    assert files.cache_folder() == (folder and Path(folder))


def test_the_commit_is_none_outside_a_checkout(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert provenance.commit() is None


def test_what_was_measured_makes_no_other_commit(tmp_path, monkeypatch):
    def git(*words):
        options = ("-c", "user.name=x", "-c", "user.email=x")
        subprocess.run(["git", *options, *words], cwd=tmp_path, check=True, capture_output=True)

    files = [tmp_path / name for name in ("results/a.json", "README.md", "package/a.py")]
    for file in files:
        file.parent.mkdir(exist_ok=True)
        file.write_text("before")
    git("init")
    git("add", ".")
    git("commit", "-m", "x")
    monkeypatch.setattr(workdir_lib, "__file__", str(files[2]))
    found = []
    for file in files:
        file.write_text("after")
        found.append(provenance.commit())
    assert len(found[0]) == 40
    assert found == [found[0], found[0], found[0] + "+"]


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("fma avx2 avx512f avx512bw", "Abacus 3000 (AVX-512)"),
        ("fma avx avx2 f16c", "Abacus 3000 (AVX2)"),
        ("sse2", "Abacus 3000"),
    ],
)
def test_the_processor_is_named_with_its_vectors(tmp_path, flags, expected):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor\t: 0\nmodel name\t: Abacus 3000\nflags\t\t: {flags}\n\n" * 2)
    assert provenance._processor(cpuinfo) == expected
    other = platform.processor() or platform.machine()
    assert provenance._processor(tmp_path / "missing") == other
