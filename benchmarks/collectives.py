"""What the devices exchange in a step, read from the compiled program.

    JAX_NUM_CPU_DEVICES=8 python -m benchmarks.collectives simple_cnn resnet:20
    python -m benchmarks.collectives resnet --topology=v5e:2x4    a TPU's, ahead of time (libtpu)

prints a JSON object a config: the bytes of each kind of exchange in the program of the steps, and
the bytes that its gradients and BatchNorm's statistics should take.
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
from cifar_jax.models import registry
from cifar_jax.optim import build
from cifar_jax.parallel import devices
from cifar_jax.training import metrics as metrics_lib
from cifar_jax.training import program as program_lib
from cifar_jax.training import state as state_lib
from cifar_jax.training import step as step_lib

_KINDS = (
    *("all-reduce", "all-gather", "reduce-scatter", "all-to-all"),
    *("collective-permute", "collective-broadcast", "send", "recv"),
)
_CALL = re.compile(rf"= (.*?) ({'|'.join(_KINDS)})(?:-start)?\(")
_ARRAY = re.compile(r"\b(pred|bf16|[fsu]\d+)\[([\d,]*)\]")
_BYTES = {"pred": 1, "bf16": 2}


class Exchange(NamedTuple):
    """One exchange between the devices: its kind and the bytes that each device gives."""

    kind: str
    num_bytes: int


def read(text: str) -> list[Exchange]:
    """Returns the exchanges in the text of a compiled program; what is in a loop stands once."""

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
      config: of the training; its set is taken to have 10 classes.
      mesh: of devices, which need not be there.
      image_shape: (height, width, channels).
    """
    length = durations.resolve(config, 2 * config.batch_size)
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
        whole = (
            jax.eval_shape(create, key),
            jax.eval_shape(metrics_lib.Metrics.empty),
            data,
        )
        rows = jax.ShapeDtypeStruct((2, config.batch_size), jnp.int32)
        count = jax.ShapeDtypeStruct((), jnp.int32)
        arguments = (
            *devices.abstract(mesh, whole),
            devices.abstract(mesh, rows, PartitionSpec(None, "data")),
            *devices.abstract(mesh, (count, key)),
        )
        return program_lib.compile_train(step, mesh, resident=True).lower(*arguments).compile()


def expected_bytes(config: Any, image_shape: tuple[int, ...]) -> dict[str, int]:
    """Returns the bytes that a step must exchange: one float32 a parameter, and BatchNorm's sums.

    Each feature of a norm has two sums forward, of the values and of their squares. The two
    backward are the gradients of its scale and bias.
    """
    model = registry.create_model(config, 10)
    shapes = jax.eval_shape(registry.make_variables(model, image_shape), jax.random.key(0))
    gradients = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes["params"]))
    sums = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes.get("batch_stats", {})))
    return {"gradients": 4 * gradients, "batch_norm": 4 * sums}


def load_config(name: str, batch_size: int | None = None) -> Any:
    """Returns a config by its file's name, with its argument behind a colon: "resnet:20"."""
    file, _, option = name.partition(":")
    config = importlib.import_module(f"configs.{file}").get_config(*([option] if option else []))
    config.batch_size = batch_size or config.batch_size
    return config


def topology_mesh(name: str) -> Mesh:
    """Returns the mesh of a TPU that is not there, such as "v5e:2x4"; needs libtpu."""
    from jax.experimental import topologies

    members: Any = np.array(topologies.get_topology_desc(name, platform="tpu").devices)
    return Mesh(members.reshape(1, -1), ("seed", "data"), axis_types=(AxisType.Auto,) * 2)


def describe(config: Any, mesh: Mesh, image_shape: tuple[int, ...]) -> dict[str, Any]:
    """Returns the exchanges of a config's steps over a mesh, and what they should be."""
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
    parser.add_argument("configs", nargs="+")
    parser.add_argument("--topology", help="of a TPU, such as v5e:2x4")
    parser.add_argument("--batch-size", type=int, default=64)
    options = parser.parse_args(argv)
    mesh = topology_mesh(options.topology) if options.topology else None
    for name in options.configs:
        config = load_config(name, options.batch_size)
        shape = (28, 28, 1) if name == "mlp" else (32, 32, 3)
        found = describe(config, mesh or devices.make_mesh(options.batch_size), shape)
        print(json.dumps({"config": name, **found}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
