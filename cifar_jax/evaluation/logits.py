"""Computes the logits of a set of images: each image exactly once, in batches, on all devices."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from cifar_jax.augment import batch as augment
from cifar_jax.models.layer_table import layer_table
from cifar_jax.parallel import devices, seeds

# Images that are on the devices at one time.
_CHUNK_BYTES = 64 * 2**20
# Images that a CPU device computes at a time where an image's results of all layers have more
# numbers than the weights, which each batch reads once. They then stay in the cache: ResNet-20 is
# 1.1 to 1.3 times as fast as with 64 or 250 images. Other models are no faster with few images, and
# some are slower.
_CACHED_IMAGES = 4


@functools.lru_cache(maxsize=8)
def fit_batch_size(
    model: nn.Module, image_shape: tuple[int, ...], batch_size: int, mesh: Mesh
) -> int:
    """Returns the images per step that are fastest on the devices, at most `batch_size`.

    Args:
      model: the network.
      image_shape: (height, width, channels).
      batch_size: the most images per step.
      mesh: the devices.
    """
    if mesh.devices.flat[0].platform != "cpu":
        return batch_size
    rows = layer_table(model, image_shape)
    results = sum(int(np.prod(row.output_shape)) for row in rows)
    weights = sum(row.num_variables for row in rows)
    most = _CACHED_IMAGES * mesh.shape["data"] if results > weights else batch_size
    return min(batch_size, most)


@functools.lru_cache(maxsize=8)
def compile_predict(
    model: nn.Module,
    mesh: Mesh,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    views: Sequence[Callable[[jax.Array], jax.Array]] = (lambda images: images,),
    num_seeds: int = 1,
    at_once: bool = False,
) -> Callable[..., jax.Array]:
    """Returns the compiled program (variables, images) -> logits.

    Images are uint8 [batches, batch, height, width, channels], logits float32 [batches, batch,
    classes]; each image's logits depend on that image alone. With several seeds, the first axis of
    variables and logits is that of the runs.

    Args:
      model: the network.
      mesh: the devices.
      mean: of each channel, in units of pixel / 255.
      std: of each channel, in units of pixel / 255.
      views: functions from a batch of images to another of the same shape; the logits are the mean
        over them.
      num_seeds: the number of runs in the variables.
      at_once: whether a device computes its runs at once, as in `seeds.map_seeds`.
    """

    def predict(variables, images):
        def one(batch):
            batch = augment.normalize(batch, mean, std, model.dtype)
            logits: Any = [model.apply(variables, view(batch), train=False) for view in views]
            return sum(logits) / len(views)

        return jax.lax.map(one, images)

    if num_seeds > 1:
        predict = seeds.map_seeds(predict, mesh, (0, None), at_once)
    own, rows = (
        NamedSharding(mesh, spec) for spec in (seeds.spec(num_seeds), PartitionSpec(None, "data"))
    )
    return jax.jit(predict, in_shardings=(own, rows), out_shardings=own)


def predict_logits(
    predict: Callable[..., jax.Array],
    variables: Any,
    images: np.ndarray | jax.Array,
    batch_size: int,
    mesh: Mesh,
) -> np.ndarray:
    """Returns the logits of every image, float32 [images, classes], or [runs, images, classes].

    The last batch, and every batch that the devices do not divide evenly, is padded with black
    images, whose logits are dropped.

    Args:
      predict: the program of `compile_predict`.
      variables: the model's variables.
      images: uint8 [images, height, width, channels], on the host or already on the devices.
      batch_size: images per step.
      mesh: the devices.
    """
    library: Any = jnp if isinstance(images, jax.Array) else np
    num_images = len(images)
    sharing = mesh.shape["data"]
    batch_size = -(-min(batch_size, num_images) // sharing) * sharing
    num_batches = -(-num_images // batch_size)
    most = max(1, _CHUNK_BYTES // (batch_size * int(np.prod(images.shape[1:]))))
    num_calls = -(-num_batches // most)
    batches = -(-num_batches // num_calls)
    rows = batches * batch_size
    logits = []
    for first in range(0, num_images, rows):
        chunk = library.asarray(images[first : first + rows])
        size = len(chunk)
        if size < rows:
            chunk = library.pad(chunk, [(0, rows - size)] + [(0, 0)] * (chunk.ndim - 1))
        chunk = chunk.reshape(batches, batch_size, *chunk.shape[1:])
        out = predict(variables, devices.put(mesh, chunk, PartitionSpec(None, "data")))
        logits.append(np.asarray(out).reshape(*out.shape[:-3], rows, -1)[..., :size, :])
    return np.concatenate(logits, axis=-2)
