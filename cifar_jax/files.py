"""Writing files whole or not at all, and finding where they may be written. Imports no JAX."""

import contextlib
import csv
import hashlib
import io
import json
import os
import tempfile
import uuid
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from cifar_jax.errors import UserError


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[io.BufferedRandom]:
    """Opens a temporary file that takes the place of `path` on exit, or is deleted on an error.

    Another process finds the old file or all of the new one, even after a power failure.
    """
    temporary = path.with_name(f".writing-{uuid.uuid4().hex}")
    try:
        with temporary.open("x+b") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    """Writes a text file, whole or not at all; what UTF-8 cannot hold is escaped."""
    with replacing(path) as stream:
        stream.write(text.encode("utf-8", "backslashreplace"))


def write_json(path: Path, values: Any) -> None:
    """Writes values to a JSON file, whole or not at all."""
    write_text(path, json.dumps(values, indent=2) + "\n")


def write_csv(path: Path, rows: Iterable[Sequence[object]]) -> None:
    """Writes rows of cells as CSV, the way `write_text` does."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    write_text(path, text.getvalue())


def read_json(path: Path) -> dict[str, Any]:
    """Returns the object in a JSON file.

    Raises:
      UserError: there is no such file, or it cannot be read.
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
        raise UserError(f"{path} is damaged: it does not hold a JSON object")
    return values


def digest(values: Any) -> str:
    """Returns the SHA-256 of JSON values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def sync_folder(folder: Path) -> None:
    """Makes the names in a folder durable, where the file system supports it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def cache_folder() -> Path | None:
    """Returns the user's folder for files that can be rebuilt; None for a user without a home."""
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    with contextlib.suppress(RuntimeError):  # a user without a home
        if base.is_absolute() or Path.home() != Path("/"):  # HOME="" gives "/"
            return (base if base.is_absolute() else Path.home() / ".cache") / "cifar_jax"
    return None


def may_write(folder: Path) -> bool:
    """Whether a folder, or its nearest existing parent, can be written to.

    The permission bits apply to the superuser too: a read-only folder is left alone.
    """
    existing = folder
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    try:
        granted = existing.is_dir() and bool(existing.stat().st_mode & 0o222)
    except OSError:
        return False
    return granted and os.access(existing, os.W_OK | os.X_OK)


@contextlib.contextmanager
def remove_if_empty(folder: Path) -> Iterator[None]:
    """On exit, removes a folder and its parents if they were created inside and are empty."""
    created = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            for path in created:
                path.rmdir()


@contextlib.contextmanager
def output_folder(folder: Path, flag: str = "--output") -> Iterator[None]:
    """Creates the folder that a flag names, and removes it again if it stays empty.

    Raises:
      UserError: the folder cannot be written.
    """
    with remove_if_empty(folder):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise UserError(
                f"{folder} cannot be written ({error.strerror}): choose another with {flag}"
            ) from error
        yield
