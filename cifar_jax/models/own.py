"""A model of the user's own, which a config names as FILE.py:CLASS: what it must be like."""

import dataclasses
import inspect
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import flax
import jax
import jax.numpy as jnp
from flax import linen as nn

from cifar_jax.config import custom
from cifar_jax.errors import UserError

# What has nothing to do with the images' shape.
_CERTAIN = (NameError, AttributeError, ImportError, flax.errors.FlaxError)
_WRONG_CALL = re.compile("(keyword|positional) argument")


def load_class(reference: str) -> type[nn.Module]:
    """Returns the class that a reference names.

    Raises:
      UserError: it cannot be loaded, or is not a Flax module of the kind that is trained here.
    """
    found = custom.load_object("model.name", reference)
    if not (inspect.isclass(found) and issubclass(found, nn.Module)):
        raise UserError(f"model.name is {reference!r}, which is not a class of flax.linen.Module")
    known = {field.name for field in dataclasses.fields(found)}
    for name, example in (("num_classes", "num_classes: int"), ("dtype", "dtype: Any")):
        if name not in known:
            raise UserError(f"model {reference} has no field {name}: add `{example}` to the class")
    call = getattr(found, "__call__", None)  # noqa: B004 (of its objects, not of the class)
    if call is None or "train" not in inspect.signature(call).parameters:
        raise UserError(
            f"model {reference} has no method __call__ with the argument `train`: declare "
            "`def __call__(self, images, train=False)`"
        )
    return found


def check_option(what: str, value: Any, default: Any) -> None:
    """Raises UserError unless an option has the type of its default, if that tells a type."""
    kinds: dict[type, Any] = {bool: bool, int: int, float: (int, float), str: str, tuple: tuple}
    wanted = kinds.get(type(default))
    if wanted and (not isinstance(value, wanted) or isinstance(value, bool) != (wanted is bool)):
        raise UserError(f"{what} must be of the type {type(default).__name__}, not {value!r}")


def check_outputs(model: Any, image_shape: Sequence[int], certain: bool = True) -> None:
    """Applies a model to two images, without computing anything, and checks what it returns.

    Args:
      model: the network.
      image_shape: (height, width, channels).
      certain: whether the images have this shape; if not, errors that may be due to it pass.

    Raises:
      UserError: the model fails, keeps variables that are not trained here, or returns no logits.
    """

    def run(images: jax.Array) -> Any:
        key = jax.random.key(0)  # here, so that no device is used, which would start JAX
        variables = model.init(key, images, train=False)
        rngs = {"dropout": key}
        trained, _ = model.apply(variables, images, train=True, mutable=["batch_stats"], rngs=rngs)
        return variables, {"True": trained, "False": model.apply(variables, images, train=False)}

    name, shape, wanted = type(model).__name__, (2, *image_shape), (2, model.num_classes)
    images = jax.ShapeDtypeStruct(shape, model.dtype)
    try:
        variables, outputs = jax.eval_shape(run, images)
    except Exception as error:
        wrong_call = isinstance(error, TypeError) and _WRONG_CALL.search(str(error))
        if not certain and not isinstance(error, _CERTAIN) and not wrong_call:
            return
        file = getattr(sys.modules[type(model).__module__], "__file__", "")
        words = custom.describe_error(error, file)
        raise UserError(f"model {name}, applied to images {list(shape)}, {words}") from error
    if others := set(variables) - {"params", "batch_stats"}:
        raise UserError(
            f"model {name} has variables in {', '.join(sorted(others))}: only those in params and "
            "batch_stats are kept"
        )
    for train, logits in outputs.items():
        kind, found = str(getattr(logits, "dtype", type(logits))), getattr(logits, "shape", ())
        if (kind, found) != ("float32", wanted):
            raise UserError(
                f"model {name} returns {kind} {list(found)} for 2 images with train={train}: it "
                f"must return the logits, float32 {list(wanted)}"
            )


def check_params_from_data(model: nn.Module, given: Any, params: Any, path: str = "") -> None:
    """Raises UserError unless what `params_from_data` returned is a part of the parameters."""
    if isinstance(given, Mapping) and isinstance(params, Mapping):
        for name, value in given.items():
            check_params_from_data(model, value, params.get(name), f"{path}/{name}".lstrip("/"))
    elif params is None or jnp.shape(given) != getattr(params, "shape", None):
        known = "has no such parameter" if params is None else f"has {getattr(params, 'shape', '')}"
        raise UserError(
            f"params_from_data of {type(model).__name__} returns {path or 'no dict'} of shape "
            f"{jnp.shape(given)}, but the model {known}"
        )
