"""What a run survives: kill -9, signals, damaged files, a full disk, any config.

    python -m benchmarks.faults --trials=100 --only=kill

prints a table (fault, trials, survived, silent errors) and writes results/bench_faults.json. A
trial has survived if the run ended in the very bits of an undisturbed one, or said in words what is
wrong where that is the right answer. It is a silent error if it went on with wrong values.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

import main as program_main
from cifar_jax import config as config_lib
from cifar_jax import fields, image_cache
from cifar_jax.checkpoint import Checkpoints
from cifar_jax.errors import UserError
from configs import default
from tests import program

SURVIVED = "survived"
# Prefix of the outcome of a trial that went on with wrong values and said nothing.
SILENT = "silent: "
STOPS: dict[int, int] = {signal.SIGINT: 130, signal.SIGTERM: 143}
KINDS = ("truncate", "empty", "delete", "flip", "flip", "flip", "extra", "link", "stale", "half")


def run_fields(num_steps: int = 40) -> dict[str, Any]:
    """The run that is disturbed: it saves after every step."""
    return {
        "num_steps": num_steps,
        "steps_per_call": 1,
        "eval_every_steps": 4,
        "checkpoint__every_steps": 1,
    }


def reference(folder: Path, **changes: Any) -> tuple[Path, str]:
    """Makes the undisturbed run; returns its workdir and the flag of its config."""
    flag = program.write_config(folder / "disturbed.py", **(run_fields() | changes))
    code, _, err = program.run_here(flag, f"--workdir={folder / 'undisturbed'}")
    assert (code, err) == (0, ""), err
    return folder / "undisturbed", flag


def disturb(
    undisturbed: Path, flag: str, workdir: Path, rng: random.Random, signals: tuple[int, ...]
) -> str:
    """Stops a run by a signal, up to three times, and starts it again until it ends.

    Args:
      undisturbed: the run to compare with.
      flag: of the config.
      workdir: of the disturbed run.
      rng: chooses the moments.
      signals: one of them is sent each time.
    """
    for _ in range(rng.randint(1, 3)):
        number = rng.choice(signals)
        with program.start(flag, f"--workdir={workdir}") as process:
            assert process.stdout is not None
            # The line before the loop; what comes earlier is tried in one of five trials.
            while rng.random() < 0.99 and " steps (" not in (line := process.stdout.readline()):
                if not line:
                    break
            time.sleep(rng.uniform(0, 2.5))
            process.send_signal(number)
            _, err = process.communicate(timeout=120)
        wanted = (STOPS[number], -number, 0) if number in STOPS else (-number, 0)
        if process.returncode not in wanted:
            return f"exit code {process.returncode} after {signal.Signals(number).name}: {err}"
    code, _, err = program.run_apart(flag, f"--workdir={workdir}")
    if code:
        return f"exit code {code}: {err}"
    what = program.difference(workdir, undisturbed)
    return SILENT + what if what else SURVIVED


def small_state(step: int) -> Any:
    """A state of a few arrays, all of whose values tell the step."""
    return {
        "params": {"kernel": jnp.full((40, 30), step + 0.5), "bias": jnp.arange(30.0) * step},
        "step": jnp.asarray(step, jnp.int32),
    }


def abstract_state() -> Any:
    """The shapes of `small_state` on the first device."""
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shapes = jax.eval_shape(small_state, 0)
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes
    )


def save_small(workdir: Path, *steps: int) -> None:
    """Saves `small_state` of each step."""
    workdir.mkdir(exist_ok=True)
    checkpoints = Checkpoints(workdir)
    for step in steps:
        checkpoints.save(step, small_state(step), {"progress": {"step": step}})
    checkpoints.close()


def damage(folder: Path, rng: random.Random) -> str:
    """Damages a checkpoint in some way; returns words for it."""
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


def damage_checkpoint(sound: Path, workdir: Path, rng: random.Random) -> str:
    """Damages the newest checkpoint of a copy of a run that has two, then goes on from it."""
    shutil.copytree(sound, workdir)
    steps = Checkpoints(workdir, writable=False).steps()
    words = damage(workdir / "checkpoints" / str(steps[-1]), rng)
    try:
        checkpoints = Checkpoints(workdir, writable=rng.random() < 0.5)
        found = checkpoints.find("last")
        if found != steps[-2]:
            return f"{SILENT}{words}: step {found} was found sound"
        restored = checkpoints.restore(found, abstract_state())
        checkpoints.close()
    except Exception as error:
        return f"{words}: {type(error).__name__}: {error}"
    same = jax.tree.map(np.array_equal, restored, small_state(found))
    return SURVIVED if all(jax.tree.leaves(same)) else f"{SILENT}{words}"


def damage_cache(source: Path, rng: random.Random) -> str:
    """Damages a decoded split kept on disk, then loads it."""
    images = np.arange(5 * 4 * 4 * 3, dtype=np.uint8).reshape(5, 4, 4, 3)
    labels = np.arange(5, dtype=np.int32)

    def load() -> image_cache.CachedSplit:
        return image_cache.load_or_build(source, "set", "train", lambda: (images, labels, ("a",)))

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
    means = np.allclose(loaded.mean, images.mean(axis=(0, 1, 2)) / 255)
    return SURVIVED if sound and means else f"{SILENT}{kind} {path.name}"


@contextlib.contextmanager
def small_disk(folder: Path, size: str = "2m") -> Iterator[Path]:
    """Mounts a file system of a small size.

    Raises:
      PermissionError: this user may not.
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
    """Writes a file that leaves that many bytes (rounded up to pages) of a disk; returns it."""
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
      rng: chooses how much is left.
      blind: the look at the free space sees nothing amiss, so that Orbax runs into it.
    """
    with small_disk(folder) as disk:
        save_small(disk, 1)
        checkpoints = Checkpoints(disk)
        filler = fill(disk, left=rng.randrange(0, 60_000))
        usage = shutil._ntuple_diskusage(0, 0, 2**30)
        with mock.patch("shutil.disk_usage", return_value=usage) if blind else nullcontext():
            checkpoints.save(2, small_state(2), {"progress": {}})
            checkpoints.wait()
        failed, kept = checkpoints.failure, checkpoints.steps()
        filler.unlink()
        checkpoints.save(3, small_state(3), {"progress": {}})
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


_VALUES = (
    *("0", "1", "-1", "2", "3", "7", "64", "0.5", "0.9", "1.0", "-0.1", "1e-9", "1e30", "1e39"),
    *("nan", "inf", "-inf", "1e400", str(2**31), str(2**32), "9" * 400, "", " ", "True", "false"),
    *("None", "(1,)", "(1, 2)", "(2, 1)", "(0.5, 1)", "('a',)", "(nan,)", "()", "[1]", "{}", "(("),
    *("adam", "sgd", "lion", "rprop", "novograd", "cosine", "linear", "step", "one_cycle", "mlp"),
    *("digits", "cifar10", "../x", "a/b", "ö", "x" * 300, "%s", "host", "bfloat16", "float32"),
)


def random_overrides(rng: random.Random) -> list[str]:
    """Returns some --config.FIELD=VALUE, of which most make no sense."""
    names = [name for name, _ in fields.flatten(default.get_config())]
    names += ["model.hidden_sizes", "model.activation", "model.width", "no_such_field", "model"]
    chosen = rng.sample(names, rng.randint(1, 4))
    return [f"--config.{name}={rng.choice(_VALUES)}" for name in chosen]


def try_config(flag: str, overrides: list[str]) -> tuple[int, str]:
    """Gives a command line to the program up to the data; returns the exit code and the outcome."""

    def check() -> int:
        fields.check(program_main.FLAGS.config, default.get_config())
        config_lib.check(program_main.FLAGS.config)
        return 0

    with mock.patch.dict(program_main.MODES, train=check):
        result = program.run_here(flag, *overrides)
    return result[0], answered(*result, overrides)


def answered(code: int, _: str, err: str, overrides: list[str]) -> str:
    """Whether the program did what it was told or said in lines of its own why not."""
    lines = err.splitlines()
    if (code == 0 and not lines) or (
        code and lines and all(x.startswith("error: ") for x in lines)
    ):
        return SURVIVED
    return f"{overrides}: exit code {code}, {err}"


def guard(trial: Callable[[], str]) -> str:
    """Returns the trial's outcome, an exception included."""
    try:
        return trial()
    except (Exception, UserError) as error:
        return f"{type(error).__name__}: {error}"


def trials_of(folder: Path) -> dict[str, Callable[[int, random.Random], str]]:
    """Returns a function (number, rng) -> outcome for each fault."""
    undisturbed, flag = reference(folder)
    save_small(folder / "sound", 1, 2)

    def stop(*signals: int) -> Callable[[int, random.Random], str]:
        return lambda n, rng: disturb(undisturbed, flag, folder / f"stop{n}", rng, signals)

    return {
        "kill": stop(signal.SIGKILL),
        "signal": stop(signal.SIGTERM, signal.SIGINT),
        "damage": lambda n, rng: damage_checkpoint(folder / "sound", folder / f"damage{n}", rng),
        "cache": lambda n, rng: damage_cache(folder / "cache", rng),
        "disk": lambda n, rng: fill_disk(folder / f"disk{n}", rng, bool(n % 2)),
        "config": lambda n, rng: try_config(flag, random_overrides(rng))[1],
    }


def main() -> None:
    """Runs the trials."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", help="kill, signal, damage, cache, disk, config")
    options = parser.parse_args()
    rows, bad = [], []
    with tempfile.TemporaryDirectory(prefix="faults-") as name:
        for fault, trial in trials_of(Path(name)).items():
            if options.only and fault not in options.only:
                continue
            outcomes: Counter[str] = Counter()
            for number in range(options.trials):
                rng = random.Random(f"{options.seed} {fault} {number}")
                outcomes[guard(lambda t=trial, n=number, r=rng: t(n, r))] += 1  # type: ignore[misc]
            silent = sum(n for words, n in outcomes.items() if words.startswith(SILENT))
            rows.append([fault, options.trials, outcomes.pop(SURVIVED, 0), silent])
            bad += [f"{fault}: {words}" for words in outcomes]
            print("{:>8} {:>7} trials {:>7} survived {:>3} silent".format(*rows[-1]), flush=True)
    print(*bad, sep="\n")
    result = {"columns": ["fault", "trials", "survived", "silent"], "rows": rows}
    Path("results/bench_faults.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
