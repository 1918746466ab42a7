"""A model's layers with their shapes and counts, found without computing anything."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from cifar_jax.text import format_table


class LayerRow(NamedTuple):
    """One layer that has variables.

    Attributes:
      path: the module's path in the model, such as "stage_0_block_1/Conv_0".
      kind: the module's class, such as "Conv".
      output_shape: for a batch of one image.
      num_variables: parameters and moving statistics.
      num_trainable: parameters only.
    """

    path: str
    kind: str
    output_shape: tuple[int, ...]
    num_variables: int
    num_trainable: int


def layer_table(model: nn.Module, image_shape: Sequence[int]) -> list[LayerRow]:
    """Returns a model's layers that have variables, in the order in which they are called.

    Args:
      model: an unbound module.
      image_shape: (height, width, channels).

    Returns:
      One row per layer; a layer called twice has one row, for its first call.
    """
    rows: dict[str, LayerRow] = {}

    def record(next_fun, args, kwargs, context):
        output = next_fun(*args, **kwargs)
        module = context.module
        path = "/".join(module.path)
        own = {name: _count_own(tree) for name, tree in module.variables.items()}
        if context.method_name == "__call__" and any(own.values()):
            row = LayerRow(
                path, type(module).__name__, output.shape, sum(own.values()), own.get("params", 0)
            )
            rows.setdefault(path, row)
        return output

    def init(key, images):
        with nn.intercept_methods(record):
            return model.init(key, images, train=False)

    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    jax.eval_shape(init, jax.random.key(0), images)
    return list(rows.values())


def first_kernel(model: nn.Module, variables: Any, image_shape: Sequence[int]) -> np.ndarray | None:
    """Returns the first convolution's kernel, [height, width, channels, filters].

    None unless the first layer is a convolution of 1 or 3 channels, which can be shown as images.
    """
    layer = variables["params"]
    for name in layer_table(model, image_shape)[0].path.split("/"):
        layer = layer[name]
    kernel = layer.get("kernel")
    if kernel is None or kernel.ndim != 4 or kernel.shape[2] not in (1, 3):
        return None
    return np.asarray(kernel, np.float32)


def _count_own(tree) -> int:
    """Counts the numbers in the arrays directly in `tree`, not those in its submodules."""
    return sum(math.prod(leaf.shape) for leaf in tree.values() if hasattr(leaf, "shape"))


def format_layers(rows: Sequence[LayerRow]) -> str:
    """Returns the layers as a text table of output shapes and counts, with the totals below."""
    cells = [("layer", "output shape", "parameters")]
    for row in rows:
        shape = ", ".join(map(str, row.output_shape[1:]))
        cells.append((f"{row.path} ({row.kind})", f"(batch, {shape})", f"{row.num_variables:,}"))
    lines = format_table(cells, right=(2,)).splitlines()
    total = sum(row.num_variables for row in rows)
    trainable = sum(row.num_trainable for row in rows)
    words = f"total: {total:,}  trainable: {trainable:,}  not trainable: {total - trainable:,}"
    return "\n".join([*lines, lines[1], words])
