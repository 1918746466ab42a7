"""Test-time augmentation: the mean of a model's logits over several views of each image."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh
from scipy import special

from cifar_jax.evaluation.logits import compile_predict, fit_batch_size, predict_logits

# (variables, uint8 images [images, height, width, channels], on the host or on the devices, batch
# size) -> logits, float32 [images, classes]
Predict = Callable[[Any, np.ndarray | jax.Array, int], np.ndarray]


def identity(images: jax.Array) -> jax.Array:
    """Returns the images [batch, height, width, channels] unchanged."""
    return images


def mirror(images: jax.Array) -> jax.Array:
    """Returns the images [batch, height, width, channels] mirrored left to right."""
    return images[:, :, ::-1]


def shift(images: jax.Array, pixels: int) -> jax.Array:
    """Moves images down and right; reflection (without the border pixel) fills the gap.

    Args:
      images: [batch, height, width, channels].
      pixels: the distance; a negative one moves them up and left.
    """
    height, width = images.shape[1:3]
    size = abs(pixels)
    padded = jnp.pad(images, [(0, 0), (size, size), (size, size), (0, 0)], mode="reflect")
    first = size - pixels
    return padded[:, first : first + height, first : first + width]


# Shifted by one pixel each way, and mirrored.
_SHIFTED = (
    functools.partial(shift, pixels=1),
    functools.partial(shift, pixels=-1),
    lambda images: mirror(shift(images, 1)),
    lambda images: mirror(shift(images, -1)),
)


def make_predict(
    model: nn.Module,
    mesh: Mesh,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    test_time: Any = None,
    num_seeds: int = 1,
    at_once: bool = False,
) -> Predict:
    """Returns the function (variables, images, batch size) -> logits.

    "mirror_shift" is the scheme of Jordan, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU", 2024:
    half of the weight is on the image and half on the image shifted by a pixel in two directions;
    each of these counts half as it is and half mirrored. Only images about which the model is not
    confident are shifted, as in Hiverge, "cifar10-speedrun", 2025; here each image's own
    probabilities decide, so its logits do not depend on the other images.

    Args:
      model: the network.
      mesh: the devices.
      mean: of each channel, in units of pixel / 255.
      std: of each channel, in units of pixel / 255.
      test_time: the config's `test_time`; None: the images as they are.
      num_seeds: with several, the logits are [runs, images, classes], as in `compile_predict`.
      at_once: as in `compile_predict`.
    """

    def compile_views(*views: Callable[[jax.Array], jax.Array]) -> Predict:
        program = compile_predict(model, mesh, mean, std, views, num_seeds, at_once)
        return lambda variables, images, size: predict_logits(
            program, variables, images, fit_batch_size(model, images.shape[1:], size, mesh), mesh
        )

    if test_time is None or test_time.views == "plain":
        return compile_views(identity)
    predict_mirrored = compile_views(identity, mirror)
    if test_time.views == "mirror":
        return predict_mirrored
    predict_shifted = compile_views(*_SHIFTED)

    def predict(variables: Any, images: np.ndarray | jax.Array, batch_size: int) -> np.ndarray:
        logits = predict_mirrored(variables, images, batch_size)
        if test_time.confidence_threshold is None:
            return (logits + predict_shifted(variables, images, batch_size)) / 2
        confidence = special.softmax(logits.astype(np.float64), axis=-1).max(axis=-1)
        uncertain = confidence < test_time.confidence_threshold
        chosen = np.flatnonzero(uncertain.reshape(-1, len(images)).any(axis=0))
        size = min(batch_size, len(images))
        for first in range(0, len(chosen), size):
            part = chosen[first : first + size]
            # The last batch is filled up by repetition, so that one program serves all.
            more = predict_shifted(variables, images[np.resize(part, size)], size)
            mean_logits = (logits[..., part, :] + more[..., : len(part), :]) / 2
            logits[..., part, :] = np.where(
                uncertain[..., part, None], mean_logits, logits[..., part, :]
            )
        return logits

    return predict


def apply_views(
    apply: Callable[[jax.Array], jax.Array], images: jax.Array, test_time: Any
) -> jax.Array:
    """Returns logits [batch, classes] as `make_predict` computes them, for a single program.

    It computes the shifted views of every image, where `make_predict` may leave some out.

    Args:
      apply: from normalised images [batch, height, width, channels] to logits.
      images: normalised.
      test_time: the config's `test_time`.
    """
    if test_time.views == "plain":
        return apply(images)
    logits = (apply(images) + apply(mirror(images))) / 2
    if test_time.views == "mirror":
        return logits
    shifted = sum(apply(view(images)) for view in _SHIFTED) / len(_SHIFTED)
    mean_logits = (logits + shifted) / 2
    if test_time.confidence_threshold is None:
        return mean_logits
    confidence = jax.nn.softmax(logits).max(axis=1, keepdims=True)
    return jnp.where(confidence < test_time.confidence_threshold, mean_logits, logits)
