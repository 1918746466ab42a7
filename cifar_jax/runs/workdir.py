"""A run's folder: the names of its files, and its lock. Imports no JAX."""

import contextlib
import fcntl
import json
import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from cifar_jax import files
from cifar_jax.errors import UserError

CONFIG = "config.json"
METRICS = "metrics.jsonl"
RESULT = "result.json"
ENVIRONMENT = "environment.json"
_LOCK = "lock.json"


@contextlib.contextmanager
def lock(workdir: Path) -> Iterator[None]:
    """Creates the folder and locks it for this process.

    The kernel releases the lock when the process ends, however it ends. The lock file names the
    owner; an owner on another host counts as running, since a shared file system may not share
    locks. Folders created here are removed again if nothing was put into them.

    Raises:
      UserError: another process holds the lock, or the folder cannot be written.
    """
    if odd := re.search(r"[*?[\\]|gs:/", f"{workdir}/"):
        # Orbax would take these for a pattern and leave out the arrays, or for Google's cloud.
        raise UserError(f"--workdir {workdir} has {odd[0]} in its path: choose another folder")
    with files.remove_if_empty(workdir):
        try:
            workdir.mkdir(parents=True, exist_ok=True)
            while not (file := _claim(workdir)):
                pass
        except OSError as error:
            raise UserError(
                f"--workdir {workdir} cannot be written ({error.strerror}): choose another folder"
            ) from error
        with file:
            try:
                yield
            finally:
                with contextlib.suppress(OSError):
                    (workdir / _LOCK).unlink()


def _claim(workdir: Path) -> BinaryIO | None:
    """Returns the locked file, or None if its owner removed it in the meantime."""
    path = workdir / _LOCK
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(open(path, "a+b", buffering=0, opener=_open_no_link))
        held = False
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            held = True
        owner = _owner(file)
        here = socket.gethostname()
        if held or (owner and owner["host"] != here):
            owner = owner or {"host": here, "pid": "(just starting)"}
            words = f"{workdir} is in use by process {owner['pid']} on {owner['host']}"
            if not held:
                words += f"; if that process no longer runs, delete {path}"
            raise UserError(words)
        if os.fstat(file.fileno()).st_nlink == 0:
            return None
        file.truncate(0)
        file.write(json.dumps({"host": here, "pid": os.getpid()}).encode())
        stack.pop_all()
        return file


def _open_no_link(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)


def _owner(file: BinaryIO) -> dict[str, Any] | None:
    file.seek(0)
    with contextlib.suppress(ValueError):
        owner = json.loads(file.read())
        if isinstance(owner, dict) and {"host", "pid"} <= owner.keys():
            return owner
    return None
