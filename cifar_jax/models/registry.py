"""The registry of models: one dictionary from names to module classes.

A module is called as `model.apply(variables, images, train=bool)` with float images
[batch, height, width, channels] and returns float32 logits [batch, num_classes]. Its variables are
in the collections "params" and "batch_stats"; in training it draws from the stream "dropout". The
last layer of every model is called "head".
"""

import bisect
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from ml_collections import ConfigDict

from cifar_jax.config import custom
from cifar_jax.config.fields import unknown
from cifar_jax.errors import UserError
from cifar_jax.models import cnn, mlp, own, resnet, speedrun

MODELS: dict[str, type[nn.Module]] = {
    "mlp": mlp.MLP,
    "simple_cnn": cnn.SimpleCNN,
    "bn_cnn": cnn.BNCNN,
    "vgg_bn": cnn.VGGBN,
    "lenet": cnn.LeNet,
    "resnet": resnet.ResNet,
    "wide_resnet": resnet.WideResNet,
    "speedrun": speedrun.Speedrun,
}
# The largest side of images that is looked at for the smallest one that a model takes.
_MOST_PIXELS = 512
# Fields of a module that are not options: arguments of `create`, and Flax's own.
_NOT_OPTIONS = ("num_classes", "dtype", "parent", "name")


def create(name: str, num_classes: int, dtype: Any = jnp.float32, **options: Any) -> nn.Module:
    """Builds the model called `name`.

    Args:
      name: a key of `MODELS`, or a class of the user's own, as FILE.py:CLASS.
      num_classes: the number of logits.
      dtype: of the computation; parameters and logits are always float32.
      **options: fields of the model's class, such as `dropout_rate`; lists become tuples.

    Returns:
      An unbound module.

    Raises:
      UserError: the name or an option is unknown, or an option has a wrong type or value.
    """
    defaults = default_options(name)
    for option, value in options.items():
        default = find_default(name, option)
        if isinstance(value, list):
            options[option] = tuple(value)
        check = own.check_option if custom.is_reference(name) else _check
        check(f"model {name}: {option}", options[option], default)
    for option in defaults.keys() - options.keys():
        if defaults[option] is dataclasses.MISSING:
            raise UserError(f"model {name} needs the option {option!r}: set model.{option}")
    return find_class(name)(num_classes=num_classes, dtype=dtype, **options)


def find_class(name: str) -> type[nn.Module]:
    """Returns the class of a model: one of `MODELS`, or the user's own, named as FILE.py:CLASS.

    Raises:
      UserError: there is none, or the user's own is not a model of the kind that is trained here.
    """
    if custom.is_reference(name):
        return own.load_class(name)
    if name not in MODELS:
        words = f"unknown model {unknown(name, MODELS)}"
        own_way = "" if words.endswith("?") else "; a class of your own is named as FILE.py:CLASS"
        raise UserError(words + own_way)
    return MODELS[name]


def create_model(config: ConfigDict, num_classes: int) -> nn.Module:
    """Returns the model of a config; a ResNet's stem fits `data.image_size` if it is set."""
    options = config.model.to_dict()
    size = config.data.image_size
    if size and config.model.name in ("resnet", "wide_resnet"):
        options.setdefault("stem_stride", resnet.choose_stem_stride(size))
    return create(options.pop("name"), num_classes, jnp.dtype(config.dtype).type, **options)


def make_variables(
    model: nn.Module, image_shape: Sequence[int]
) -> Callable[[jax.Array], dict[str, Any]]:
    """Returns the pure function from a key to a model's initial variables.

    Args:
      model: the network.
      image_shape: (height, width, channels).

    The function raises UserError if the images are too small for the model.
    """

    def init(key: jax.Array) -> dict[str, Any]:
        variables = _init(model, image_shape, key)
        if variables is not None:
            return variables
        size = " x ".join(map(str, image_shape[:2]))
        least = _find_least_side(model, image_shape[2])
        larger = f"images of at least {least} x {least} pixels" if least else "another size"
        raise UserError(
            f"{type(model).__name__} reduces images of {size} pixels to nothing: it takes {larger}"
            "; choose another model.name or larger images"
        )

    return init


def _init(model: nn.Module, image_shape: Sequence[int], key: jax.Array) -> dict[str, Any] | None:
    """Returns a model's initial variables; None if nothing is left of the images in it."""
    try:
        variables = dict(model.init(key, jnp.zeros((1, *image_shape)), train=False))
    except ZeroDivisionError:  # of older JAX, for a kernel without inputs
        return None
    return variables if all(leaf.size for leaf in jax.tree.leaves(variables)) else None


def _find_least_side(model: nn.Module, channels: int) -> int | None:
    """Returns the side in pixels of the smallest square images that a model takes, if any."""

    def takes(side: int) -> bool:
        init = functools.partial(_init, model, (side, side, channels))
        return jax.eval_shape(init, jax.random.key(0)) is not None

    sides = range(1, _MOST_PIXELS + 1)
    place = bisect.bisect_left(sides, True, key=takes)
    return sides[place] if place < len(sides) else None


def default_options(name: str) -> dict[str, Any]:
    """Returns the options of the model called `name` with their default values."""
    fields = dataclasses.fields(find_class(name))
    return {
        field.name: field.default
        if field.default_factory is dataclasses.MISSING
        else field.default_factory()
        for field in fields
        if field.name not in _NOT_OPTIONS
    }


def find_default(name: str, option: str) -> Any:
    """Returns the default of an option; raises UserError if there is no such model or option."""
    defaults = default_options(name)
    if option not in defaults:
        known = ", ".join(defaults) or "none"
        raise UserError(f"model {name} has no option {option!r}: it has {known}")
    return defaults[option]


def _check(what: str, value: Any, default: Any) -> None:
    """Raises UserError unless `value` has the default's type and is in the range for that type."""
    match default:
        case float():
            if not _is_number(value, float | int) or not 0 <= value < 1:
                hint = "; 0 turns it off" if value is None else ""
                raise UserError(f"{what} must be a number in [0, 1), not {value!r}{hint}")
        case int():
            if not _is_number(value, int) or value < 1:
                raise UserError(f"{what} must be a positive integer, not {value!r}")
        case str():
            if not isinstance(value, str):
                raise UserError(f"{what} must be a string, not {value!r}")
        case tuple():
            sizes = value if isinstance(value, tuple) else ("no tuple",)
            if not all(_is_number(size, int) and size > 0 for size in sizes):
                raise UserError(f"{what} must be a tuple of positive integers, not {value!r}")


def _is_number(value: Any, kind: Any) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)
