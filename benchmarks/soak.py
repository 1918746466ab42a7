"""Whether a long run keeps its memory, its open files and its threads.

    python -m benchmarks.soak --minutes=60

trains by the real command, which evaluates and saves often, and looks at its process from outside,
through /proc (Linux). Saves and steps come and go: of each small part of the time the least counts,
which a leak raises. After a warm-up, a straight line is fitted to that floor; what it rises over
the time measured must stay below ALLOWED. Flags behind `--` go to the command, in place of the
small ResNet on the digits. Writes results/bench_soak.json; the exit code is 0 if it passed.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import held
from benchmarks.workers import describe_machine
from cifar_jax.runs import history
from cifar_jax.runs import workdir as workdir_lib

ROOT = Path(__file__).resolve().parent.parent
DEFAULT = ("--config=configs/resnet.py:20", "--config.data.name=digits")
EVERY = 20  # steps
LONG = (
    *("--config.num_steps=100000000", f"--config.eval_every_steps={EVERY}"),
    f"--config.checkpoint.every_steps={EVERY}",
)
# What each series may rise over the time measured. TensorStore 0.1.86 loses 257 bytes for each
# array that is saved (in KvStore.Spec.to_json), some 45 kB for a save of this ResNet; a pool of its
# threads reaches its full size only after many saves. In use is what the C library has given out;
# Python's own objects are beside that, in what is resident.
IN_USE = "memory in use, MiB"
ALLOWED = {IN_USE: 64.0, "memory, MiB": 64.0, "open files": 4.0, "threads": 4.0}
# The part of the time that counts as warm-up, and the parts that the rest is divided into.
WARM_UP, PARTS = 0.2, 24
# In the workdir.
TOLD = "held.bin"
# Points of a series that are kept.
MOST_POINTS = 240


def look(pid: int, told: Path) -> dict[str, float]:
    """Returns what a process holds now.

    Args:
      pid: of the process.
      told: the file in which it tells what is in use (`benchmarks.held`).

    Raises:
      FileNotFoundError: it has ended.
    """
    status = Path(f"/proc/{pid}/status").read_text()
    fields = dict(line.split(":", 1) for line in status.splitlines())
    if "VmRSS" not in fields:  # it has ended, and nobody has asked for its exit code yet
        raise FileNotFoundError(f"/proc/{pid}")
    return {
        IN_USE: held.read(told) / 2**20,
        "memory, MiB": int(fields["VmRSS"].split()[0]) / 1024,
        "open files": float(len(os.listdir(f"/proc/{pid}/fd"))),
        "threads": float(fields["Threads"]),
    }


def watch(command: Sequence[str], seconds: float, workdir: Path) -> list[dict[str, float]]:
    """Runs a training for a time from its first checkpoint on; returns looks at it, four a second.

    Raises:
      RuntimeError: it ended by itself, or not as one that has saved after SIGTERM.
    """
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    looks: list[dict[str, float]] = []
    try:
        while not any((workdir / "checkpoints").glob("[0-9]*")) and process.poll() is None:
            time.sleep(0.2)
        begin = time.monotonic()
        while time.monotonic() - begin < seconds and process.poll() is None:
            looks.append({"seconds": time.monotonic() - begin, **look(process.pid, workdir / TOLD)})
            time.sleep(0.25)
        process.send_signal(signal.SIGTERM)
        if (code := process.wait(timeout=300)) != 143:
            raise RuntimeError(f"the training ended with exit code {code}, not 143")
    finally:
        process.kill()
        process.wait()
    return looks


def fit(looks: Sequence[Mapping[str, float]]) -> dict[str, dict[str, Any]]:
    """Fits a line to the floor of each series after the warm-up; returns the trends by name.

    Args:
      looks: what `watch` returned.
    """
    seconds = np.array([one["seconds"] for one in looks])
    warm = seconds >= WARM_UP * seconds[-1]
    middles = [part.mean() for part in np.array_split(seconds[warm], PARTS)]
    trends = {}
    for name, allowed in ALLOWED.items():
        values = np.array([one[name] for one in looks])[warm]
        floor = [part.min() for part in np.array_split(values, PARTS)]
        slope, start = np.polyfit(middles, floor, 1)
        first, last = (float(start + slope * at) for at in seconds[warm][[0, -1]])
        trends[name] = {
            "first": first,
            "last": last,
            "per_hour": 3600 * float(slope),
            "highest": float(values.max()),
            "allowed_rise": allowed,
            "passed": last - first <= allowed,
        }
    return trends


def soak(minutes: float, arguments: Sequence[str], workdir: Path) -> dict[str, Any]:
    """Trains for some minutes; returns the content of the JSON file."""
    command = [sys.executable, "-m", "benchmarks.held", str(workdir / TOLD)]
    command += [*arguments, *LONG, f"--workdir={workdir}"]
    workdir.mkdir(parents=True)
    looks = watch(command, 60 * minutes, workdir)
    trends = fit(looks)
    lines = history.read_lines(workdir / workdir_lib.METRICS)
    return {
        "name": "bench_soak",
        "arguments": list(arguments),
        "minutes": minutes,
        "steps": lines[-1]["step"],
        "evaluations": sum("eval_loss" in line for line in lines),
        "saves": lines[-1]["step"] // EVERY,
        "passed": all(one["passed"] for one in trends.values()),
        "trends": trends,
        "series": looks[:: -(-len(looks) // MOST_POINTS)],
        **describe_machine(),
    }


def main() -> int:
    """Runs the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--output", type=Path, default=ROOT / "results" / "bench_soak.json")
    parser.add_argument("arguments", nargs="*", default=DEFAULT, help="behind --, of the training")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        result = soak(options.minutes, options.arguments, Path(folder) / "run")
    options.output.write_text(json.dumps(result) + "\n")
    for name, one in result["trends"].items():
        words = "passed" if one["passed"] else "FAILED"
        line = "{:>12}: {first:.1f} after the warm-up, {last:.1f} at the end, {per_hour:+.2f}/h"
        print(line.format(name, **one), words)
    print("{steps} steps, {evaluations} evaluations, {saves} saves".format(**result))
    return 0 if result["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
