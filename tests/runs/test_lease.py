"""The lease on a workdir: an owner that has gone, on any host, and one that was only paused."""

import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from cifar_jax.errors import UserError
from cifar_jax.runs import workdir as workdir_lib
from tests import program

ELSEWHERE = {"host": "elsewhere", "pid": 7, "token": "theirs"}


@pytest.fixture(autouse=True)
def _short_times(monkeypatch):
    monkeypatch.setattr(workdir_lib, "RENEW_SECONDS", 0.05)
    monkeypatch.setattr(workdir_lib, "STALE_SECONDS", 0.6)


def write_lease(folder, age=0.0):
    """Writes what an owner on another host leaves behind, renewed so many seconds ago."""
    path = folder / "lock.json"
    path.write_text(json.dumps(ELSEWHERE))
    os.utime(path, (time.time() - age,) * 2)
    return path


def test_an_old_lease_of_a_dead_host_is_taken_over_at_once(tmp_path, caplog):
    write_lease(tmp_path, age=3.0)
    with workdir_lib.lock(tmp_path):
        assert json.loads((tmp_path / "lock.json").read_text())["pid"] == os.getpid()
        workdir_lib.check_lease(tmp_path)
    (line,) = caplog.messages
    assert all(x in line for x in ("taking over", "process 7 on elsewhere", "for 3 s"))
    assert list(tmp_path.iterdir()) == []


def test_a_lock_that_outlives_its_host_is_no_obstacle(tmp_path):
    path = write_lease(tmp_path)
    with path.open("a+b") as file:  # as a server of network files keeps it
        fcntl.flock(file, fcntl.LOCK_EX)
        with workdir_lib.lock(tmp_path):
            assert json.loads(path.read_text())["pid"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_a_lease_from_the_future_is_not_waited_for_longer(tmp_path):
    write_lease(tmp_path, age=-3600.0)
    begun = time.monotonic()
    with workdir_lib.lock(tmp_path):
        assert time.monotonic() - begun < 30


def test_a_lease_that_holds_something_else_is_lost(tmp_path):
    with workdir_lib.lock(tmp_path):
        (tmp_path / "lock.json").write_text("{}{}")  # two hosts wrote at once
        with pytest.raises(UserError, match="was taken over"):
            workdir_lib.check_lease(tmp_path)


def test_a_young_lease_is_waited_for(tmp_path, caplog):
    write_lease(tmp_path)
    with workdir_lib.lock(tmp_path):
        pass
    assert ["waiting up to" in caplog.messages[0], "taking over" in caplog.messages[1]] == [
        True
    ] * 2


def test_a_lease_that_is_renewed_is_respected(tmp_path):
    path = write_lease(tmp_path)
    threading.Timer(0.2, lambda: os.utime(path)).start()
    with pytest.raises(UserError, match="in use by process 7 on elsewhere: stop that one, or take"):
        workdir_lib.lock(tmp_path).__enter__()
    assert json.loads(path.read_text()) == ELSEWHERE


class NetworkFiles:
    """Acts as NFS: what an open file says of itself is what it said first, or ESTALE."""

    def __init__(self, monkeypatch):
        self._fstat, self._open, self._known = os.fstat, os.open, {}
        monkeypatch.setattr(workdir_lib.os, "fstat", self.fstat)
        monkeypatch.setattr(workdir_lib.os, "open", self.open)

    def open(self, *arguments):
        self._known.pop(descriptor := self._open(*arguments), None)
        return descriptor

    def fstat(self, descriptor):
        status = self._fstat(descriptor)
        if not status.st_nlink and descriptor in self._known:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return self._known.setdefault(descriptor, status)


def test_a_lease_that_another_host_renews_is_seen_over_nfs(tmp_path, monkeypatch):
    path = write_lease(tmp_path)
    monkeypatch.setattr(workdir_lib, "_now", lambda folder: os.stat(path).st_mtime)
    NetworkFiles(monkeypatch)
    threading.Timer(0.2, lambda: os.utime(path)).start()
    with pytest.raises(UserError, match="in use by process 7 on elsewhere"):
        workdir_lib.lock(tmp_path).__enter__()


def test_a_lease_that_another_host_gives_up_is_taken_over_nfs(tmp_path, monkeypatch):
    path = write_lease(tmp_path)
    monkeypatch.setattr(workdir_lib, "STALE_SECONDS", 20.0)
    NetworkFiles(monkeypatch)
    threading.Timer(0.2, path.unlink).start()
    begun = time.monotonic()
    with workdir_lib.lock(tmp_path):
        assert json.loads(path.read_text())["pid"] == os.getpid()
    assert time.monotonic() - begun < 10
    assert list(tmp_path.iterdir()) == []


def test_the_clock_of_this_host_does_not_matter(tmp_path, monkeypatch):
    write_lease(tmp_path)
    monkeypatch.setattr(workdir_lib.time, "time", lambda: 0.0)
    monkeypatch.setattr(workdir_lib, "_now", lambda folder: os.stat(folder / "lock.json").st_mtime)
    monkeypatch.setattr(workdir_lib.time, "sleep", lambda seconds: os.utime(tmp_path / "lock.json"))
    with pytest.raises(UserError, match="in use"):  # by the file system's clock it is young
        workdir_lib.lock(tmp_path).__enter__()


def test_the_owner_renews_its_lease(tmp_path):
    with workdir_lib.lock(tmp_path):
        path = tmp_path / "lock.json"
        os.utime(path, (0, 0))
        for _ in range(100):
            time.sleep(0.05)
            if path.stat().st_mtime > 0:
                break
        assert path.stat().st_mtime > 0


def test_take_over_does_not_ask_and_the_former_owner_stops(tmp_path):
    with workdir_lib.lock(tmp_path):
        token = json.loads((tmp_path / "lock.json").read_text())["token"]
        other = "import sys; from pathlib import Path; from cifar_jax.runs import workdir\n"
        other += "with workdir.lock(Path(sys.argv[1]), take_over=True): sys.stdin.read()\n"
        command = [sys.executable, "-c", other, str(tmp_path)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, cwd=program.ROOT) as process:
            while workdir_lib._is_held(tmp_path):
                time.sleep(0.01)
            with pytest.raises(UserError, match="was taken over by another process") as caught:
                workdir_lib.check_lease(tmp_path)
            assert caught.value.exit_code == 1
            time.sleep(0.2)  # this process renews nothing of the other's
            process.communicate(b"")
        assert process.returncode == 0
    assert token
    assert not (tmp_path / "lock.json").exists()


FROZEN = """
import fcntl, socket, sys, time
socket.gethostname = lambda: "elsewhere"
fcntl.flock = lambda *_: None  # a file system that does not pass locks on
from cifar_jax.cli import main
from cifar_jax.training import run

def update_bar(*_):
    print("between two steps", flush=True)
    time.sleep(1)

run.update_bar = update_bar
sys.exit(main.main(sys.argv))
"""


def test_an_owner_that_was_frozen_stops_before_its_next_write(tmp_path):
    flag = program.write_config(tmp_path / "long.py", num_steps=10**6, steps_per_call=1)
    folder = tmp_path / "run"
    command = [sys.executable, "-c", FROZEN, flag, f"--workdir={folder}"]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, stdout=pipe, stderr=pipe, text=True, cwd=program.ROOT, env=os.environ
    ) as process:
        while "between two steps" not in process.stdout.readline():
            pass
        process.send_signal(signal.SIGSTOP)
        try:
            os.utime(folder / "lock.json", (0, 0))
            with workdir_lib.lock(folder):
                before = {path: path.stat() for path in folder.rglob("*") if path.is_file()}
                process.send_signal(signal.SIGCONT)
                _, err = process.communicate(timeout=120)
                after = {path: path.stat() for path in folder.rglob("*") if path.is_file()}
        finally:
            process.kill()
    assert process.returncode == 1
    assert err.startswith("error: ")
    assert "was taken over by another process" in err
    assert "Traceback" not in err
    lease = folder / "lock.json"
    assert before.pop(lease).st_ino == after.pop(lease).st_ino
    assert before == after
    assert Path(folder / "config.json") in after


def test_a_lease_is_seen_to_be_free_without_waiting(tmp_path):
    assert workdir_lib.is_free(tmp_path)
    with workdir_lib.lock(tmp_path):
        assert not workdir_lib.is_free(tmp_path)
    assert workdir_lib.is_free(tmp_path)
    # The owner on this host has ended, or one on another host was heard from a moment ago.
    lease = tmp_path / "lock.json"
    lease.write_text(json.dumps({"host": socket.gethostname(), "pid": 1, "token": "x"}))
    assert workdir_lib.is_free(tmp_path)
    lease.write_text(json.dumps({"host": "elsewhere", "pid": 1, "token": "x"}))
    assert not workdir_lib.is_free(tmp_path)
    os.utime(lease, (0, 0))
    assert workdir_lib.is_free(tmp_path)
    assert lease.exists()
