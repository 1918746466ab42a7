"""Writing files whole or not at all, and finding where they may be written. Imports no JAX."""

import contextlib
import csv
import fcntl
import glob
import hashlib
import io
import json
import os
import re
import tempfile
import uuid
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from cifar_jax.errors import DamageError, UserError

_UNFINISHED = ".writing-"


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[io.BufferedRandom]:
    """Opens a temporary file that takes the place of `path` on exit, or is deleted on an error.

    Another process finds the old file or all of the new one, even after a power failure.
    """
    temporary, file = _open_unfinished(path.parent)
    try:
        with file as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def _open_unfinished(folder: Path) -> tuple[Path, io.BufferedRandom]:
    """Opens a new file, locked so that `clear_unfinished` leaves it alone."""
    while True:
        path = folder / f"{_UNFINISHED}{uuid.uuid4().hex}"
        file = path.open("x+b")
        with contextlib.suppress(OSError):  # not every file system has locks
            fcntl.flock(file, fcntl.LOCK_EX)
        if path.exists():
            return path, file
        file.close()  # it was cleared before it was locked


def clear_unfinished(folder: Path) -> None:
    """Deletes what killed processes were writing in a folder; what a living one writes stays."""
    for path in folder.glob(f"{_UNFINISHED}*"):
        with contextlib.suppress(OSError), path.open("r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()


def write_text(path: Path, text: str) -> None:
    """Writes a text file, whole or not at all; what UTF-8 cannot hold is escaped."""
    with replacing(path) as stream:
        stream.write(text.encode("utf-8", "backslashreplace"))


def write_json(path: Path, values: Any) -> None:
    """Writes values to a JSON file, whole or not at all."""
    write_text(path, json.dumps(values, indent=2) + "\n")


def write_csv(path: Path, rows: Iterable[Sequence[object]]) -> None:
    """Writes rows of cells as CSV, the way `write_text` does.

    A text that a spreadsheet would take for a formula gets an apostrophe before it.
    """
    lines: list[str] = []
    # With "\r\n" at the end of its rows, csv also quotes a cell that has "\r".
    writer = csv.writer(SimpleNamespace(write=lines.append), lineterminator="\r\n")
    writer.writerows([_escape_formula(cell) for cell in row] for row in rows)
    write_text(path, "".join(line.removesuffix("\r\n") + "\n" for line in lines))


def _escape_formula(cell: object) -> object:
    if not isinstance(cell, str) or not cell.startswith(("=", "+", "-", "@", "\t", "\r")):
        return cell
    is_number = re.fullmatch(r"[+-](\d+\.?\d*|\.\d+)(e[+-]?\d+)?", cell, re.IGNORECASE)
    return cell if is_number or cell == "-" else f"'{cell}"


def read_json(path: Path, missing: dict[str, Any] | None = None) -> dict[str, Any]:
    """Returns the object in a JSON file.

    Args:
      path: the file.
      missing: what to return if there is no such file; None: that is an error.

    Raises:
      DamageError: it does not hold one.
      UserError: there is no such file, or it cannot be read.
    """
    try:
        values = json.loads(path.read_bytes())
    except FileNotFoundError:
        if missing is not None:
            return missing
        raise UserError(f"{path} does not exist: is {path.parent} the workdir of a run?") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise DamageError(f"{path} is damaged: {error}") from None
    if not isinstance(values, dict):
        raise DamageError(f"{path} is damaged: it does not hold a JSON object")
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


def find_matches(pattern: str) -> list[str]:
    """Returns what a pattern matches, "**" included, as `glob` does, with two differences.

    Folders at its beginning that exist under these very names are no pattern, even with brackets;
    and "**" enters no folder twice, where `glob` follows links that loop for ever.
    """
    parts = pattern.split(os.sep)
    for count in range(len(parts) - 1, 0, -1):
        place = os.sep.join(parts[:count])
        if os.path.isdir(place):  # a name, even if it has brackets
            parts = [*glob.escape(place).split(os.sep), *parts[count:]]
            break
    if "**" not in parts:
        return glob.glob(os.sep.join(parts))
    level = parts.index("**")
    rest = [part for part in parts[level + 1 :] if part and part != "**"] or ["*"]
    starts = glob.glob(os.sep.join([*parts[:level], ""])) if level else [""]
    folders = (glob.escape(folder) for folder in walk_folders(starts))
    return [path for folder in folders for path in find_matches(os.path.join(folder, *rest))]


def walk_folders(starts: Iterable[str], strict: bool = False) -> Iterator[str]:
    """Yields folders and, level by level, those below them that are not hidden, each once.

    Links are followed; of several ways to a folder the shortest is taken.

    Args:
      starts: the folders.
      strict: whether to raise OSError for a folder that cannot be read; otherwise it has none.
    """
    ignored = () if strict else (OSError,)
    folders, seen = list(starts), set()
    for folder in folders:
        if (place := os.path.realpath(folder)) in seen:
            continue
        seen.add(place)
        yield folder
        with contextlib.suppress(*ignored), os.scandir(folder or ".") as entries:
            inner = sorted(x.name for x in entries if x.is_dir() and not x.name.startswith("."))
            folders += [os.path.join(folder, name) for name in inner]


def user_path(text: str | Path) -> Path:
    """Returns a path with "~" expanded, which a shell does not do after an "=".

    Raises:
      UserError: there is no such user.
    """
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise UserError(f"{text}: {error}") from error


def cache_folder() -> Path | None:
    """Returns the user's folder for files that can be rebuilt; None for a user without a home."""
    base = Path(os.path.expanduser(os.environ.get("XDG_CACHE_HOME", "")))
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
            clear_unfinished(folder)
        except OSError as error:
            raise UserError(
                f"{folder} cannot be written ({error.strerror}): choose another with {flag}"
            ) from error
        yield
