"""A run's folder: its lock and its records. Imports no JAX."""

import contextlib
import fcntl
import json
import os
import platform
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, BinaryIO

from cifar_jax.errors import UserError

CONFIG = "config.json"
METRICS = "metrics.jsonl"
RESULT = "result.json"
ENVIRONMENT = "environment.json"
_LOCK = "lock.json"

_PACKAGES = (
    *("cifar_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "clu"),
    *("ml-collections", "tensorflow-datasets", "numpy"),
)


@contextlib.contextmanager
def lock(workdir: Path) -> Iterator[None]:
    """Makes the folder and holds it for this process alone.

    The kernel lets go of the lock when its process ends, however it ends. The file says who has it;
    what another host left in it counts as a lock too, since a shared file system may not pass
    locks on. The folders that were made here go again if nothing was put into them.

    Raises:
      UserError: another process holds it, or the folder cannot be written.
    """
    if odd := re.search(r"[*?[\\]|gs:/", f"{workdir}/"):
        # Orbax looks for the parts of a checkpoint by a pattern and would leave the arrays out, or
        # takes the path for Google's cloud.
        raise UserError(f"--workdir {workdir} has {odd[0]} in its path: choose another folder")
    with take_back_empty(workdir):
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


@contextlib.contextmanager
def take_back_empty(folder: Path) -> Iterator[None]:
    """Takes away again those of a folder and its parents that are made meanwhile and stay empty."""
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            for path in made:
                path.rmdir()


def _claim(workdir: Path) -> BinaryIO | None:
    """Returns the locked file; None where its owner took it away in the meantime."""
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
                words += f"; if that no longer runs, delete {path}"
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


def write_text(path: Path, text: str) -> None:
    """Writes a file so that it is either the old one or the whole new one, on the disk."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_json(path: Path, values: Any) -> None:
    """Writes JSON so that the file is either the old one or the whole new one."""
    write_text(path, json.dumps(values, indent=2) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Returns the object that a JSON file holds.

    Raises:
      UserError: there is none, or it cannot be read.
    """
    try:
        values = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: is {path.parent} the workdir of a run?") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} is damaged: it holds no JSON object")
    return values


def sync_folder(folder: Path) -> None:
    """Brings the names in a folder to the disk, where the file system can."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def cache_folder() -> Path | None:
    """Returns the user's folder for what can be made again; None without a home."""
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    with contextlib.suppress(RuntimeError):  # a user who has none
        if base.is_absolute() or Path.home() != Path("/"):  # which HOME="" gives
            return (base if base.is_absolute() else Path.home() / ".cache") / "cifar_jax"
    return None


def versions() -> dict[str, str]:
    """Returns the versions of Python and of the packages that a result depends on."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def environment() -> dict[str, Any]:
    """Returns what a result depends on besides the config: versions, machine, commit, command."""
    return {
        "versions": versions(),
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "host": socket.gethostname(),
        "commit": commit(),
        "command": sys.argv,
    }


def _processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The processor's name and its widest vectors, as far as Linux tells them."""
    fields: dict[str, str] = {}
    with contextlib.suppress(OSError):
        for line in cpuinfo.read_text().splitlines():
            name, _, value = line.partition(":")
            fields.setdefault(name.strip(), value.strip())
    if not (processor := fields.get("model name", "")):
        return platform.processor() or platform.machine()
    flags = fields.get("flags", "").split()
    vectors = [words for flag, words in (("avx512f", "AVX-512"), ("avx2", "AVX2")) if flag in flags]
    return f"{processor} ({vectors[0]})" if vectors else processor


def commit() -> str | None:
    """Returns the commit of this package's checkout, "+" behind it if files differ; else None.

    What was measured, and the page that shows it, make no difference.
    """
    folder = Path(__file__).parent

    def git(*words: str) -> str:
        command = ["git", *words]
        return subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=10, check=True
        ).stdout.strip()

    files = (":(top)", ":(top,exclude)results/*.json", ":(top,exclude)README.md")
    try:
        differing = git("status", "--porcelain", "-uno", "--", *files)
        return git("rev-parse", "HEAD") + ("+" if differing else "")
    except (OSError, subprocess.SubprocessError):
        return None
