"""How training scales over devices and processes: results, exchanges, speed, and a model.

    python -m benchmarks.scaling [--write]

1. correctness: the same short training on several numbers of devices and processes: the largest
   difference of a final parameter from one device, and the number of correct images.
2. exchanges: the bytes that a step exchanges, read from the program compiled for 8 virtual devices.
3. speed: images per second on this machine, with one batch (strong scaling) or with one batch per
   device (weak scaling). Other work on the machine disturbs only this part.
4. model: the modelled time per step on 8 GPUs and 256 TPU chips, from FLOPs, bytes and link rates.

`--write` keeps the parts in results/bench_scaling.json and rewrites the tables.
"""

import argparse
import json
import math
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np

import cifar_jax
from benchmarks import collectives
from benchmarks.workers import (
    ROOT,
    add_output_flags,
    describe_machine,
    output_path,
    write_result,
)
from cifar_jax import files
from cifar_jax.models import layer_table, registry
from cifar_jax.runs import workdir as workdir_lib

CONFIG = "--config=benchmarks/small.py"
# (devices per process, processes)
CELLS = ((1, 1), (2, 1), (4, 1), (8, 1), (1, 2), (2, 2), (4, 2), (1, 4), (2, 4))
SPEED_CELLS = ((1, 1), (2, 1), (1, 2))
PARTS = ("correctness", "exchanges", "speed", "model")
MODELS = ("simple_cnn", "vgg_bn", "resnet:20")
# The machines of the model; the rates are those of the data sheets.
MACHINES: dict[str, dict[str, Any]] = {
    "8 A100 GPUs, NVLink": {
        "devices": 8,
        "flops": 312e12,  # bfloat16
        "link": 300e9,  # bytes/s per device in one direction
        "hops": 2 * (8 - 1),  # a ring, both phases
        "hop_seconds": 5e-6,
    },
    "256 TPU v5e chips, 16x16 torus": {
        "devices": 256,
        "flops": 197e12,
        "link": 180e9,  # four links of 45 GB/s
        "hops": 2 * 2 * 16 // 2,  # a ring along each side, both directions, both phases
        "hop_seconds": 1e-6,
    },
}
# The share of the peak rate that small convolutions are assumed to reach.
UTILISATION = 0.3
PER_DEVICE = 128
MODELLED = ("simple_cnn", "vgg_bn", "resnet", "resnet:wrn-28-10")


def train(workdir: Path, cell: tuple[int, int], *overrides: str) -> None:
    """Trains the small network on a number of devices and processes.

    Args:
      workdir: the run's folder.
      cell: the devices per process and the number of processes.
      *overrides: of its config.

    Raises:
      RuntimeError: a process failed.
    """
    num_devices, num_processes = cell
    command = [sys.executable, "main.py", CONFIG, f"--workdir={workdir}", *overrides]
    command.append(f"--config.num_cpu_devices={num_devices}")
    if num_processes > 1:
        command += ["--distributed", f"--coordinator=127.0.0.1:{free_port()}"]
        command.append(f"--num_processes={num_processes}")
    numbers = [[f"--process_id={n}"] for n in range(num_processes)] if num_processes > 1 else [[]]
    with tempfile.TemporaryFile("w+") as errors:
        started = [
            subprocess.Popen(command + number, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=errors)
            for number in numbers
        ]
        codes = [process.wait() for process in started]
        if any(codes):
            errors.seek(0)
            raise RuntimeError(f"training failed with exit codes {codes}: {errors.read()}")


def free_port() -> int:
    """Returns a port on which nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def correctness(folder: Path) -> list[dict[str, Any]]:
    """Returns a row for each number of devices and processes.

    All start from the same trained weights, so that most answers are right.
    """
    longer = ("--config.num_steps=100", "--config.optimizer.learning_rate=0.3")
    train(folder / "weights", (1, 1), *longer)
    rows: list[dict[str, Any]] = []
    expected: Any = None
    for cell in CELLS:
        workdir = folder / f"{cell[0]}x{cell[1]}"
        train(workdir, cell, f"--config.init_from={folder / 'weights'}")
        params = cifar_jax.load(workdir).variables["params"]
        expected = expected or params
        apart = jax.tree.map(lambda ours, one: float(np.abs(ours - one).max()), params, expected)
        result = files.read_json(workdir / workdir_lib.RESULT)
        row = {"devices": cell[0] * cell[1], "processes": cell[1]}
        row["difference"] = max(jax.tree.leaves(apart))
        rows.append(row | {name: result[name] for name in ("num_correct", "num_images")})
        print(rows[-1], flush=True)
    return rows


def exchanges(models: tuple[str, ...] = MODELS, num_devices: int = 8) -> list[dict[str, Any]]:
    """Returns what the devices exchange in a step of each model."""
    command = [sys.executable, "-m", "benchmarks.collectives", *models, f"--devices={num_devices}"]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    print(*rows, sep="\n", flush=True)
    return rows


def speed(folder: Path, rounds: int) -> list[dict[str, Any]]:
    """Returns images per second with the same batch in all, and with the same batch per device."""
    steps = [f"--config.{name}=24" for name in ("num_steps", "checkpoint.every_steps")]
    steps.append("--config.eval_every_steps=24")
    rows = []
    for number in range(rounds):
        for kind in ("strong", "weak"):
            for cell in SPEED_CELLS:
                total = 64 if kind == "strong" else 32 * cell[0] * cell[1]
                workdir = folder / f"{kind}{number}_{cell[0]}x{cell[1]}"
                train(workdir, cell, *steps, f"--config.batch_size={total}")
                lines = (workdir / workdir_lib.METRICS).read_text().splitlines()
                row = {"kind": kind, "devices": cell[0] * cell[1], "processes": cell[1]}
                rate = max(json.loads(line).get("images_per_second", 0) for line in lines)
                rows.append(row | {"batch_size": total, "images_per_second": rate})
                print(rows[-1], flush=True)
    return rows


def forward_macs(name: str) -> int:
    """Returns the multiplications of a model's convolutions and dense layers per image."""
    model = registry.create_model(collectives.load_config(name, PER_DEVICE), 10)
    total = 0
    for row in layer_table.layer_table(model, (32, 32, 3)):
        if row.kind != "BatchNorm":
            # Each number of a kernel is used once per place of the output; biases hardly count.
            total += row.num_trainable * math.prod(row.output_shape[1:-1])
    return total


def step_seconds(macs: int, num_bytes: int, machine: dict[str, Any]) -> dict[str, float]:
    """Returns the modelled seconds of computation and of exchange per step.

    Computation: 2 FLOP per multiplication, once forward and twice backward. Exchange: in an
    all-reduce each device sends 2 (n - 1) / n of the bytes; the latency of each hop is added.

    Args:
      macs: multiplications per image in the forward pass.
      num_bytes: bytes that a step exchanges.
      machine: one of MACHINES.
    """
    n = machine["devices"]
    compute = 3 * 2 * macs * PER_DEVICE / (machine["flops"] * UTILISATION)
    exchange = 2 * (n - 1) / n * num_bytes / machine["link"]
    return {"compute": compute, "exchange": exchange + machine["hops"] * machine["hop_seconds"]}


def model_of_time() -> list[dict[str, Any]]:
    """Returns the modelled seconds of each model on each machine, and where scaling would end.

    With the least batch per device the exchange takes as long as the computation.
    """
    rows = []
    for name in MODELLED:
        macs = forward_macs(name)
        expected = collectives.expected_bytes(
            collectives.load_config(name, PER_DEVICE), (32, 32, 3)
        )
        for words, machine in MACHINES.items():
            seconds = step_seconds(macs, sum(expected.values()), machine)
            least = math.ceil(PER_DEVICE * seconds["exchange"] / seconds["compute"])
            rows.append(
                {
                    "config": name,
                    "machine": words,
                    "forward_macs": macs,
                    "bytes": sum(expected.values()),
                    **{f"{part}_seconds": value for part, value in seconds.items()},
                    "efficiency": seconds["compute"] / sum(seconds.values()),
                    "least_batch_of_a_device": least,
                }
            )
    print(*rows, sep="\n", flush=True)
    return rows


def main(argv: list[str]) -> int:
    """Runs the benchmark; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3, help="measurements of the speed (3)")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    add_output_flags(parser, "bench_scaling")
    options = parser.parse_args(argv)
    path = output_path(options, "bench_scaling")
    result: dict[str, Any] = files.read_json(path) if path and path.exists() else {}
    with tempfile.TemporaryDirectory(prefix="scaling-") as name:
        os.environ["JAX_COMPILATION_CACHE_DIR"] = f"{name}/xla"
        os.environ["JAX_PLATFORMS"] = "cpu"
        parts = {
            "correctness": lambda: correctness(Path(name)),
            "exchanges": exchanges,
            "speed": lambda: speed(Path(name), options.rounds),
            "model": model_of_time,
        }
        for part in options.only:
            result |= {part: parts[part](), **describe_machine()}
    assumed = {"utilisation": UTILISATION, "batch_of_a_device": PER_DEVICE, "machines": MACHINES}
    write_result(options, "bench_scaling", result | {"assumed": assumed})
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
