"""The cache of compiled programs: one folder for each kind of processor, of a bounded size.

JAX writes an entry in place and believes what it reads. A process that is killed leaves half of an
entry behind, which JAX would warn of at each start and never replace; one that took another's place
would be run. So each entry gets a seal once it is written, the SHA-256 of its name and its bytes,
and those without a sound one are removed at the next start.
"""

import contextlib
import functools
import hashlib
import logging
import os
import shutil
import zlib
from pathlib import Path
from typing import Any

import jax

from cifar_jax import files
from cifar_jax.parallel import cpu

# The oldest entries beyond this size are removed.
MOST_BYTES = 2**30
_MISS = "/jax/compilation_cache/cache_misses"
_ZSTANDARD = b"\x28\xb5\x2f\xfd"  # how its files begin
_COMPILED = "/jax/core/compile/backend_compile_duration"

_log = logging.getLogger(__name__)


def use_cache() -> None:
    """Lets JAX keep compiled programs in the user's folder, unless JAX has another one."""
    config: Any = jax.config
    if (given := config.jax_compilation_cache_dir) is not None:
        if not given or "://" in given:
            return
        if _may_write(Path(given)):
            _keep_sound(Path(given))
            return
        words = "programs are kept in a folder of this package"
        _log.warning("JAX_COMPILATION_CACHE_DIR=%s cannot be written: %s", given, words)
        jax.config.update("jax_compilation_cache_dir", None)
    if folder := find_folder():
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
        _keep_sound(folder)


@functools.cache  # once in a process
def _keep_sound(folder: Path) -> None:
    """Removes entries that are not sound, and has those sealed that JAX will write."""
    remove_unsound(folder, own=folder == find_folder())
    missed = False

    def note(event: str, **_: str | int) -> None:
        nonlocal missed
        missed = missed or event == _MISS

    def seal_new(event: str, duration_secs: float, **_: str | int) -> None:
        nonlocal missed
        if missed and event == _COMPILED:  # the entry has been written
            missed = False
            seal(folder)

    jax.monitoring.register_event_listener(note)
    jax.monitoring.register_event_duration_secs_listener(seal_new)


def find_folder() -> Path | None:
    """Returns the user's folder for compiled programs, created if needed; None without a home."""
    try:
        if (home := files.cache_folder()) is None:
            return None
        # Programs compiled for one kind of processor may not run on another.
        kind = hashlib.sha256(cpu.describe_processor().encode()).hexdigest()[:8]
        folder = home / f"xla-{kind}"
    except OSError:
        return None
    return folder if _may_write(folder) else None


def _may_write(folder: Path) -> bool:
    """Whether a folder can be written to, which is created if needed."""
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
    return os.access(folder, os.W_OK)


def seal(folder: Path) -> None:
    """Seals the entries that have no seal yet."""
    with contextlib.suppress(OSError):
        for path in folder.glob("*-cache"):
            if not _seal_of(path).exists():
                files.write_text(_seal_of(path), _digest(path))


def remove_unsound(folder: Path, own: bool = True) -> None:
    """Removes entries that are damaged, exchanged or cut off, and the oldest beyond the size.

    Args:
      folder: of the entries.
      own: whether it is this package's. Elsewhere other programs' entries have no seal: they stay
        if they can be unpacked, and so does what is beyond the size.
    """
    total = 0
    for path in sorted(folder.glob("*-cache"), key=_written, reverse=True):
        try:
            total += path.stat().st_size
            if total > MOST_BYTES:
                sound = not own
            elif own or _seal_of(path).exists():
                sound = _seal_of(path).read_text() == _digest(path)
            else:
                sound = _is_whole(path.read_bytes())
        except (OSError, ValueError):
            sound = False
        for part in () if sound else (path, _seal_of(path)):
            with contextlib.suppress(OSError):
                shutil.rmtree(part) if part.is_dir() else part.unlink()


def _is_whole(entry: bytes) -> bool:
    if entry.startswith(_ZSTANDARD):  # which needs a library of its own
        return True
    try:
        return bool(zlib.decompress(entry))
    except zlib.error:
        return False


def _written(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:  # removed in the meantime
        return 0.0


def _seal_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _digest(path: Path) -> str:
    return hashlib.sha256(path.name.encode() + path.read_bytes()).hexdigest()
