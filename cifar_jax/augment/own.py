"""An augmentation of the user's own, which a config names: `augment.custom`."""

from typing import Any

import jax

from cifar_jax.config import custom
from cifar_jax.errors import UserError
from cifar_jax.text import first_line

_FIELD = "augment.custom"


def augment_by(reference: str, key: jax.Array, images: jax.Array) -> jax.Array:
    """Returns what a function of the user's makes of a batch.

    Args:
      reference: names a function (key, images) -> images, as described in `config.custom`.
      key: the key of the step's augmentations; the function gets one of its own.
      images: uint8 [batch, height, width, channels].

    Raises:
      UserError: it cannot be loaded, or returns another shape or type.
    """
    function = custom.load_object(_FIELD, reference)
    # Not one of the keys that the other augmentations get, by jax.random.split.
    changed = function(jax.random.fold_in(key, 2**32 - 1), images)
    before, after = (
        (getattr(x, "dtype", type(x)), getattr(x, "shape", ())) for x in (images, changed)
    )
    if before != after:
        raise UserError(
            f"{_FIELD} is {reference!r}, which returns {after[0]} {list(after[1])} for images "
            f"{before[0]} {list(before[1])}: it must keep shape and type"
        )
    return changed


def find_custom_problems(reference: Any, image_shape: tuple[int, ...]) -> list[str]:
    """Returns what is wrong with `augment.custom`; nothing is computed.

    Args:
      reference: names a function, as for `augment_by`.
      image_shape: (height, width, channels) of the images that it is tried on.
    """
    if not reference:
        return []
    if not custom.is_reference(reference):
        return [f"{_FIELD} is {reference!r}: name a function as FILE.py:NAME"]
    images = jax.ShapeDtypeStruct((2, *image_shape), "uint8")
    try:
        if not callable(custom.load_object(_FIELD, reference)):
            return [f"{_FIELD} is {reference!r}, which is not a function (key, images) -> images"]
        # The key is made here, so that no device is used, which would start JAX.
        jax.eval_shape(lambda x: augment_by(reference, jax.random.key(0), x), images)
    except UserError as error:
        return [str(error)]
    except Exception as error:
        return [
            f"{_FIELD} is {reference!r}, which fails on images {list(images.shape)}: "
            f"{first_line(error)}"
        ]
    return []
