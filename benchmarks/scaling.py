"""How a training spreads over devices and processes: what it computes, exchanges, and would take.

    python -m benchmarks.scaling

1. The same short training on several numbers of devices and processes: the largest difference of a
   final parameter from one device, and the images that it gets right.
2. The bytes that a step exchanges, read from the program compiled for 8 virtual devices.
3. Images per second of this machine, with one batch (strong) or one batch a device (weak).
4. A model of the time of a step on 8 GPUs and on 256 TPU chips, from FLOPs, bytes and link rates.

Writes results/bench_scaling.json and the README's table. What shares the machine disturbs 3 alone.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import jobs
from benchmarks.stops import Forked
from benchmarks.workers import ROOT, describe_machine, write_tables
from cifar_jax import files
from cifar_jax.runs import workdir as workdir_lib
from tests import program

# (devices of a process, processes)
CELLS = ((1, 1), (2, 1), (4, 1), (8, 1), (1, 2), (2, 2), (4, 2), (1, 4), (2, 4))
SPEED_CELLS = ((1, 1), (2, 1), (1, 2))
FIELDS = {
    "num_steps": 10,
    "checkpoint__every_steps": 10,
    "augment__flip": True,
    "augment__mixup_alpha": 0.5,
    "optimizer__name": "sgd",
    "optimizer__learning_rate": 0.01,
}
MODELS = ("simple_cnn", "vgg_bn", "resnet:20")
# What the model of the time takes for granted; the rates are those of the data sheets.
MACHINES: dict[str, dict[str, Any]] = {
    "8 A100 GPUs, NVLink": {
        "devices": 8,
        "flops": 312e12,  # bfloat16
        "link": 300e9,  # bytes/s of a device in one direction
        "hops": 2 * (8 - 1),  # a ring, there and back
        "hop_seconds": 5e-6,
    },
    "256 TPU v5e chips, 16x16 torus": {
        "devices": 256,
        "flops": 197e12,
        "link": 180e9,  # four links of 45 GB/s
        "hops": 2 * 2 * 16 // 2,  # a ring along each side, both ways round, there and back
        "hop_seconds": 1e-6,
    },
}
# The share of the peak rate that small convolutions reach: an assumption.
UTILISATION = 0.3
PER_DEVICE = 128
MODELLED = ("simple_cnn", "vgg_bn", "resnet", "resnet:wrn-28-10")


def train(folder: Path, flag: str, cell: tuple[int, int], *overrides: str) -> Path:
    """Trains on a number of devices and processes; returns the workdir."""
    num_devices, num_processes = cell
    folder.mkdir(exist_ok=True)
    workdir = folder / f"{num_devices}x{num_processes}{'-'.join(overrides)[-12:]}"
    arguments = (flag, f"--workdir={workdir}", *overrides)
    if num_processes == 1:
        count = f"--config.num_cpu_devices={num_devices}"
        processes = [Forked(folder / "err", *arguments, count)]
    else:
        processes = jobs.start(
            folder, *arguments, num_processes=num_processes, num_devices=num_devices
        )
    codes, _ = jobs.wait(processes)
    assert not any(codes), [process.err() for process in processes]
    return workdir


def correctness(folder: Path) -> list[dict[str, Any]]:
    """Returns a row for each number of devices and processes.

    Each goes on from the same trained weights, so that most answers are right.
    """
    before = FIELDS | {"num_steps": 100, "optimizer__learning_rate": 0.3}
    flag = program.write_config(folder / "before.py", "bn_config", **before)
    weights = train(folder / "before", flag, (1, 1))
    fields = FIELDS | {"init_from": str(weights)}
    flag = program.write_config(folder / "small.py", "bn_config", **fields)
    rows: list[dict[str, Any]] = []
    expected: dict[str, np.ndarray] = {}
    for cell in CELLS:
        workdir = train(folder, flag, cell)
        params = {
            name: leaf
            for name, leaf in program.last_state(workdir)
            if name.startswith("['params']")
        }
        expected = expected or params
        difference = max(float(np.abs(params[name] - expected[name]).max()) for name in expected)
        result = json.loads((workdir / workdir_lib.RESULT).read_text())
        rows.append(
            {
                "devices": cell[0] * cell[1],
                "processes": cell[1],
                "difference": difference,
                "num_correct": result["num_correct"],
                "num_images": result["num_images"],
            }
        )
        print(rows[-1], flush=True)
    return rows


def exchanges(models: tuple[str, ...] = MODELS, num_devices: int = 8) -> list[dict[str, Any]]:
    """Returns what the devices exchange in a step of each model."""
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": str(num_devices), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "benchmarks.collectives", *models]
    done = subprocess.run(
        command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True
    )
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    print(*rows, sep="\n", flush=True)
    return rows


def speed(folder: Path, rounds: int) -> list[dict[str, Any]]:
    """Returns images per second with the same batch, and with the same batch a device."""
    fields = {"num_steps": 24, "checkpoint__every_steps": 24, "eval_every_steps": 24}
    flag = program.write_config(folder / "speed.py", "bn_config", **(FIELDS | fields))
    rows = []
    for number in range(rounds):
        for kind in ("strong", "weak"):
            for cell in SPEED_CELLS:
                total = 64 if kind == "strong" else 32 * cell[0] * cell[1]
                place = folder / f"{kind}{number}"
                place.mkdir(exist_ok=True)
                workdir = train(place, flag, cell, f"--config.batch_size={total}")
                lines = (workdir / workdir_lib.METRICS).read_text().splitlines()
                row = {"kind": kind, "devices": cell[0] * cell[1], "processes": cell[1]}
                rate = max(json.loads(line)["images_per_second"] for line in lines)
                rows.append(row | {"batch_size": total, "images_per_second": rate})
                print(rows[-1], flush=True)
    return rows


def forward_macs(name: str) -> int:
    """Returns the multiplications of a model's convolutions and dense layers for an image."""
    from benchmarks.collectives import load_config
    from cifar_jax.models import layer_table, registry

    model = registry.create_model(load_config(name, PER_DEVICE), 10)
    total = 0
    for row in layer_table.layer_table(model, (32, 32, 3)):
        if row.kind != "BatchNorm":
            # A kernel's numbers are used once for each place of the output; biases hardly count.
            total += row.num_trainable * math.prod(row.output_shape[1:-1])
    return total


def step_seconds(macs: int, num_bytes: int, machine: dict[str, Any]) -> dict[str, float]:
    """Returns the model's seconds of a step's computation and of its exchange.

    Computation: 2 FLOP a multiplication, forward and twice as much backward. Exchange: in an
    all-reduce each device sends 2 (n - 1) / n of the bytes, after the hops' latencies.
    """
    n = machine["devices"]
    compute = 3 * 2 * macs * PER_DEVICE / (machine["flops"] * UTILISATION)
    exchange = 2 * (n - 1) / n * num_bytes / machine["link"]
    return {"compute": compute, "exchange": exchange + machine["hops"] * machine["hop_seconds"]}


def model_of_time() -> list[dict[str, Any]]:
    """Returns the modelled seconds of each model on each machine, and where scaling would end.

    The least batch of a device is that at which the exchange takes as long as the computation.
    """
    from benchmarks.collectives import expected_bytes, load_config

    rows = []
    for name in MODELLED:
        macs = forward_macs(name)
        expected = expected_bytes(load_config(name, PER_DEVICE), (32, 32, 3))
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
    return rows


def main(argv: list[str]) -> int:
    """Runs the benchmark; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3, help="of the measurements of the speed")
    parser.add_argument("--only", nargs="*", choices=("correctness", "exchanges", "speed", "model"))
    options = parser.parse_args(argv)
    file = ROOT / "results" / "bench_scaling.json"
    result: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    wanted = options.only or ("correctness", "exchanges", "speed", "model")
    with tempfile.TemporaryDirectory(prefix="scaling-") as name:
        os.environ["JAX_COMPILATION_CACHE_DIR"] = f"{name}/xla"
        os.environ["JAX_PLATFORMS"] = "cpu"
        parts = {
            "correctness": lambda: correctness(Path(name)),
            "exchanges": exchanges,
            "speed": lambda: speed(Path(name), options.rounds),
            "model": model_of_time,
        }
        for part in wanted:
            assumed = {"utilisation": UTILISATION, "batch_of_a_device": PER_DEVICE}
            result |= {"name": file.stem, part: parts[part](), **describe_machine()}
            result["assumed"] = assumed | {"machines": MACHINES}
            files.write_json(file, result)
    write_tables()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
