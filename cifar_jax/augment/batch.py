"""Augmentation on the device: pure functions (key, images) -> images, for use under jit.

Every draw has the shape of the whole batch, and every operation treats each image by itself. So
results do not depend on how a batch is divided among devices, and devices exchange nothing. Images
are [batch, height, width, channels], uint8 until `normalize`; functions keep their shape and dtype.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike

from cifar_jax.augment import auto as auto_augment
from cifar_jax.augment import image_ops
from cifar_jax.errors import UserError


def random_flip(key: jax.Array, images: jax.Array) -> jax.Array:
    """Mirrors each image [batch, h, w, c] left to right with a probability of one half."""
    flipped = jax.random.bernoulli(key, shape=images.shape[:1])
    return jnp.where(flipped[:, None, None, None], images[:, :, ::-1], images)


def alternating_flip(
    key: jax.Array, images: jax.Array, indices: jax.Array, epoch: ArrayLike
) -> jax.Array:
    """Mirrors each image in every other epoch; a coin per image decides whether in the first.

    Jordan, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU", 2024: two epochs show both forms of
    every image once, whereas a new coin in each epoch shows half of the images the same way twice.

    Args:
      key: the run's PRNG key, the same in every epoch.
      images: [batch, h, w, c].
      indices: the images' places in the training set, int [batch].
      epoch: counted from 0.
    """
    # The train step folds its own number, which is below 2**31, into the same key.
    key = jax.random.fold_in(key, 2**32 - 1)
    coins = jax.vmap(lambda i: jax.random.bits(jax.random.fold_in(key, i)) & 1)(indices)
    flipped = (coins.astype(jnp.int32) + epoch) % 2 == 1
    return jnp.where(flipped[:, None, None, None], images[:, :, ::-1], images)


def random_crop(key: jax.Array, images: jax.Array, padding: int) -> jax.Array:
    """Pads each image by reflection and cuts a window of the old size at a random place.

    Args:
      key: a PRNG key.
      images: [batch, h, w, c].
      padding: pixels added on each side by reflection (the border pixel is not repeated); the
        window then has 2 * padding + 1 possible places along each axis.

    Raises:
      UserError: the padding is not smaller than the image.
    """
    batch, height, width, _ = images.shape
    if padding >= min(height, width):
        raise UserError(
            f"crop_padding={padding} must be below the image's side of {min(height, width)}"
        )
    offsets = jax.random.randint(key, (2, batch, 1), -padding, padding + 1)

    def reflect(offset, size):
        index = jnp.abs(offset + jnp.arange(size)[None])
        return jnp.minimum(index, 2 * (size - 1) - index)

    rows, columns = reflect(offsets[0], height), reflect(offsets[1], width)
    return jax.vmap(lambda image, r, c: image[r[:, None], c])(images, rows, columns)


def rectangle(centre: jax.Array, sides: Sequence[Any], height: int, width: int) -> jax.Array:
    """Returns a bool mask [height, width], true within a rectangle around `centre`.

    `centre` is (row, column), `sides` (height, width), both in pixels.
    """
    first = [middle - side // 2 for middle, side in zip(centre, sides, strict=True)]
    rows, columns = jnp.arange(height)[:, None] - first[0], jnp.arange(width)[None] - first[1]
    return (rows >= 0) & (rows < sides[0]) & (columns >= 0) & (columns < sides[1])


def cutout(
    key: jax.Array, images: jax.Array, size: int, fill: Sequence[int] | jax.Array
) -> jax.Array:
    """Covers a square of each image.

    The centre can be any pixel, so squares near the border are cut off there, as in DeVries and
    Taylor, "Improved regularization of convolutional neural networks with cutout", 2017.

    Args:
      key: a PRNG key.
      images: [batch, h, w, c] uint8.
      size: the square's side in pixels.
      fill: [c], 0 to 255, the square's value in each channel.
    """
    batch, height, width, _ = images.shape
    centres = jax.random.randint(key, (batch, 2), 0, jnp.array([[height, width]]))
    covered = jax.vmap(lambda centre: rectangle(centre, (size, size), height, width))(centres)
    fill = jnp.asarray(fill, images.dtype).reshape(1, 1, 1, -1)
    return jnp.where(covered[..., None], fill, images)


def color_jitter(
    key: jax.Array,
    images: jax.Array,
    brightness: float,
    contrast: float,
    saturation: float,
    hue: float,
) -> jax.Array:
    """Changes brightness, contrast, saturation and hue of each image, in this order.

    Args:
      key: a PRNG key.
      images: [batch, h, w, c] uint8; with c = 1 saturation and hue change nothing.
      brightness: the pixels are scaled by a factor uniform in [max(0, 1 - brightness),
        1 + brightness]; 0: off.
      contrast: their distance to the image's mean grey level is scaled by a factor uniform in
        [max(0, 1 - contrast), 1 + contrast]; 0: off.
      saturation: their distance to the greyscale image is scaled by a factor uniform in
        [max(0, 1 - saturation), 1 + saturation]; 0: off.
      hue: the hue is turned by an angle uniform in [-hue, hue], where 1 is the whole colour circle;
        0: off.
    """
    keys = jax.random.split(key, 4)
    operations = (image_ops.brightness, image_ops.contrast, image_ops.color)
    strengths = (brightness, contrast, saturation)
    for draw, operation, strength in zip(keys, operations, strengths, strict=False):
        if strength:
            low, high = max(0.0, 1 - strength), 1 + strength
            factors = jax.random.uniform(draw, images.shape[:1], minval=low, maxval=high)
            images = jax.vmap(operation)(images, factors)
    if hue:
        shifts = jax.random.uniform(keys[3], images.shape[:1], minval=-hue, maxval=hue)
        images = jax.vmap(image_ops.shift_hue)(images, shifts)
    return images


def apply(
    key: jax.Array, images: jax.Array, options: Any, fill: Sequence[int] | jax.Array
) -> jax.Array:
    """Applies the augmentations that `options` turns on; mixing images is left to `mixing`.

    The order is: flip, crop, RandAugment, TrivialAugment, colour jitter, cutout. Each has its own
    key, so turning one on does not change what the others draw.

    Args:
      key: a PRNG key.
      images: [batch, h, w, c] uint8.
      options: has the fields flip (bool), crop_padding (pixels), cutout (pixels), brightness,
        contrast, saturation, hue, rand_augment_ops, rand_augment_magnitude and trivial_augment
        (bool); 0 or False turns one off. They are read while tracing.
      fill: [c], 0 to 255, the value of covered or empty pixels: the data set's mean.

    Raises:
      UserError: a value does not fit the images, or the magnitude is out of its range.
    """
    keys = jax.random.split(key, 6)
    if options.flip:
        images = random_flip(keys[0], images)
    if options.crop_padding:
        images = random_crop(keys[1], images, options.crop_padding)
    if options.rand_augment_ops:
        num_ops, magnitude = options.rand_augment_ops, options.rand_augment_magnitude
        images = auto_augment.rand_augment(keys[2], images, num_ops, magnitude, fill)
    if options.trivial_augment:
        images = auto_augment.trivial_augment(keys[3], images, fill)
    jitter = (options.brightness, options.contrast, options.saturation, options.hue)
    images = color_jitter(keys[4], images, *jitter)
    if options.cutout:
        images = cutout(keys[5], images, options.cutout, fill)
    return images


def check_shape(options: Any, image_shape: Sequence[int]) -> None:
    """Raises UserError if the augmentations do not take images of a shape; computes nothing.

    Args:
      options: as for `apply`.
      image_shape: (height, width, channels).
    """

    def apply_once(images: jax.Array) -> jax.Array:
        # The key is made here, so that no device is used, which would start JAX.
        return apply(jax.random.key(0), images, options, (0,) * image_shape[-1])

    jax.eval_shape(apply_once, jax.ShapeDtypeStruct((1, *image_shape), "uint8"))


def normalize(
    images: jax.Array, mean: Sequence[float], std: Sequence[float], dtype: DTypeLike
) -> jax.Array:
    """Returns (images / 255 - mean) / std, computed in float32.

    Args:
      images: [batch, h, w, c] uint8.
      mean: of each channel, in units of pixel / 255.
      std: of each channel, in units of pixel / 255.
      dtype: of the result.
    """
    centre, spread = (np.reshape(values, (1, 1, 1, -1)) for values in (mean, std))
    scale, offset = np.float32(1 / (255 * spread)), np.float32(-centre / spread)
    return (images.astype(jnp.float32) * scale + offset).astype(dtype)
