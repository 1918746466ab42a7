"""A run's folder: the names of its files, and the lease that lets one process write there.

The owner of the lease renews it while it runs. If it has not been renewed for `STALE_SECONDS`, its
owner is taken for dead, on whichever host it ran, and the lease is taken over. An owner that was
paused, or cut off from the disk, checks before each write whether it still holds the lease.
Imports no JAX.
"""

import contextlib
import errno
import fcntl
import json
import logging
import os
import re
import socket
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from cifar_jax import files
from cifar_jax.errors import UserError

CONFIG = "config.json"
METRICS = "metrics.jsonl"
RESULT = "result.json"
ENVIRONMENT = "environment.json"
_LEASE = "lock.json"

# How often a lease is renewed, and for how long it stays valid without that. The clock is that of
# the file system: those of the hosts may differ.
RENEW_SECONDS = 10.0
STALE_SECONDS = 60.0

_log = logging.getLogger(__name__)
# The token of each lease that this process holds, by the folder's real path.
_held: dict[Path, str] = {}


def list_steps(workdir: Path) -> list[int]:
    """Returns the steps that have a checkpoint, in ascending order.

    Raises:
      OSError: the folder exists but cannot be read.
    """
    try:
        names = os.listdir(workdir / "checkpoints")
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(int(name) for name in names if re.fullmatch("0|[1-9][0-9]*", name))


@contextlib.contextmanager
def lock(workdir: Path, take_over: bool = False) -> Iterator[None]:
    """Creates the folder and holds its lease for this process.

    An owner on this host is recognized by a file lock, which the kernel releases when its process
    ends. An owner on another host counts as running while it renews the lease; if it has done so
    recently, this waits until the lease is renewed again or no longer valid. Then files are deleted
    that a killed process was writing. Folders created here are removed again if nothing was put
    into them.

    Args:
      workdir: the run's folder.
      take_over: whether to take the lease from its owner at once, running or not.

    Raises:
      UserError: another process holds the lease, or the folder cannot be written.
    """
    if odd := re.search(r"[*?[\\]|gs:/", f"{workdir}/"):
        # Orbax would take these for a pattern and leave out the arrays, or for Google's cloud.
        raise UserError(f"--workdir {workdir} has {odd[0]} in its path: choose another folder")
    with files.remove_if_empty(workdir):
        try:
            workdir.mkdir(parents=True, exist_ok=True)
            if take_over:
                (workdir / _LEASE).unlink(missing_ok=True)
            while not (file := _claim(workdir)):
                pass
            for folder in workdir.glob("**/"):
                files.clear_unfinished(folder)
        except OSError as error:
            raise UserError(
                f"--workdir {workdir} cannot be written ({error.strerror}): choose another folder"
            ) from error
        ended = threading.Event()
        renewing = threading.Thread(target=_renew, args=(workdir, ended), daemon=True)
        renewing.start()
        with file:
            try:
                yield
            finally:
                ended.set()
                renewing.join()
                with contextlib.suppress(OSError):
                    if _is_held(workdir):
                        (workdir / _LEASE).unlink()
                del _held[workdir.resolve()]


def check_lease(workdir: Path) -> None:
    """Raises UserError if this process has lost its lease on a folder; to be called before writing.

    A process that never held one, such as a program that calls `train` itself, passes.
    """
    if workdir.resolve() in _held and not _is_held(workdir):
        raise UserError(
            f"{workdir} was taken over by another process: this one stops without writing",
            exit_code=1,
        )


def is_free(workdir: Path) -> bool:
    """Whether no process holds a folder's lease, as far as can be told at once."""
    try:
        with (workdir / _LEASE).open("rb") as file:
            owner = _owner(file)
            if owner is not None and owner["host"] != socket.gethostname():
                return _now(workdir) - os.fstat(file.fileno()).st_mtime > STALE_SECONDS
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return True
    except BlockingIOError:
        return False
    return True


def _is_held(workdir: Path) -> bool:
    try:
        owner = json.loads((workdir / _LEASE).read_bytes())
    except (FileNotFoundError, ValueError):  # another process is about to write it
        return False
    except OSError:  # a disk that does not answer now
        return True
    return isinstance(owner, dict) and owner.get("token") == _held[workdir.resolve()]


def _renew(workdir: Path, ended: threading.Event) -> None:
    while not ended.wait(RENEW_SECONDS):
        with contextlib.suppress(OSError):
            if _is_held(workdir):
                os.utime(workdir / _LEASE)


def _claim(workdir: Path) -> BinaryIO | None:
    """Returns the locked file; None if it was removed or replaced, and is to be claimed again."""
    path = workdir / _LEASE
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(open(path, "a+b", buffering=0, opener=_open_no_link))
        here, held = socket.gethostname(), False
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            held = True
        owner = _owner(file)
        elsewhere = owner is not None and owner["host"] != here
        if held and not elsewhere:
            _refuse(workdir, owner or {"host": here, "pid": "(just starting)"})
        if owner is not None and elsewhere:
            _wait_until_stale(workdir, file, owner)
            if held and _renewed(path, file) is not None:
                # A network file system keeps the lock of a host that has gone.
                path.unlink(missing_ok=True)
        if held or _renewed(path, file) is None:
            return None
        token = uuid.uuid4().hex
        file.truncate(0)
        file.write(json.dumps({"host": here, "pid": os.getpid(), "token": token}).encode())
        _held[workdir.resolve()] = token
        if not _is_held(workdir):  # another host was faster, where locks do not reach hosts
            del _held[workdir.resolve()]
            return None
        stack.pop_all()
        return file


def _wait_until_stale(workdir: Path, file: BinaryIO, owner: dict[str, Any]) -> None:
    """Returns when the lease of an owner on another host is no longer valid, or removed.

    Raises:
      UserError: the owner renewed it in the meantime.
    """
    path, begun, warned = workdir / _LEASE, time.monotonic(), False
    if (renewed := _renewed(path, file)) is None:
        return
    # Not longer than this, even if the lease is from the future: a clock may have been set back.
    while (left := STALE_SECONDS - max(_now(workdir) - renewed, time.monotonic() - begun)) > 0:
        if not warned:
            _log.warning(
                "%s was in use on %s %.0f s ago: waiting up to %.0f s for a sign of that process "
                "(--take_over does not wait)",
                *(workdir, owner["host"], STALE_SECONDS - left, left),
            )
            warned = True
        time.sleep(min(1.0, left))
        if (now := _renewed(path, file)) is None:
            return
        if now != renewed:
            _refuse(workdir, owner)
    _log.warning(
        "taking over %s from process %s on %s, which has not been heard from for %.0f s",
        *(workdir, owner["pid"], owner["host"], _now(workdir) - renewed),
    )


def _renewed(path: Path, file: BinaryIO) -> float | None:
    """Returns when an open lease was renewed; None if it has been removed or replaced.

    The file is opened anew: only then does a network file system ask its server. Of a file that
    another host has removed it says ESTALE.
    """
    try:
        with open(path, "rb", opener=_open_no_link) as fresh:
            status = os.fstat(fresh.fileno())
        return status.st_mtime if os.path.samestat(status, os.fstat(file.fileno())) else None
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ESTALE):
            return None
        raise


def _refuse(workdir: Path, owner: dict[str, Any]) -> NoReturn:
    raise UserError(
        f"{workdir} is in use by process {owner['pid']} on {owner['host']}: stop that one, or take "
        "the folder from it with --take_over"
    )


def _now(folder: Path) -> float:
    """Returns the time by the clock of the file system that a folder is on, in seconds."""
    with tempfile.TemporaryFile(dir=folder) as probe:
        os.utime(probe.fileno())
        return os.fstat(probe.fileno()).st_mtime


def _open_no_link(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)


def _owner(file: BinaryIO) -> dict[str, Any] | None:
    file.seek(0)
    with contextlib.suppress(ValueError):
        owner = json.loads(file.read())
        if isinstance(owner, dict) and {"host", "pid"} <= owner.keys():
            return owner
    return None
