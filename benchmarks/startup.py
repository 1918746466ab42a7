"""Seconds from the command to the first training step, where they go, and the memory of a training.

    TFDS_DATA_DIR=... python -m benchmarks.startup --keras-python=... --torch-python=... [--write]

The command is `python main.py --config=configs/simple_cnn.py` on prepared data, in a new workdir,
on a terminal; the progress bar appears after the first step. Cold: no compiled program is kept from
before. Warm: the same command once more. Memory: the largest resident size of a training of 100
steps and an evaluation on the test set, compared with the same in Keras (both splits as float32
arrays) and in PyTorch (uint8, converted batch by batch).
"""

import argparse
import json
import os
import pty
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks import workers
from benchmarks.peers import start_phases
from benchmarks.workers import (
    ROOT,
    Worker,
    WorkerError,
    add_output_flags,
    resident_bytes,
    write_result,
)
from cifar_jax.runs import provenance

CONFIG = "--config=configs/simple_cnn.py"
NUM_STEPS, BATCH_SIZE = 100, 128
# tqdm's bar after the first step: "1/390 ["; before that there is no bar.
BAR = re.compile(rb"\d+/\d+ \[")
TIMEOUT_SECONDS = 120
DATA = "data.npz"
PEERS = {"keras": "keras_tf", "pytorch": "pytorch"}
# In a process of its own, since a child's peak memory counts what its parent held at the fork.
PREPARE = """
import sys
import numpy as np
from cifar_jax.data import datasets
splits = datasets.load_dataset("cifar10").splits
parts = {f"{name}_{part}": getattr(split, part) for name, split in splits.items()
         for part in ("images", "labels")}
np.savez(sys.argv[1], **parts)
"""


def time_first_step(command: list[str], env: Mapping[str, str]) -> float:
    """Returns the seconds from the start of a command to its bar, then stops it.

    Raises:
      RuntimeError: it ended, or TIMEOUT_SECONDS passed, before there was a bar.
    """
    terminal, its_side = pty.openpty()
    termios.tcsetwinsize(its_side, (24, 80))  # the bar fills the width
    begun = time.monotonic()
    process = subprocess.Popen(
        command, cwd=ROOT, env=env, stdout=subprocess.DEVNULL, stderr=its_side
    )
    os.close(its_side)
    seen = b""
    alarm = signal.signal(signal.SIGALRM, lambda *_: process.kill())
    signal.alarm(TIMEOUT_SECONDS)
    try:
        while not BAR.search(seen):
            try:
                seen += os.read(terminal, 4096)
            except OSError:  # the other side is closed
                words = seen.decode(errors="replace").strip()
                raise RuntimeError(f"no step was made: {words}") from None
        seconds = time.monotonic() - begun
        process.send_signal(signal.SIGTERM)
        drain(terminal)
        return seconds
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, alarm)
        process.wait()
        os.close(terminal)


def drain(terminal: int) -> None:
    """Reads until the other side is closed, so that it never waits for us."""
    try:
        while os.read(terminal, 4096):
            pass
    except OSError:
        pass


def environment(folder: Path) -> dict[str, str]:
    """Returns the environment of a command: its own cache, and no settings of the user."""
    env = workers.environment(os.environ) | {"XDG_CACHE_HOME": str(folder / "cache")}
    env.pop("JAX_COMPILATION_CACHE_DIR", None)
    return env


def prepare(folder: Path) -> None:
    """Decodes the images before anything is measured, and writes them for the other frameworks."""
    command = [sys.executable, "-c", PREPARE, str(folder / DATA)]
    subprocess.run(command, cwd=ROOT, env=environment(folder), check=True)


def forget_compiled(folder: Path) -> None:
    """Removes the compiled programs."""
    for compiled in (folder / "cache" / "cifar_jax").glob("xla-*"):
        shutil.rmtree(compiled)


def time_phases(command: list[str], env: Mapping[str, str]) -> dict[str, float]:
    """Returns the seconds of each phase until the first step, in the order of `start_phases`.

    Args:
      command: the arguments of main.py.
      env: its environment.
    """
    program = [sys.executable, "-m", "benchmarks.peers.start_phases", *command]
    begun = {start_phases.BEGUN: repr(time.time())}
    found = subprocess.run(
        program, cwd=ROOT, env=dict(env) | begun, check=True, capture_output=True
    )
    return json.loads(found.stdout.splitlines()[-1])


def measure_startup(folder: Path, repeats: int) -> dict[str, Any]:
    """Starts training `repeats` times, each time cold and then warm; returns the seconds.

    Args:
      folder: where the workdirs and caches are written.
      repeats: how many times.
    """
    env = environment(folder)
    seconds: dict[str, list[float]] = {"cold": [], "warm": []}
    phases: dict[str, list[dict[str, float]]] = {"cold": [], "warm": []}
    for number in range(repeats):
        for what in ("whole", "phases"):
            forget_compiled(folder)
            for kind, times in seconds.items():
                command = [CONFIG, f"--workdir={folder / f'{what}_{kind}_{number}'}"]
                if what == "whole":
                    whole = time_first_step([sys.executable, "main.py", *command], env)
                    times.append(round(whole, 2))
                    print(f"first step, {kind}: {times[-1]:.1f} s", flush=True)
                else:
                    phases[kind].append(time_phases(command, env))
                    print(f"phases, {kind}: {phases[kind][-1]}", flush=True)
    return {
        **{f"{kind}_seconds": statistics.median(times) for kind, times in seconds.items()},
        "phases": {
            kind: {name: statistics.median(one[name] for one in every) for name in every[0]}
            for kind, every in phases.items()
        },
        "rounds": seconds,
    }


def measure_memory(folder: Path, pythons: Mapping[str, str | None]) -> dict[str, int]:
    """Returns the largest resident memory of a short training, in bytes, by framework."""
    command = [sys.executable, "main.py", CONFIG, f"--workdir={folder / 'memory'}"]
    command += [f"--config.num_steps={NUM_STEPS}", f"--config.batch_size={BATCH_SIZE}"]
    # The other frameworks draw no report and have no warm-up.
    command += ["--config.log.report=False", "--config.schedule.warmup_epochs=0"]
    forget_compiled(folder)
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment(folder), stdout=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError("the training failed")
    sizes = {"ours": resident_bytes(usage)}
    for name, program in PEERS.items():
        python = pythons[name]
        if python is None:
            print(f"skipping {name}: its interpreter was not given")
            continue
        try:
            worker = Worker(name, python, [program])
        except WorkerError as error:
            print(f"skipping {name}: {error}")
            continue
        case = {"path": str(folder / DATA), "num_steps": NUM_STEPS, "batch_size": BATCH_SIZE}
        worker.ask("train_once", **case)
        sizes[name] = worker.close()
    for name, size in sizes.items():
        print(f"memory, {name}: {size / 2**20:.0f} MiB")
    return sizes


def main(argv: list[str]) -> int:
    """Runs the benchmark; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--keras-python", help="has keras and tensorflow")
    parser.add_argument("--torch-python", help="has torch")
    parser.add_argument("--repeats", type=int, default=3)
    add_output_flags(parser, "bench_startup")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder))
        startup = measure_startup(Path(folder), options.repeats)
        pythons = {"keras": options.keras_python, "pytorch": options.torch_python}
        sizes = measure_memory(Path(folder), pythons)
    machine = provenance.environment()
    result = {
        "hardware": f"{machine['cores']} cores of {machine['processor']}",
        "versions": machine["versions"],
        "commit": machine["commit"],
        **startup,
        "resident_bytes": sizes,
    }
    write_result(options, "bench_startup", result)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
