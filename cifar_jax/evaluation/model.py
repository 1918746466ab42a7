"""A trained model, or an ensemble of several: from images to logits to probabilities."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import linen as nn
from ml_collections import ConfigDict
from scipy import special

from cifar_jax.errors import UserError
from cifar_jax.evaluation import views
from cifar_jax.parallel import devices


class Trained(NamedTuple):
    """A model with its trained weights.

    Attributes:
      config: the config of its run.
      model: the network.
      variables: the network's variables; their moving averages, if the run kept them.
      class_names: the names of the classes, in the order of the logits.
      mean: of each channel of the training images, in units of pixel / 255.
      std: of each channel of the training images, in units of pixel / 255.
      image_shape: (height, width, channels) of the training images.
      step: the checkpoint's step.
      seed: the seed of its run.
      temperature: by which the logits are divided to get probabilities (Guo et al., 2017).
      fitted_on: the split that the temperature was fitted on, "" if there is none.
      members: the models of which this one is the ensemble; then the other attributes, except the
        temperature, are those of the first member.
    """

    config: ConfigDict
    model: nn.Module
    variables: Any
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    image_shape: tuple[int, ...]
    step: int
    seed: int = 0
    temperature: float = 1.0
    fitted_on: str = ""
    members: tuple["Trained", ...] = ()

    def predict_logits(self, images: np.ndarray, batch_size: int) -> np.ndarray:
        """Returns the logits, float32 [images, classes], computed on all devices.

        With test-time augmentation in the run's config, they are the mean over the views. Those of
        an ensemble, in float64, are the logarithms of the mean probabilities of its members.

        Args:
          images: uint8 [images, height, width, channels], of the training images' shape.
          batch_size: images per step.
        """
        if self.members:
            every = (one.predict_logits(images, batch_size) for one in self.members)
            return self.average_logits(list(every))
        mesh = devices.make_mesh()
        with jax.set_mesh(mesh):
            statistics = (self.mean, self.std)
            predict = views.make_predict(self.model, mesh, *statistics, self.config.test_time)
            return predict(self.variables, images, batch_size)

    def predict(self, images: np.ndarray, batch_size: int = 500) -> np.ndarray:
        """Returns the class probabilities, float64 [images, classes].

        Fewer images than a batch are filled up to a power of two, so that few programs serve all.

        Args:
          images: uint8 [images, height, width, channels], of the training images' shape.
          batch_size: images per step.

        Raises:
          UserError: the images have another shape or type, or the batch size is not positive.
        """
        if batch_size < 1:
            raise UserError(f"the batch size is {batch_size}: it must be at least 1")
        images = np.asarray(images)
        if images.dtype != np.uint8 or images.shape[1:] != self.image_shape or not len(images):
            raise UserError(
                f"the model takes uint8 images of shape {('images', *self.image_shape)}, "
                f"not {images.dtype} {images.shape}"
            )
        logits = []
        for first in range(0, len(images), batch_size):
            part = images[first : first + batch_size]
            size = min(batch_size, 1 << (len(part) - 1).bit_length())
            filled = np.resize(part, (size, *self.image_shape))
            logits.append(self.predict_logits(filled, size)[: len(part)])
        return self.probabilities(np.concatenate(logits))

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """Returns the class probabilities, float64 [images, classes], of logits of that shape."""
        return special.softmax(self.scale(logits), axis=1)

    def scale(self, logits: np.ndarray) -> np.ndarray:
        """Returns logits divided by the temperature, in float64."""
        return logits.astype(np.float64) / self.temperature

    def describe(self) -> str:
        """Returns what answers, in words: the checkpoint and its temperature, or an ensemble."""
        if self.members:
            return f"an ensemble of {len(self.members)} models"
        words = f"the checkpoint of step {self.step}"
        return words + (f", {self.describe_temperature()}" if self.temperature != 1 else "")

    def describe_temperature(self) -> str:
        """Returns the temperature in words, with the split that it was fitted on."""
        fitted = f" (fitted on the {self.fitted_on} split)" if self.fitted_on else ""
        return f"temperature {self.temperature:.3f}{fitted}"

    def average_logits(self, every: Sequence[np.ndarray]) -> np.ndarray:
        """Returns the logits of an ensemble for those of its members, float64 [images, classes]."""
        parts = [one.probabilities(own) for one, own in zip(self.members, every, strict=True)]
        return np.log(np.maximum(np.mean(parts, axis=0), np.finfo(np.float64).tiny))


def combine(members: Sequence[Trained]) -> Trained:
    """Returns the ensemble of models, whose probabilities are the mean of theirs.

    Raises:
      UserError: there are none, or they differ in classes or in the shape of images.
    """
    if len(members) < 2:
        raise UserError("an ensemble needs at least two models: name more runs, or one with seeds")
    for what in ("class_names", "image_shape"):
        first, *rest = dict.fromkeys(getattr(one, what) for one in members)
        if rest:
            words = f"{what.replace('_', ' ')} {first} and {rest[0]}"
            raise UserError(f"the members of an ensemble must fit each other; these have {words}")
    return members[0]._replace(members=tuple(members), temperature=1.0, fitted_on="")
