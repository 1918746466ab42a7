"""Many seeds in one program, and many steps in one call: how much faster, and how different.

    python -m benchmarks.seeds [--write]

Seeds: images per second of a single run, with one CPU device and with one per core, and of several
runs in one program, one after another on each device or at once by `jax.vmap`. Calls: an epoch in
calls of many steps, the same program called for each step, and a compiled step without a loop on
the device; the speeds, and the norm of the difference of the parameters after the epoch, divided by
their norm.

All take turns, so that other work on the machine slows all of them alike. Random images, batches of
128, SGD with momentum. A file that exists is updated: rows of other models stay.
"""

import argparse
import statistics
import sys
from typing import Any

from benchmarks.peers import protocol
from benchmarks.workers import (
    Worker,
    WorkerError,
    add_output_flags,
    describe_machine,
    output_path,
    write_result,
)
from cifar_jax import files

BATCH_SIZE = 128
SEED_MODELS = ("mlp", "lenet")
CALL_MODELS = ("mlp", "lenet", "simple_cnn")
VARIANTS = ("scan", "calls", "steps")


def parse(argv: list[str]) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", default=",".join(SEED_MODELS), help="for the seeds, or none")
    parser.add_argument(
        "--calls", default=",".join(CALL_MODELS), help="models for the calls, or none"
    )
    parser.add_argument("--num-seeds", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="length of a turn, about (1)")
    parser.add_argument("--steps", type=int, default=protocol.NUM_EXAMPLES // BATCH_SIZE)
    add_output_flags(parser, "bench_seeds")
    options = parser.parse_args(argv)
    options.models = [name for name in options.models.split(",") if name not in ("", "none")]
    options.calls = [name for name in options.calls.split(",") if name not in ("", "none")]
    return options


def measure_seeds(
    workers: dict[str, Worker], model: str, num_seeds: int, rounds: int, seconds: float
) -> dict[str, Any]:
    """Returns images per second over all seeds, for each way and round."""
    ways = {
        "alone, one device": ("one", 1, False),
        "alone, all devices": ("all", 1, False),
        "one after another": ("all", num_seeds, False),
        "at once": ("all", num_seeds, True),
    }
    for way, (worker, count, at_once) in ways.items():
        options = {"name": way, "model": model, "num_seeds": count, "at_once": at_once}
        workers[worker].ask("prepare", **options)
    rates: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way, (worker, *_) in ways.items():
            rates[way].append(workers[worker].ask("measure", name=way, seconds=seconds))
    row = {"model": model, "num_seeds": num_seeds, "images_per_second": rates}
    print(f"{model}: " + ", ".join(f"{way} {middle(rates[way]):,.0f}" for way in ways), flush=True)
    return row


def measure_calls(worker: Worker, model: str, num_steps: int, rounds: int) -> dict[str, Any]:
    """Returns images per second for each way and round, and how far their parameters end apart."""
    worker.ask("prepare_calls", model=model, steps_per_call=1)
    rates: dict[str, list[float]] = {name: [] for name in VARIANTS}
    done = 0
    for number in range(rounds):
        steps = num_steps * (number + 1) // rounds - done
        done += steps
        for name in VARIANTS:
            seconds = worker.ask("advance", name=name, num_steps=steps)
            rates[name].append(steps * BATCH_SIZE / seconds)
    apart = {name: worker.ask("difference", name="scan", other=name) for name in VARIANTS[1:]}
    words = ", ".join(f"{name} {middle(each):,.0f}" for name, each in rates.items())
    print(f"{model}, {num_steps} steps: {words}; apart {apart}", flush=True)
    return {"model": model, "steps": num_steps, "images_per_second": rates, "difference": apart}


def middle(values: list[float]) -> float:
    """Returns the median."""
    return statistics.median(values)


def merge(old: list[dict[str, Any]], new: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the rows of both; new rows replace old ones of the same model."""
    return list(({row["model"]: row for row in old} | {row["model"]: row for row in new}).values())


def main(argv: list[str]) -> int:
    """Runs the benchmark; returns the exit code."""
    options = parse(argv)
    path = output_path(options, "bench_seeds")
    old = files.read_json(path) if path and path.exists() else {}
    rows: dict[str, Any] = {kind: old.get(kind, []) for kind in ("seeds", "calls")}
    workers: dict[str, Worker] = {}

    def keep(kind: str, row: dict[str, Any]) -> None:
        rows[kind] = merge(rows[kind], [row])
        if path:
            files.write_json(path, old | rows)

    try:
        for name, arguments in (("one", ["many_seeds", "1"]), ("all", ["many_seeds"])):
            workers[name] = Worker(name, sys.executable, arguments, keep_memory=True)
        for model in options.models:
            row = measure_seeds(workers, model, options.num_seeds, options.rounds, options.seconds)
            keep("seeds", row)
        for model in options.calls:
            row = measure_calls(workers["all"], model, options.steps, options.rounds)
            keep("calls", row)
    except WorkerError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    finally:
        for worker in workers.values():
            worker.close()
    result = describe_machine() | {"devices": workers["all"].versions["devices"], **rows}
    write_result(options, "bench_seeds", result)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
