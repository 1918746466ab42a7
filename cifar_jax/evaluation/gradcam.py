"""Grad-CAM: where in an image a model finds what speaks for a class.

Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based
Localization", ICCV 2017 (https://arxiv.org/abs/1610.02391).
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from cifar_jax.augment import batch as augment
from cifar_jax.errors import UserError
from cifar_jax.evaluation.trained import Trained
from cifar_jax.parallel import devices


def find_last_map(model: nn.Module, image_shape: Sequence[int]) -> int | None:
    """Returns which call of a layer gives the last feature map, counted from 0; None without one.

    It is the last layer with parameters, of its own or of its layers, whose output [batch, height,
    width, channels] is larger than a pixel.

    Args:
      model: an unbound module.
      image_shape: (height, width, channels).
    """
    last = None

    def note(number: int, module: nn.Module, output: Any) -> Any:
        nonlocal last
        is_map = np.ndim(output) == 4 and output.shape[1] * output.shape[2] > 1
        if is_map and "params" in module.variables:
            last = number
        return output

    def init(key: jax.Array, images: jax.Array) -> Any:
        return _apply(lambda: model.init(key, images, train=False), note)

    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    jax.eval_shape(init, jax.random.key(0), images)
    return last


def _apply(call: Callable[[], Any], change: Callable[[int, nn.Module, Any], Any]) -> Any:
    """Calls a model; `change` gets the number, the module and the output of each layer's call.

    It returns the output that the model goes on with. Calls are numbered in the order of their
    ends.
    """
    count = 0

    def intercept(function: Any, args: Any, kwargs: Any, context: Any) -> Any:
        nonlocal count
        output = function(*args, **kwargs)
        if context.method_name == "__call__":
            output = change(count, context.module, output)
            count += 1
        return output

    with nn.intercept_methods(intercept):
        return call()


def make_explain(model: nn.Module, call: int) -> Callable[[Any, jax.Array, jax.Array], jax.Array]:
    """Returns the pure function (variables, images, classes) -> maps.

    Images are normalised floats [batch, height, width, channels], classes int [batch]. A map,
    float32 [batch, map height, map width], is the feature map's mean over the channels, weighted by
    the mean gradients of the class's logit, where it is positive; its largest value is 1, unless it
    is 0 everywhere.

    Args:
      model: an unbound module.
      call: the number of the layer's call, as `find_last_map` returns it.
    """

    def explain(variables: Any, images: jax.Array, classes: jax.Array) -> jax.Array:
        def logit(offset: jax.Array | float) -> tuple[jax.Array, Any]:
            features = []

            def add(number: int, module: nn.Module, output: Any) -> Any:
                if number != call:
                    return output
                features.append(output)
                return output + offset

            logits = _apply(lambda: model.apply(variables, images, train=False), add)
            chosen = jnp.take_along_axis(logits, classes[:, None], axis=1)
            # An image's logits depend on that image alone, so the sum has each one's gradient.
            return chosen.sum(), features[0]

        shape = jax.eval_shape(lambda: logit(0.0)[1])
        zero = jnp.zeros(shape.shape, shape.dtype)
        gradient, features = jax.grad(logit, has_aux=True)(zero)
        weights = gradient.astype(jnp.float32).mean(axis=(1, 2), keepdims=True)
        maps = jax.nn.relu((weights * features.astype(jnp.float32)).sum(axis=-1))
        largest = maps.max(axis=(1, 2), keepdims=True)
        return maps / jnp.where(largest > 0, largest, 1)

    return explain


def require_map(trained: Trained) -> int:
    """Returns what `find_last_map` finds for a trained model.

    Raises:
      UserError: the model has no feature map, or is an ensemble.
    """
    if trained.members:
        raise UserError("Grad-CAM explains one model, not an ensemble: leave out --explain")
    call = find_last_map(trained.model, trained.image_shape)
    if call is None:
        raise UserError(
            f"the model {trained.config.model.name} has no feature map, which Grad-CAM explains: "
            "leave out --explain, or name a run of a model with convolutions"
        )
    return call


def explain_images(trained: Trained, images: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Returns where each image speaks for its class, float32 [images, map height, map width].

    The images are taken as they are, without the views of test-time augmentation.

    Args:
      trained: the model.
      images: uint8 [images, height, width, channels].
      classes: int [images], whose logits are explained.

    Raises:
      UserError: as for `require_map`.
    """
    explain = make_explain(trained.model, require_map(trained))

    def normalize_and_explain(variables: Any, images: jax.Array, classes: jax.Array) -> jax.Array:
        images = augment.normalize(images, trained.mean, trained.std, trained.model.dtype)
        return explain(variables, images, classes)

    with jax.set_mesh(devices.make_mesh()):
        return np.asarray(jax.jit(normalize_and_explain)(trained.variables, images, classes))
