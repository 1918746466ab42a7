"""Whether a long run leaks memory, open files or threads.

    python -m benchmarks.soak --minutes=60 [--write]

trains with the real command, evaluating and saving often, and reads the process's memory, files and
threads from /proc (Linux). They rise and fall with every step and save, so the time is divided into
small parts and the minimum of each part counts: a leak raises that floor. After a warm-up, a
straight line is fitted to the floor; its rise over the measured time must stay below ALLOWED. Flags
after `--` replace the default training, a small ResNet on the digits. The exit code is 0 if the run
passed.
"""

import argparse
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
from benchmarks.workers import ROOT, add_output_flags, describe_machine, write_result
from cifar_jax.runs import history
from cifar_jax.runs import workdir as workdir_lib

DEFAULT = ("--config=configs/resnet.py:20", "--config.data.name=digits")
EVERY = 20  # steps
LONG = (
    *("--config.num_steps=100000000", f"--config.eval_every_steps={EVERY}"),
    f"--config.checkpoint.every_steps={EVERY}",
)
# How much each series may rise over the measured time. TensorStore 0.1.86 leaks 257 bytes for each
# saved array (in KvStore.Spec.to_json), about 45 kB per save of this ResNet; its pool of threads
# reaches its full size only after many saves. "In use" is what the C library has handed out;
# Python's own objects count only as resident.
IN_USE = "memory in use, MiB"
ALLOWED = {IN_USE: 64.0, "memory, MiB": 64.0, "open files": 4.0, "threads": 4.0}
# The share of the time that counts as warm-up, and the number of parts of the rest.
WARM_UP, PARTS = 0.2, 24
# The file in the workdir in which the process reports its memory in use (`benchmarks.held`).
REPORTED = "held.bin"
# The most points of the series that are kept.
MOST_POINTS = 240


def look(pid: int, reported: Path) -> dict[str, float]:
    """Returns the memory, files and threads of a process.

    Args:
      pid: of the process.
      reported: the file in which it reports its memory in use (`benchmarks.held`).

    Raises:
      FileNotFoundError: it has ended.
    """
    status = Path(f"/proc/{pid}/status").read_text()
    fields = dict(line.split(":", 1) for line in status.splitlines())
    if "VmRSS" not in fields:  # it has ended, but its exit code was not read yet
        raise FileNotFoundError(f"/proc/{pid}")
    return {
        IN_USE: held.read(reported) / 2**20,
        "memory, MiB": int(fields["VmRSS"].split()[0]) / 1024,
        "open files": float(len(os.listdir(f"/proc/{pid}/fd"))),
        "threads": float(fields["Threads"]),
    }


def watch(command: Sequence[str], seconds: float, workdir: Path) -> list[dict[str, float]]:
    """Runs training for a time, counted from its first checkpoint; looks at it four times a second.

    Args:
      command: trains in `workdir`.
      seconds: how long.
      workdir: of the run.

    Raises:
      RuntimeError: it ended early, or did not save and stop at SIGTERM.
    """
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    looks: list[dict[str, float]] = []
    try:
        while not any((workdir / "checkpoints").glob("[0-9]*")) and process.poll() is None:
            time.sleep(0.2)
        begin = time.monotonic()
        while time.monotonic() - begin < seconds and process.poll() is None:
            looks.append(
                {"seconds": time.monotonic() - begin, **look(process.pid, workdir / REPORTED)}
            )
            time.sleep(0.25)
        process.send_signal(signal.SIGTERM)
        if (code := process.wait(timeout=300)) != 143:
            raise RuntimeError(f"training ended with exit code {code}, not 143")
    finally:
        process.kill()
        process.wait()
    return looks


def fit(looks: Sequence[Mapping[str, float]]) -> dict[str, dict[str, Any]]:
    """Fits a line to the floor of each series after the warm-up; returns the trends by name.

    Args:
      looks: the result of `watch`.
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
    """Trains for some minutes; returns the result."""
    command = [sys.executable, "-m", "benchmarks.held", str(workdir / REPORTED)]
    command += [*arguments, *LONG, f"--workdir={workdir}"]
    workdir.mkdir(parents=True)
    looks = watch(command, 60 * minutes, workdir)
    trends = fit(looks)
    lines = history.read_lines(workdir / workdir_lib.METRICS)
    return {
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


def main(argv: list[str]) -> int:
    """Runs the benchmark; returns 0 if the run passed, else 1."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("arguments", nargs="*", default=DEFAULT, help="flags of main.py, after --")
    add_output_flags(parser, "bench_soak")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        result = soak(options.minutes, options.arguments, Path(folder) / "run")
    for name, one in result["trends"].items():
        words = "passed" if one["passed"] else "FAILED"
        line = "{:>12}: {first:.1f} after the warm-up, {last:.1f} at the end, {per_hour:+.2f}/h"
        print(line.format(name, **one), words)
    print("{steps} steps, {evaluations} evaluations, {saves} saves".format(**result))
    write_result(options, "bench_soak", result)
    return 0 if result["passed"] else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
