"""What the devices exchange in a step, read from the compiled program.

    python -m benchmarks.collectives simple_cnn resnet:20           for 8 virtual CPU devices
    python -m benchmarks.collectives resnet --topology=v5e:2x4      for a TPU (needs libtpu)

prints a JSON object for each config: how many exchanges of each kind the program of a step has,
their bytes, and the bytes that its gradients and BatchNorm's statistics should take.
"""

import argparse
import importlib
import json
import math
import re
import sys
from collections import Counter
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, PartitionSpec

from cifar_jax.config import durations
from cifar_jax.errors import UserError
from cifar_jax.models import registry
from cifar_jax.optim import build
from cifar_jax.parallel import devices
from cifar_jax.training import program as program_lib
from cifar_jax.training import state as state_lib
from cifar_jax.training import step as step_lib

# (height, width, channels) by data set; the others have the images of CIFAR.
SHAPES = {"mnist": (28, 28, 1), "digits": (32, 32, 1)}
_KINDS = (
    *("all-reduce", "all-gather", "reduce-scatter", "all-to-all"),
    *("collective-permute", "collective-broadcast", "send", "recv"),
)
_CALL = re.compile(rf"= (.*?) ({'|'.join(_KINDS)})(?:-start)?\(")
_ARRAY = re.compile(r"\b(pred|bf16|[fsu]\d+)\[([\d,]*)\]")
_BYTES = {"pred": 1, "bf16": 2}


class Exchange(NamedTuple):
    """One exchange between the devices: its kind and the bytes that each device sends."""

    kind: str
    num_bytes: int


def read(text: str) -> list[Exchange]:
    """Returns the exchanges in the text of a compiled program; those in a loop are listed once."""

    def size(types: str) -> int:
        found = _ARRAY.findall(types)
        each = [
            (_BYTES.get(kind) or int(kind[1:]) // 8)
            * math.prod(map(int, filter(None, n.split(","))))
            for kind, n in found
        ]
        return sum(each)

    return [Exchange(kind, size(types)) for types, kind in _CALL.findall(text)]


def compile_steps(config: Any, mesh: Mesh, image_shape: tuple[int, ...]) -> Any:
    """Returns the compiled program of a config's steps over a mesh; no array is made.

    Args:
      config: of the training, on a data set of 10 classes.
      mesh: of devices, which need not exist.
      image_shape: (height, width, channels).
    """
    length = durations.resolve_durations(config, 2 * config.batch_size)
    model = registry.create_model(config, 10)
    mean = std = (0.5,) * image_shape[-1]
    optimizer = build.create_optimizer(config, length)
    step = step_lib.make_train_step(model, optimizer, config, mean, std, length.steps_per_epoch)
    key = jax.eval_shape(lambda: jax.random.key(0))
    with jax.set_mesh(mesh):
        create = state_lib.make_init(config, length, model, image_shape)
        num = 2 * config.batch_size
        data = (
            jax.ShapeDtypeStruct((num, *image_shape), jnp.uint8),
            jax.ShapeDtypeStruct((num,), jnp.int32),
        )
        whole = (jax.eval_shape(create, key), data)
        rows = jax.ShapeDtypeStruct((2, config.batch_size), jnp.int32)
        count = jax.ShapeDtypeStruct((), jnp.int32)
        arguments = (
            *devices.abstract_arrays(mesh, whole),
            devices.abstract_arrays(mesh, rows, PartitionSpec(None, "data")),
            *devices.abstract_arrays(mesh, (count, key)),
        )
        return program_lib.compile_train(step, mesh, resident=True).lower(*arguments).compile()


def expected_bytes(config: Any, image_shape: tuple[int, ...]) -> dict[str, int]:
    """Returns the bytes that a step must exchange: a float32 per parameter, and BatchNorm's sums.

    Each feature of a norm has two sums in the forward pass, of the values and of their squares. The
    two in the backward pass are the gradients of its scale and bias.
    """
    model = registry.create_model(config, 10)
    shapes = jax.eval_shape(registry.make_variables(model, image_shape), jax.random.key(0))
    gradients = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes["params"]))
    sums = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes.get("batch_stats", {})))
    return {"gradients": 4 * gradients, "batch_norm": 4 * sums}


def load_config(name: str, batch_size: int | None = None) -> Any:
    """Returns a config by the name of its file and, after a colon, its argument: "resnet:20".

    Raises:
      UserError: there is no such config.
    """
    file, _, option = name.partition(":")
    try:
        module = importlib.import_module(f"configs.{file}")
        config = module.get_config(*([option] if option else []))
    except (ImportError, TypeError, ValueError) as error:
        raise UserError(f"no config {name!r} in configs/: {error}") from None
    config.batch_size = batch_size or config.batch_size
    return config


def topology_mesh(name: str) -> Mesh:
    """Returns the mesh of a TPU that need not exist, such as "v5e:2x4"; needs libtpu."""
    from jax.experimental import topologies

    members: Any = np.array(topologies.get_topology_desc(name, platform="tpu").devices)
    return Mesh(members.reshape(1, -1), ("seed", "data"), axis_types=(AxisType.Auto,) * 2)


def describe(config: Any, mesh: Mesh, image_shape: tuple[int, ...]) -> dict[str, Any]:
    """Returns the exchanges of a config's steps over a mesh, and the bytes expected."""
    found = read(compile_steps(config, mesh, image_shape).as_text())
    kinds = Counter(one.kind for one in found)
    return {
        "devices": mesh.size,
        "exchanges": dict(kinds),
        "largest": max((one.num_bytes for one in found), default=0),
        "bytes": sum(one.num_bytes for one in found),
        "expected": expected_bytes(config, image_shape),
    }


def main(argv: list[str]) -> int:
    """Runs the command; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("configs", nargs="+", metavar="CONFIG")
    parser.add_argument("--devices", type=int, default=8, help="virtual CPU devices (8)")
    parser.add_argument("--topology", help="of a TPU, such as v5e:2x4, instead of CPU devices")
    parser.add_argument("--batch-size", type=int, default=64, help="images per step (64)")
    options = parser.parse_args(argv)
    try:
        if options.topology is None:
            jax.config.update("jax_platforms", "cpu")
            devices.configure_jax(options.batch_size, options.devices)
            mesh = devices.make_mesh(options.batch_size)
        else:
            mesh = topology_mesh(options.topology)
        if mesh.size == 1:
            print("one device exchanges nothing with others", file=sys.stderr)
        for name in options.configs:
            config = load_config(name, options.batch_size)
            shape = SHAPES.get(config.data.name, (32, 32, 3))
            print(json.dumps({"config": name, **describe(config, mesh, shape)}), flush=True)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
