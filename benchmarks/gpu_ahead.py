"""What a config's train step costs on a GPU, counted without one.

    python -m benchmarks.gpu_ahead speedrun --top=40
    python -m benchmarks.gpu_ahead resnet:18 --batch-size=512 --write

XLA compiles the steps for an H100 ahead of time, which takes one to three minutes on two cores and
needs JAX's CUDA plugin, but no GPU: pip install 'jax[cuda13]'. Printed are the kernels of a step,
the bytes that they read and write (each operand and result once: convolutions read more), the
largest of them with the operation that they come from, and the time that so many bytes take. What a
gather reads counts as its whole operand, which is two batches of images here. Without a device
nothing is tuned, so this says nothing of arithmetic. With --write or --output the counts become a
row of that file, whose other rows stay.
"""

import argparse
import importlib.util
import math
import os
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh

from benchmarks import collectives
from benchmarks.workers import add_output_flags, describe_machine, output_path, write_result
from cifar_jax import files
from cifar_jax.errors import UserError

NAME = "bench_gpu_ahead"

# What XLA must know of a device that is not there: an H100 with 80 GB, cuDNN 9 and CUDA 13.
H100 = """
gpu_device_info {
  cuda_compute_capability { major: 9 }
  core_count: 132
  fpus_per_core: 128
  clock_rate_ghz: 1.98
  memory_bandwidth: 3352320000000
  device_memory_size: 84929347584
  l2_cache_size: 52428800
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
  registers_per_block_limit: 65536
  registers_per_core_limit: 65536
}
platform_name: "CUDA"
device_description_str: "NVIDIA H100 80GB HBM3"
dnn_version_info { major: 9 minor: 10 }
runtime_version { major: 13 minor: 0 patch: 0 }
"""
# Bytes a second that a large copy reaches on an H100.
COPY_RATE = 3.0e12

_ARRAY = re.compile(r"\b(?:pred|[a-z]+(\d+)\w*)\[([\d,]*)\]")
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_INSTRUCTION = re.compile(r"\s*(?:ROOT )?%([\w.\-]+) = (\([^=]*?\)|\S+) ([\w\-]+)\((.*)$")
# These launch nothing. What an asynchronous one takes is counted at its start.
_NO_KERNEL = ("parameter", "get-tuple-element", "tuple", "bitcast", "constant", "after-all")
# These are made of the instructions of another computation.
_CALLS = {"call": "to_apply", "async-start": "calls", "while": "body"}


class Instruction(NamedTuple):
    """One instruction of a compiled program.

    Attributes:
      name: unique in the program; a profile's events carry it.
      operation: what it is, of a library's call its target.
      shape: of its result, in HLO's notation.
      origin: the path of the traced operation that it comes from, if it is known.
      num_bytes: of its operands and its result.
      called: the computation that it is made of, for a call or a loop.
    """

    name: str
    operation: str
    shape: str
    origin: str
    num_bytes: int
    called: str


def read_computations(text: str) -> dict[str, list[Instruction]]:
    """Returns the instructions of each computation in the text of a compiled program, by name."""
    computations: dict[str, list[Instruction]] = {}
    current: list[Instruction] | None = None
    shapes: dict[str, str] = {}
    # Long tuples have comments between their parts.
    for line in re.sub(r"/\*.*?\*/", "", text).splitlines():
        if head := _COMPUTATION.match(line):
            current, shapes = computations.setdefault(head[1], []), {}
        elif line.startswith("}"):
            current = None
        elif current is not None and (match := _INSTRUCTION.match(line)):
            name, shape, operation, rest = match.groups()
            shapes[name] = shape
            operands = re.findall(r"%([\w.\-]+)", rest.split("), ")[0])
            moved = count_bytes(shape) + sum(count_bytes(shapes.get(x, "")) for x in operands)
            called = re.search(rf"\b{_CALLS.get(operation, '-')}=%([\w.\-]+)", rest)
            target = re.search(r'custom_call_target="([^"]*)"', rest)
            origin = re.search(r'op_name="([^"]*)"', rest)
            current.append(
                Instruction(
                    name,
                    target[1] if target else operation,
                    shape,
                    origin[1] if origin else "",
                    moved,
                    called[1] if called else "",
                )
            )
    return computations


def count_bytes(shape: str) -> int:
    """Returns the bytes of a shape in HLO's notation; of a tuple, those of all its arrays."""
    return sum(
        math.prod(int(side) for side in sides.split(",") if side) * int(bits or 8) // 8
        for bits, sides in _ARRAY.findall(shape)
    )


def find_kernels(text: str) -> list[Instruction]:
    """Returns the kernels of one step, the body of the program's largest loop, largest first.

    What a loop within the step repeats counts once.

    Raises:
      ValueError: the program has no loop.
    """
    computations = read_computations(text)

    def walk(name: str) -> list[Instruction]:
        found: list[Instruction] = []
        for one in computations.get(name, ()):
            if one.called in computations:
                found += walk(one.called)
            elif one.operation not in _NO_KERNEL and not one.operation.endswith("-done"):
                found.append(one)
        return found

    every = (one for instructions in computations.values() for one in instructions)
    loops = [walk(one.called) for one in every if one.operation == "while"]
    if not loops:
        raise ValueError("the program has no loop of steps")
    longest: list[Instruction] = max(loops, key=len)
    return sorted(longest, key=lambda one: -one.num_bytes)


def sum_up(kernels: Sequence[Instruction]) -> dict[str, int]:
    """Returns the number of kernels and their bytes, of all and of those of the network.

    A kernel counts as the network's if the operation that it comes from is in the differentiated
    loss. The rest chooses images, updates parameters, or has no known origin.
    """
    network = [one for one in kernels if "jvp(" in one.origin]
    return {
        "kernels": len(kernels),
        "num_bytes": sum(one.num_bytes for one in kernels),
        "network_kernels": len(network),
        "network_bytes": sum(one.num_bytes for one in network),
    }


def make_mesh() -> Mesh:
    """Returns the mesh of one H100 that is not there."""
    topology = topologies.get_topology_desc(platform="cuda", target_config=H100, topology="1x1x1")
    members: Any = np.array(topology.devices)
    return Mesh(members.reshape(1, 1), ("seed", "data"), axis_types=(AxisType.Auto,) * 2)


def has_plugin() -> bool:
    """Whether JAX's CUDA plugin is installed."""
    return any(importlib.util.find_spec(f"jax_cuda{n}_plugin") for n in (12, 13))


def main(argv: list[str]) -> int:
    """Runs the command; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", help="such as speedrun or resnet:18")
    parser.add_argument("--batch-size", type=int, help="default: the config's")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--top", type=int, default=25, help="kernels to show")
    parser.add_argument("--hlo", type=Path, help="where to write the compiled program")
    add_output_flags(parser, NAME)
    options = parser.parse_args(argv)
    path = output_path(options, NAME)
    try:
        config = collectives.load_config(options.config, options.batch_size)
        rows = files.read_json(path, missing={}).get("rows", {}) if path else {}
    except UserError as error:
        parser.error(str(error))
    if not has_plugin():
        parser.error("JAX's CUDA plugin is missing: pip install 'jax[cuda13]'")
    # The plugin otherwise refuses to load without a GPU.
    os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")
    config.dtype = options.dtype
    begun = time.monotonic()
    compiled = collectives.compile_steps(config, make_mesh(), (32, 32, 3))
    seconds = time.monotonic() - begun
    text = compiled.as_text()
    if options.hlo:
        options.hlo.write_text(text)
    memory = compiled.memory_analysis().temp_size_in_bytes / 2**20
    print(
        f"{options.config}: batch {config.batch_size}, {config.dtype}; "
        f"compiled in {seconds:.0f} s; temporary memory {memory:.0f} MiB"
    )
    kernels = find_kernels(text)
    found = sum_up(kernels)
    total = found["num_bytes"]
    print(
        f"a step: {len(kernels)} kernels, {total / 1e9:.2f} GB, "
        f"{1e3 * total / COPY_RATE:.2f} ms at {COPY_RATE / 1e12:g} TB/s; of these "
        f"{found['network_kernels']} kernels and {found['network_bytes'] / 1e9:.2f} GB are of the "
        "network, the rest of the optimizer and the images"
    )
    for one in kernels[: options.top]:
        print(
            f"{one.num_bytes / 1e6:8.1f} MB  {one.name:36.36} {one.operation:28.28} "
            f"{one.shape:40.40} {one.origin[-76:]}"
        )
    size = {"config": options.config, "batch_size": config.batch_size, "dtype": config.dtype}
    rows[", ".join(map(str, size.values()))] = {**size, **found, **describe_machine()}
    write_result(options, NAME, {"rows": rows})
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
