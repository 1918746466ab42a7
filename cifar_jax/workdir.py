"""A run's folder: its lock, its records, its signals. Imports no JAX."""

import contextlib
import fcntl
import json
import os
import platform
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, TextIO

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
    locks on.

    Raises:
      UserError: another process holds it, or the folder cannot be written.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        file = (workdir / _LOCK).open("a+")
    except OSError as error:
        raise UserError(
            f"--workdir {workdir} cannot be written ({error.strerror}): choose another folder"
        ) from error
    with file:
        held = False
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            held = True
        owner = _owner(file)
        here = socket.gethostname()
        if held or (owner and owner["host"] != here):
            owner = owner or {"host": here, "pid": "(just starting)"}
            words = f"{workdir} is in use by process {owner['pid']} on {owner['host']}"
            if not held:
                words += f"; if that no longer runs, delete {workdir / _LOCK}"
            raise UserError(words)
        file.truncate(0)
        json.dump({"host": here, "pid": os.getpid()}, file)
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)


def _owner(file: TextIO) -> dict[str, Any] | None:
    file.seek(0)
    with contextlib.suppress(ValueError):
        owner = json.load(file)
        if isinstance(owner, dict) and {"host", "pid"} <= owner.keys():
            return owner
    return None


class Signals:
    """Notes SIGINT and SIGTERM so that a run can end at the next good place.

    The first signal sets `received`; a second one ends the process at once.
    """

    EXIT_CODES: Mapping[int, int] = {signal.SIGINT: 130, signal.SIGTERM: 143}

    def __init__(self) -> None:
        self.received: int | None = None
        self._old: dict[int, Any] = {}

    def __enter__(self) -> "Signals":
        for number in self.EXIT_CODES:
            self._old[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: object) -> None:
        if self.received is not None:
            os._exit(self.EXIT_CODES[number])
        self.received = number
        print(
            f"\n{signal.Signals(number).name}: saving, then stopping", file=sys.stderr, flush=True
        )


def write_json(path: Path, values: Any) -> None:
    """Writes JSON so that the file is either the old one or the whole new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("w") as file:
        json.dump(values, file, indent=2)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def read_json(path: Path) -> Any:
    """Returns what a JSON file holds.

    Raises:
      UserError: there is none, or it cannot be read.
    """
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: is {path.parent} the workdir of a run?") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None


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


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def commit() -> str | None:
    """Returns the commit of this package's checkout, "+" behind it if files differ; else None."""
    folder = Path(__file__).parent

    def git(*words: str) -> str:
        command = ["git", *words]
        return subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=10, check=True
        ).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.SubprocessError):
        return None
