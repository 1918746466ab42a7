"""The lock of a run's folder."""

import errno
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from cifar_jax import files
from cifar_jax.errors import UserError
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


def test_only_one_process_holds_the_lock_and_it_ends_with_the_process(tmp_path):
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


def test_folders_that_the_lock_created_are_removed_if_they_stay_empty(tmp_path):
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


def test_a_lock_file_that_its_owner_removed_is_not_claimed(tmp_path, monkeypatch):
    real = workdir_lib.fcntl.flock
    taken = []

    def flock(file, how):
        if not taken:  # the owner ends after we have opened the file and before we lock it
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


def test_what_a_killed_run_was_writing_is_cleared_by_the_next_start(tmp_path):
    names = ("config.json", "report/report.html", "report/validation/predictions.csv")
    left = [tmp_path / name for name in names]
    left += [path.with_name(".writing-0") for path in left]
    for path in left:
        path.parent.mkdir(exist_ok=True)
        path.touch()
    with files.replacing(tmp_path / "report" / "living.csv"), workdir_lib.lock(tmp_path):
        assert [path.exists() for path in left] == [True] * 3 + [False] * 3
    assert (tmp_path / "report" / "living.csv").exists()
    left[4].touch()
    with files.output_folder(tmp_path / "report"):
        assert not left[4].exists()
