"""Test-time augmentation: the mean of a model's logits over several views of each image."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh

from cifar_jax import scores, steps

# (variables, uint8 images [images, height, width, channels], batch size) -> logits, float32
# [images, classes]
Predict = Callable[[Any, np.ndarray, int], np.ndarray]


def same(images: jax.Array) -> jax.Array:
    """Returns the images [batch, height, width, channels]."""
    return images


def mirror(images: jax.Array) -> jax.Array:
    """Returns the images [batch, height, width, channels] mirrored left to right."""
    return images[:, :, ::-1]


def shift(images: jax.Array, pixels: int) -> jax.Array:
    """Moves images down and right, filling in by reflection (the border pixel is not repeated).

    Args:
      images: [batch, height, width, channels].
      pixels: how far; below 0 up and left.
    """
    height, width = images.shape[1:3]
    size = abs(pixels)
    padded = jnp.pad(images, [(0, 0), (size, size), (size, size), (0, 0)], mode="reflect")
    first = size - pixels
    return padded[:, first : first + height, first : first + width]


# By a pixel each, and each mirrored, too.
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
    half of the weight lies on the image, half on the two shifted by a pixel, and of each half one
    half on the mirrored form. Only images of which the model is not certain are shifted, as in
    Hiverge, "cifar10-speedrun", 2025, but by their own probabilities alone: what other images are
    evaluated with them changes nothing.

    Args:
      model: the network.
      mesh: the devices.
      mean: of each channel in units of pixel / 255.
      std: likewise.
      test_time: the config's `test_time`; None: the images as they are.
      num_seeds: of several runs the logits are [runs, images, classes], as in
        `steps.compile_predict`.
      at_once: see there.
    """

    def compile_views(*views: Callable[[jax.Array], jax.Array]) -> Predict:
        program = steps.compile_predict(model, mesh, mean, std, views, num_seeds, at_once)
        return lambda variables, images, batch_size: scores.predict_logits(
            program, variables, images, batch_size, mesh
        )

    if test_time is None or test_time.views == "plain":
        return compile_views(same)
    predict_mirrored = compile_views(same, mirror)
    if test_time.views == "mirror":
        return predict_mirrored
    predict_shifted = compile_views(*_SHIFTED)

    def predict(variables: Any, images: np.ndarray, batch_size: int) -> np.ndarray:
        logits = predict_mirrored(variables, images, batch_size)
        if test_time.certainty is None:
            return (logits + predict_shifted(variables, images, batch_size)) / 2
        uncertain = scores.softmax(logits).max(axis=-1) < test_time.certainty
        chosen = np.flatnonzero(uncertain.reshape(-1, len(images)).any(axis=0))
        size = min(batch_size, len(images))
        for first in range(0, len(chosen), size):
            part = chosen[first : first + size]
            # Filled up by repetition: one shape, one program.
            more = predict_shifted(variables, images[np.resize(part, size)], size)
            mean_logits = (logits[..., part, :] + more[..., : len(part), :]) / 2
            logits[..., part, :] = np.where(
                uncertain[..., part, None], mean_logits, logits[..., part, :]
            )
        return logits

    return predict
