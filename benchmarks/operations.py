"""Single operations of a train step: 3x3 convolutions and their gradients, here and in PyTorch.

    python -m benchmarks.operations --torch-python=TORCH/bin/python [--write]

On one core, with 64 float32 images: this project and PyTorch take turns. The table also has the
time that the multiplications of the direct method would take at the core's rate for matrix products
(the faster of the two). Winograd's method needs fewer multiplications.
"""

import argparse
import os
import statistics
import sys
from typing import Any

from benchmarks.workers import Worker, WorkerError, add_output_flags, write_result
from cifar_jax.runs import provenance

BATCH_SIZE = 64
# (height and width, channels, features)
SHAPES = (
    *((32, 3, 32), (32, 16, 16), (32, 32, 32), (16, 32, 32)),
    *((16, 64, 64), (8, 64, 64), (8, 128, 128), (7, 256, 256)),
)
OPERATIONS = ("forward", "image gradient", "kernel gradient")
MATRIX_SIZE = 1024


def gigaflops(size: int, channels: int, features: int) -> float:
    """Returns the work of one operation by the direct method, in 10^9 FLOP."""
    return 2 * 9 * BATCH_SIZE * size**2 * channels * features / 1e9


def measure(workers: dict[str, Worker], rounds: int, **case: Any) -> dict[str, list[float]]:
    """Lets the workers take turns; returns the milliseconds of each round by worker."""
    found: dict[str, list[float]] = {name: [] for name in workers}
    for _ in range(rounds):
        for name, worker in workers.items():
            found[name].append(1000 * worker.ask("measure", **case))
    return found


def run(workers: dict[str, Worker], rounds: int, shapes: Any = SHAPES) -> dict[str, Any]:
    """Measures the matrix products and each operation on each shape."""
    repeats = 4
    square = {"size": MATRIX_SIZE, "channels": 0, "features": 0}
    times = measure(workers, rounds, what="matrix product", repeats=8, **square)
    rates = {
        name: 2 * MATRIX_SIZE**3 / 1e6 / statistics.median(each) for name, each in times.items()
    }
    print(f"matrix product: {rates} GFLOP/s", flush=True)
    rows = []
    for size, channels, features in shapes:
        for what in OPERATIONS:
            if what == "image gradient" and channels == 3:
                continue  # the images need no gradient
            shape = {"size": size, "channels": channels, "features": features}
            each = measure(workers, rounds, what=what, repeats=repeats, **shape)
            row = {"what": what, **shape, "milliseconds": each}
            row["at_matrix_rate"] = gigaflops(size, channels, features) / max(rates.values()) * 1e3
            rows.append(row)
            medians = {name: round(statistics.median(values), 2) for name, values in each.items()}
            print(f"{size}x{size}, {channels} to {features}, {what}: {medians} ms", flush=True)
    return {"matrix_gigaflops_per_second": rates, "measurements": rows}


def main(argv: list[str]) -> int:
    """Runs the benchmark; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--torch-python", help="has torch; PyTorch is left out without it")
    parser.add_argument("--rounds", type=int, default=5)
    add_output_flags(parser, "bench_operations")
    parser.add_argument("--quick", action="store_true", help="one shape, one round; write nothing")
    options = parser.parse_args(argv)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # the workers inherit it
    started: dict[str, Worker] = {}
    try:
        started["ours"] = Worker("ours", sys.executable, ["operations_jax"], True)
        if options.torch_python:
            started["pytorch"] = Worker("pytorch", options.torch_python, ["operations_torch"], True)
        if options.quick:
            run(started, 1, SHAPES[:1])
            return 0
        measured = run(started, options.rounds)
    except WorkerError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    finally:
        for worker in started.values():
            worker.close()
    machine = provenance.environment()
    result = {
        "hardware": f"one core of {machine['processor']}",
        "commit": machine["commit"],
        "versions": {name: worker.versions for name, worker in started.items()},
        **measured,
    }
    write_result(options, "bench_operations", result)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
