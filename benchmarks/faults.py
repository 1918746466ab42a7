"""What a run survives: kill -9, signals, damaged files, a full disk, any config.

    python -m benchmarks.faults --trials=100 --only kill signal --minutes=8

prints a table (fault, trials, survived, silent errors) and keeps it in results/bench_faults.json,
where the same command goes on: it makes those of the trials that are still to be made. A trial has
survived if the run ended in the very bits of an undisturbed one, or said in words what is wrong
where that is the right answer. It is a silent error if it went on with wrong values.
"""

import argparse
import functools
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import damages, jobs, stops, wrong_configs
from benchmarks.stops import SILENT, SURVIVED
from benchmarks.workers import describe_machine
from cifar_jax import files
from tests import program

# A function (number, rng) -> outcome.
Trial = Callable[[int, random.Random], str]
FAULTS = ("kill", "signal", "damage", "cache", "disk", "config", "training", "command", "process")


def trials_of(folder: Path, seen: dict[str, Counter[str]]) -> dict[str, Trial]:
    """Returns the trial of each fault.

    Args:
      folder: for all that the trials write.
      seen: is given what the trials of a fault met with.
    """
    flag = program.write_config(folder / "small.py", **stops.SAVING)
    damages.save_small(folder / "sound", 1, 2)

    @functools.cache
    def stopped(fault: str) -> stops.Disturbed:
        place, fields = folder / fault, stops.SAVING if fault == "kill" else stops.LONG
        return stops.Disturbed(place, *stops.reference(place, **fields), seen[fault])

    signals = (signal.SIGTERM, signal.SIGINT)
    killed = functools.cache(lambda: jobs.Killed(folder / "process", seen["process"]))

    def config(number: int, rng: random.Random) -> str:
        code, outcome = wrong_configs.try_config(flag, wrong_configs.random_overrides(rng))
        seen["config"]["accepted" if code == 0 else "refused"] += 1
        return outcome

    return {
        "kill": lambda n, rng: stopped("kill").trial(n, rng, (signal.SIGKILL,)),
        "signal": lambda n, rng: stopped("signal").trial(n, rng, signals),
        "damage": lambda n, rng: damages.damage_checkpoint(
            folder / "sound", folder / f"damage{n}", rng
        ),
        "cache": lambda n, rng: damages.damage_cache(folder / "cache", rng),
        "disk": lambda n, rng: damages.fill_disk(folder / f"disk{n}", rng, bool(n % 2)),
        "config": config,
        "training": lambda n, rng: wrong_configs.try_training(
            flag, folder / f"training{n}", rng, seen["training"]
        ),
        "command": lambda n, rng: wrong_configs.try_command(
            flag, folder / f"command{n}", rng, seen["command"]
        ),
        "process": lambda n, rng: killed().trial(n, rng),
    }


def guard(trial: Trial, number: int, rng: random.Random) -> str:
    """Returns the trial's outcome, an exception included."""
    try:
        return trial(number, rng)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def go_on(record: dict[str, Any], fault: str, trial: Trial, until: int, stop: float) -> None:
    """Makes the trials of a fault that are still to be made.

    Args:
      record: of the earlier trials; trial number n always draws from the same seed.
      fault: its name.
      trial: its function.
      until: the number of trials wanted.
      stop: the time (`time.monotonic`) after which no other trial begins.
    """
    while record["trials"] < until and time.monotonic() < stop:
        number, begin = record["trials"], time.monotonic()
        outcome = guard(trial, number, random.Random(f"{fault} {number}"))
        record["trials"] += 1
        record["seconds"] += time.monotonic() - begin
        record["survived"] += outcome == SURVIVED
        record["silent"] += outcome.startswith(SILENT)
        if outcome != SURVIVED:
            record["bad"].append(f"trial {number}: {outcome}")


def main() -> int:
    """Runs the trials; returns 3 if some are still to be made, 1 if some were not survived."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=100, help="of each fault, in all")
    parser.add_argument("--only", nargs="*", default=FAULTS, choices=FAULTS)
    parser.add_argument("--minutes", type=float, default=1e9, help="then stop; to be gone on with")
    parser.add_argument("--fresh", action="store_true", help="forget these faults' earlier trials")
    options = parser.parse_args()
    file = Path("results/bench_faults.json")
    earlier = {} if not file.exists() else json.loads(file.read_text())["faults"]
    records: dict[str, Any] = {name: earlier[name] for name in FAULTS if name in earlier}
    stop = time.monotonic() + 60 * options.minutes
    missing = 0
    with tempfile.TemporaryDirectory(prefix="faults-") as name:
        # Compiled programs of every size are kept, so that a new start costs little.
        os.environ["JAX_COMPILATION_CACHE_DIR"] = f"{name}/xla"
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        seen: dict[str, Counter[str]] = defaultdict(Counter)
        trials = trials_of(Path(name), seen)
        for fault in options.only:
            empty = {"trials": 0, "survived": 0, "silent": 0, "seconds": 0.0, "bad": []}
            before = {} if options.fresh else records.get(fault, {})
            record = records[fault] = empty | before
            seen[fault].update(record.get("seen", {}))
            go_on(record, fault, trials[fault], options.trials, stop)
            record["seen"] = dict(seen[fault])
            missing += max(0, options.trials - record["trials"])
            content = {"name": "bench_faults", "faults": records, **describe_machine()}
            files.write_json(file, content)
            line = "{:>8} {trials:>6} trials {survived:>6} survived {silent:>3} silent"
            print(line.format(fault, **record), f"{record['seconds']:.0f} s", dict(seen[fault]))
            print(*record["bad"], sep="\n", end="", flush=True)
    if missing:
        return 3
    return int(any(records[fault]["bad"] for fault in options.only))


if __name__ == "__main__":
    sys.exit(main())
