"""Damage to stored files, and a full disk."""

import contextlib
import logging
import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from cifar_jax.data import cache
from cifar_jax.runs.checkpoint import Checkpoints
from tests.faults.stops import SILENT, SURVIVED

KINDS = ("truncate", "empty", "delete", "flip", "flip", "flip", "extra", "link", "stale", "half")


def describe(step: int) -> dict[str, Any]:
    """Returns the description that a run saves with a state, as far as it is checked."""
    return {"progress": {"step": step, "seconds": 1.0, "stepping": 1.0, "sums": {}}}


def small_state(step: int) -> Any:
    """Returns a state of a few arrays whose values all depend on the step."""
    return {
        "params": {"kernel": jnp.full((40, 30), step + 0.5), "bias": jnp.arange(30.0) * step},
        "step": jnp.asarray(step, jnp.int32),
    }


def abstract_state() -> Any:
    """Returns the shapes of `small_state`, placed on the first device."""
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shapes = jax.eval_shape(small_state, 0)
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes
    )


def save_small(workdir: Path, *steps: int) -> None:
    """Saves `small_state` for each of the steps."""
    workdir.mkdir(exist_ok=True)
    checkpoints = Checkpoints(workdir)
    for step in steps:
        checkpoints.save(step, small_state(step), describe(step))
    checkpoints.close()


def damage(folder: Path, rng: random.Random) -> str:
    """Damages a checkpoint in a random way; returns a description."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    kind, path = rng.choice(KINDS), rng.choice(files)
    content = path.read_bytes()
    if kind == "extra":
        (path.parent / rng.choice(("0", "x.npy", ".hidden"))).write_bytes(rng.randbytes(9))
    elif kind == "half":
        for other in rng.sample(files, rng.randint(1, len(files))):
            other.unlink()
    elif kind == "delete":
        path.unlink()
    elif kind == "link":
        outside = folder.parent.parent / "outside"
        outside.write_bytes(content)
        path.unlink()
        path.symlink_to(outside)
    elif kind == "stale":
        older = folder.with_name(str(int(folder.name) - 1)) / path.relative_to(folder)
        path.write_bytes(older.read_bytes() if older.exists() else b"\0" + content)
        if path.read_bytes() == content:
            path.write_bytes(b"\0" + content)
    elif kind == "flip" and content:
        place = rng.randrange(len(content))
        flipped = content[place] ^ (1 << rng.randrange(8))
        path.write_bytes(content[:place] + bytes([flipped]) + content[place + 1 :])
    elif kind == "truncate" and content:
        path.write_bytes(content[: rng.randrange(len(content))])
    elif content:
        path.write_bytes(b"")
    else:
        path.write_bytes(b"\0")
    return f"{kind} {path.relative_to(folder)}"


@contextlib.contextmanager
def collect_log(name: str) -> Iterator[list[str]]:
    """Collects the messages that a module logs."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    log = logging.getLogger(name)
    log.addHandler(handler)
    try:
        yield lines
    finally:
        log.removeHandler(handler)


def damage_checkpoint(sound: Path, workdir: Path, rng: random.Random) -> str:
    """Damages the newer checkpoint of a copy of a run that has two, then restores the older one.

    Args:
      sound: the run with two checkpoints.
      workdir: where to copy it; removed if the trial survived.
      rng: chooses the damage.
    """
    shutil.copytree(sound, workdir)
    steps = Checkpoints(workdir, writable=False).steps()
    words = damage(workdir / "checkpoints" / str(steps[-1]), rng)
    writable = rng.random() < 0.5
    try:
        with collect_log("cifar_jax.runs.checkpoint") as lines:
            checkpoints = Checkpoints(workdir, writable=writable)
            found = checkpoints.find("last")
        if found != steps[-2]:
            return f"{SILENT}{words}: step {found} was taken for sound"
        if len(lines) != 1 or "damaged" not in lines[0]:
            return f"{words}: said {lines}"
        if checkpoints.steps() != (steps[:-1] if writable else steps):
            return f"{words}: not set aside"
        restored = checkpoints.restore(found, abstract_state())
        checkpoints.close()
    except Exception as error:
        return f"{words}: {type(error).__name__}: {error}"
    same = jax.tree.map(np.array_equal, restored, small_state(found))
    shutil.rmtree(workdir)
    return SURVIVED if all(jax.tree.leaves(same)) else f"{SILENT}{words}"


def damage_cache(source: Path, rng: random.Random) -> str:
    """Damages a file of the cache of decoded images, then loads the split again."""
    images = np.arange(5 * 4 * 4 * 3, dtype=np.uint8).reshape(5, 4, 4, 3)
    labels = np.arange(5, dtype=np.int32)

    def load() -> cache.CachedSplit:
        return cache.load_or_build(source, "set", "train", lambda: (images, labels, ("a",)))

    source.mkdir(exist_ok=True)
    load()
    files = sorted(path for path in (source / "decoded").iterdir() if path.is_file())
    path = rng.choice(files)
    content = path.read_bytes()
    place = rng.randrange(len(content))
    flipped = content[:place] + bytes([content[place] ^ (1 << rng.randrange(8))])
    choices = {"flip": flipped + content[place + 1 :], "truncate": content[:place], "empty": b""}
    kind = rng.choice(("flip", "flip", "truncate", "empty", "delete"))
    path.unlink()
    if kind != "delete":
        path.write_bytes(choices[kind])
    loaded = load()
    sound = np.array_equal(loaded.images, images) and np.array_equal(loaded.labels, labels)
    sound = sound and loaded.class_names == ("a",)
    sound = sound and (loaded.mean, loaded.std) == cache.channel_statistics(images)
    return SURVIVED if sound else f"{SILENT}{kind} {path.name}"


@contextlib.contextmanager
def small_disk(folder: Path, size: str = "2m") -> Iterator[Path]:
    """Mounts a small file system.

    Args:
      folder: where; it must not exist.
      size: in tmpfs's notation: "2m" is 2 MiB.

    Raises:
      PermissionError: this user may not mount.
    """
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)]
    if subprocess.run(command, capture_output=True).returncode:
        raise PermissionError("a small file system cannot be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def fill(folder: Path, left: int) -> Path:
    """Fills a disk but for `left` bytes, rounded up to pages; returns the file that fills it."""
    path = folder / "filler"
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
        while file.write(b"\0" * 4096):
            pass
    os.truncate(path, max(0, path.stat().st_size - left))
    return path


def fill_disk(folder: Path, rng: random.Random, blind: bool) -> str:
    """Fills the disk before a save, makes room, and saves again.

    Args:
      folder: where to mount the disk.
      rng: chooses how many bytes stay free.
      blind: whether the check of the free space reports plenty, so that Orbax itself fails.
    """
    with small_disk(folder) as disk:
        save_small(disk, 1)
        checkpoints = Checkpoints(disk)
        filler = fill(disk, left=rng.randrange(0, 60_000))
        usage = shutil._ntuple_diskusage(0, 0, 2**30)
        with mock.patch("shutil.disk_usage", return_value=usage) if blind else nullcontext():
            checkpoints.save(2, small_state(2), describe(2))
            checkpoints.wait()
        failed, kept = checkpoints.failure, checkpoints.steps()
        filler.unlink()
        checkpoints.save(3, small_state(3), describe(3))
        checkpoints.wait()
        wanted = [1, 3] if failed else [2, 3]
        if checkpoints.failure or checkpoints.steps() != wanted or 1 not in kept:
            return f"{failed}: {kept} then {checkpoints.steps()}"
        for step in wanted:
            if checkpoints.find(str(step)) != step:
                return f"{SILENT}step {step} is not found"
            restored = checkpoints.restore(step, abstract_state())
            if not np.array_equal(restored["params"]["kernel"], np.full((40, 30), step + 0.5)):
                return f"{SILENT}step {step}"
        checkpoints.close()
    return SURVIVED
