"""What a run survives: kill -9, signals, damaged files, a full disk, any config.

    python -m tests.faults --trials=3 --only kill signal

makes that many trials of each fault and prints a line for each fault. A run survives a trial if it
ends in exactly the bits of an undisturbed run or, where that is the right answer, says clearly what
is wrong. It is a silent error if the run continues with wrong values.

    python -m tests.faults --trials=100 --minutes=8 --write

also keeps the outcomes in results/bench_faults.json and rewrites the tables of the documentation.
The same command resumes there: it makes only the trials that are missing.
"""

import argparse
import functools
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cifar_jax import files
from cifar_jax.parallel import devices
from cifar_jax.runs import provenance
from tests import program
from tests.faults import damages, jobs, stops, wrong_configs
from tests.faults.stops import SILENT, SURVIVED

# A function (number, rng) -> outcome.
Trial = Callable[[int, random.Random], str]
RESULT = program.ROOT / "results" / "bench_faults.json"
FAULTS = ("kill", "signal", "damage", "cache", "disk", "config", "training", "command", "process")


def make_trials(folder: Path, seen: dict[str, Counter[str]]) -> dict[str, Trial]:
    """Returns the function that makes a trial of each fault.

    Args:
      folder: where the trials write.
      seen: counts, for each fault, what its trials came across.
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
    """Returns the trial's outcome; an exception is one too."""
    try:
        return trial(number, rng)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def make_missing(record: dict[str, Any], fault: str, trial: Trial, until: int, stop: float) -> None:
    """Makes the trials of a fault that are missing.

    Args:
      record: the counts of the earlier trials, updated in place. Trial number n always draws from
        the same seed.
      fault: its name.
      trial: makes one trial.
      until: the number of trials in all.
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


def describe_machine() -> dict[str, Any]:
    """Returns where the trials are made: hardware, commit and versions, without the host's name."""
    found = provenance.environment()
    hardware = f"{found['cores']} cores of {found['processor']}"
    return {"hardware": hardware, "commit": found["commit"], "versions": found["versions"]}


def write_tables() -> None:
    """Rewrites the tables that are made from results/."""
    subprocess.run([sys.executable, "-m", "results.tables"], cwd=program.ROOT, check=True)


def parse(argv: list[str]) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.faults",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--trials", type=int, default=100, help="of each fault, in all (100)")
    parser.add_argument("--only", nargs="+", default=FAULTS, choices=FAULTS, metavar="FAULT")
    parser.add_argument("--minutes", type=float, default=1e9, help="stop after that time")
    parser.add_argument("--fresh", action="store_true", help="discard earlier trials")
    parser.add_argument("--output", type=Path, help="keep the outcomes in this file, or resume it")
    words = "the same in results/bench_faults.json, then rewrite the tables"
    parser.add_argument("--write", action="store_true", help=words)
    options = parser.parse_args(argv)
    if options.write and options.output is None:
        options.output = RESULT
    return options


def print_record(fault: str, record: dict[str, Any]) -> None:
    """Prints the counts of a fault: trials, survived, silent errors; then each bad outcome."""
    line = "{:>8} {trials:>6} trials {survived:>6} survived {silent:>3} silent {seconds:.0f} s"
    print(line.format(fault, **record), record["seen"] or "", flush=True)
    for outcome in record["bad"]:
        print(outcome, flush=True)


def main(argv: list[str]) -> int:
    """Runs the command; returns 3 if trials are missing, 1 if a run did not survive one."""
    options = parse(argv)
    output, records = options.output, {}
    if output and output.exists():
        earlier = json.loads(output.read_text())["faults"]
        records = {name: earlier[name] for name in FAULTS if name in earlier}
    stop, missing = time.monotonic() + 60 * options.minutes, 0
    devices.configure_jax(64)  # the undisturbed runs need as many devices as the others, which fork
    with tempfile.TemporaryDirectory(prefix="faults-") as name:
        # Compiled programs of every size are kept, so that a restart costs little.
        os.environ["JAX_COMPILATION_CACHE_DIR"] = f"{name}/xla"
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        seen: dict[str, Counter[str]] = defaultdict(Counter)
        trials = make_trials(Path(name), seen)
        for fault in options.only:
            empty = {"trials": 0, "survived": 0, "silent": 0, "seconds": 0.0, "bad": []}
            record = records[fault] = empty | ({} if options.fresh else records.get(fault, {}))
            seen[fault].update(record.get("seen", {}))
            if record["trials"] >= options.trials:
                made = f"all {record['trials']} trials were made before (--fresh repeats them)"
                print(f"{fault:>8}: {made}", flush=True)
                continue
            make_missing(record, fault, trials[fault], options.trials, stop)
            record["seen"] = dict(seen[fault])
            missing += max(0, options.trials - record["trials"])
            if output:
                content = {"name": output.stem, "faults": records, **describe_machine()}
                files.write_json(output, content)
            print_record(fault, record)
    if options.write:
        write_tables()
    if missing:
        return 3
    return int(any(records[fault]["bad"] for fault in options.only))
