"""Many seeds in one program, and many steps in one call: how much faster, and how different.

  python -m benchmarks.seeds

Seeds: images per second of one run alone, with one CPU device and with one for each core, and of
several runs in one program, one after another on each device and at once by `jax.vmap`. Calls: an
epoch in calls of many steps, the same program called for each step, and a compiled step without a
loop on the device; the speeds, and how far the parameters are apart after the epoch.

All take turns, so that what else happens on the machine meets all of them. Random images, batches
of 128, SGD with momentum. Writes results/bench_seeds.json and the README's tables.
"""

import argparse
import statistics
import sys
from pathlib import Path
from typing import Any

from benchmarks.peers import protocol
from benchmarks.workers import ROOT, Worker, WorkerError, describe_machine, write_tables
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
    parser.add_argument("--models", default=",".join(SEED_MODELS), help="of the seeds, or none")
    parser.add_argument(
        "--calls", default=",".join(CALL_MODELS), help="models of the calls, or none"
    )
    parser.add_argument("--num-seeds", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="about the length of a turn")
    parser.add_argument("--steps", type=int, default=protocol.NUM_EXAMPLES // BATCH_SIZE)
    words = "the rows of models that are measured again are replaced in it"
    output = ROOT / "results" / "bench_seeds.json"
    parser.add_argument("--output", type=Path, default=output, help=words)
    options = parser.parse_args(argv)
    options.models = [name for name in options.models.split(",") if name not in ("", "none")]
    options.calls = [name for name in options.calls.split(",") if name not in ("", "none")]
    return options


def measure_seeds(
    workers: dict[str, Worker], model: str, num_seeds: int, rounds: int, seconds: float
) -> dict[str, Any]:
    """Returns images per second, over all seeds, of each way in each round."""
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
    """Returns images per second of each way in each round, and how far they end apart."""
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
    """Returns the rows of both, by model; the new ones count."""
    return list(({row["model"]: row for row in old} | {row["model"]: row for row in new}).values())


def save(output: Path, devices: str, **new: list[dict[str, Any]]) -> None:
    """Adds rows to the file; those of a model that is measured again are replaced."""
    old = files.read_json(output) if output.exists() else {}
    rows = {kind: merge(old.get(kind, []), new.get(kind, [])) for kind in ("seeds", "calls")}
    result = {"name": output.stem, **describe_machine(), "devices": devices, **rows}
    files.write_json(output, result)


def main(argv: list[str]) -> int:
    """Runs the benchmark; returns the exit code."""
    options = parse(argv)
    workers: dict[str, Worker] = {}
    try:
        for name, arguments in (("one", ["many_seeds", "1"]), ("all", ["many_seeds"])):
            workers[name] = Worker(name, sys.executable, arguments, keep_memory=True)
        for model in options.models:
            row = measure_seeds(workers, model, options.num_seeds, options.rounds, options.seconds)
            save(options.output, workers["all"].versions["devices"], seeds=[row])
        for model in options.calls:
            row = measure_calls(workers["all"], model, options.steps, options.rounds)
            save(options.output, workers["all"].versions["devices"], calls=[row])
    except WorkerError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    finally:
        for worker in workers.values():
            worker.close()
    if options.output.parent.resolve() == ROOT / "results":
        write_tables()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
