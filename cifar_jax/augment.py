"""Augmentation on the device: (key, images) -> images, pure and under jit.

Every draw has the shape of the whole batch, and every operation but `mixup` and `cutmix` treats
each image alone: so results do not depend on how a batch is spread over devices, and nothing is
exchanged between them. Images are [batch, height, width, channels], uint8 until `normalize`, and
come out in the shape and dtype in which they went in.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike

from cifar_jax import auto_augment, image_ops
from cifar_jax.errors import UserError


def random_flip(key: jax.Array, images: jax.Array) -> jax.Array:
    """Mirrors each image [batch, h, w, c] left to right with a probability of one half."""
    flipped = jax.random.bernoulli(key, shape=images.shape[:1])
    return jnp.where(flipped[:, None, None, None], images[:, :, ::-1], images)


def random_crop(key: jax.Array, images: jax.Array, padding: int) -> jax.Array:
    """Cuts each image out of itself enlarged by reflection, at a random place.

    Args:
      key: a PRNG key.
      images: [batch, h, w, c].
      padding: pixels added on each side by reflection (the border pixel is not repeated); the
        window of the old size then has 2 * padding + 1 places on each axis.

    Raises:
      UserError: if the padding is not smaller than the image.
    """
    batch, height, width, _ = images.shape
    if padding >= min(height, width):
        raise UserError(
            f"crop_padding={padding} must be below the image's side of {min(height, width)}"
        )
    offsets = jax.random.randint(key, (2, batch, 1), -padding, padding + 1)

    def reflect(offset, size):
        index = jnp.abs(offset + jnp.arange(size))
        return jnp.minimum(index, 2 * (size - 1) - index)

    rows, columns = reflect(offsets[0], height), reflect(offsets[1], width)
    return jax.vmap(lambda image, r, c: image[r[:, None], c])(images, rows, columns)


def _rectangle(centre: jax.Array, sides: Sequence[Any], height: int, width: int) -> jax.Array:
    """Returns a mask [height, width], true in a rectangle about `centre` (row, column)."""
    first = [middle - side // 2 for middle, side in zip(centre, sides, strict=True)]
    rows, columns = jnp.arange(height)[:, None] - first[0], jnp.arange(width) - first[1]
    return (rows >= 0) & (rows < sides[0]) & (columns >= 0) & (columns < sides[1])


def cutout(
    key: jax.Array, images: jax.Array, size: int, fill: Sequence[int] | jax.Array
) -> jax.Array:
    """Covers a square of each image.

    The centre may be any pixel, so that squares near the border are cut off there, as in DeVries
    and Taylor, "Improved regularization of convolutional neural networks with cutout", 2017.

    Args:
      key: a PRNG key.
      images: [batch, h, w, c] uint8.
      size: the square's side in pixels.
      fill: the covering value of each channel, 0 to 255: [c].
    """
    batch, height, width, _ = images.shape
    centres = jax.random.randint(key, (batch, 2), 0, jnp.array([height, width]))
    covered = jax.vmap(lambda centre: _rectangle(centre, (size, size), height, width))(centres)
    return jnp.where(covered[..., None], jnp.asarray(fill, images.dtype), images)


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
      brightness: the factor is uniform in [max(0, 1 - brightness), 1 + brightness]; 0: off.
      contrast: likewise, about the image's mean grey level.
      saturation: likewise, about the image's greyscale picture.
      hue: the turn is uniform in [-hue, hue], where 1 is the whole colour circle; 0: off.
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
    """Applies the augmentations of single images that `options` turns on.

    In this order: flip, crop, RandAugment, TrivialAugment, colour jitter, cutout. Each has a key
    of its own: turning one on does not change what the others draw.

    Args:
      key: a PRNG key.
      images: [batch, h, w, c] uint8.
      options: has the fields flip (bool), crop_padding (pixels), cutout (pixels), brightness,
        contrast, saturation, hue, rand_augment_ops, rand_augment_magnitude and trivial_augment
        (bool); 0 or False turns one off. They are read while tracing.
      fill: [c], 0 to 255, the value of covered and of empty places: the data set's mean.

    Raises:
      UserError: if a value does not fit the images, or a magnitude its range.
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


def _draw_share(key: jax.Array, alpha: ArrayLike) -> jax.Array:
    """Draws from Beta(alpha, alpha); jax.random.beta takes twice as long to compile."""
    logs = jax.random.loggamma(key, alpha, (2,))
    return jax.nn.sigmoid(logs[0] - logs[1])


def _outside_rectangle(key: jax.Array, share: jax.Array, height: int, width: int) -> jax.Array:
    """Returns [h, w, 1] float32: 0 in a random rectangle of the area 1 - share, 1 around it."""
    scale = jnp.sqrt(1 - share)
    sides = [(scale * length).astype(jnp.int32) for length in (height, width)]
    centre = jax.random.randint(key, (2,), 0, jnp.array([height, width]))
    return jnp.where(_rectangle(centre, sides, height, width), 0.0, 1.0)[..., None]


def _blend(
    images: jax.Array, targets: jax.Array, weights: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Mixes a batch with its reverse; `weights`, a scalar or [h, w, 1], are the own share."""

    def mix_reversed(array, weight):
        mixed = weight * array.astype(jnp.float32) + (1 - weight) * array[::-1]
        return mixed.astype(array.dtype)

    return mix_reversed(images, weights), mix_reversed(targets, weights.mean())


def mixup(
    key: jax.Array, images: jax.Array, targets: jax.Array, alpha: float
) -> tuple[jax.Array, jax.Array]:
    """Averages each image and its target with those of another one.

    Zhang, Cisse, Dauphin and Lopez-Paz, "mixup: Beyond empirical risk minimization", 2018. As in
    the authors' experiments there is one weight for the whole batch. The partner is the image at
    the same place of the reversed batch: batches are shuffled, so this is a random pairing.

    Args:
      key: a PRNG key.
      images: [batch, h, w, c], floating.
      targets: [batch, classes], the probability of each class.
      alpha: above 0; the weight is drawn from Beta(alpha, alpha).

    Returns:
      Images and targets, as they came in shapes and dtypes.
    """
    return _blend(images, targets, _draw_share(key, alpha))


def cutmix(
    key: jax.Array, images: jax.Array, targets: jax.Array, alpha: float
) -> tuple[jax.Array, jax.Array]:
    """Pastes a rectangle of another image into each image, and mixes the targets by area.

    Yun et al., "CutMix: Regularization strategy to train strong classifiers with localizable
    features", 2019. As there, one rectangle for the whole batch: it has the image's proportions, a
    share of the area drawn from Beta(alpha, alpha), any pixel as its centre, and is cut off at the
    border; the targets' weights follow what is left of it. The rest is as in `mixup`.
    """
    share_key, place_key = jax.random.split(key)
    share = _draw_share(share_key, alpha)
    return _blend(images, targets, _outside_rectangle(place_key, share, *images.shape[1:3]))


def mix(
    key: jax.Array, images: jax.Array, targets: jax.Array, options: Any
) -> tuple[jax.Array, jax.Array]:
    """Applies `mixup` or `cutmix`; with both on, one of the two, drawn evenly at each call.

    `options` has the fields mixup_alpha and cutmix_alpha; 0 turns one off. They are read while
    tracing. The rest is as in `mixup`.
    """
    alphas = (options.mixup_alpha, options.cutmix_alpha)
    if not any(alphas):
        return images, targets
    if not all(alphas):
        function = mixup if alphas[0] else cutmix
        return function(key, images, targets, max(alphas))
    choice_key, share_key, place_key = jax.random.split(key, 3)
    averaged = jax.random.bernoulli(choice_key)
    share = _draw_share(share_key, jnp.where(averaged, *alphas))
    pasted = _outside_rectangle(place_key, share, *images.shape[1:3])
    return _blend(images, targets, jnp.where(averaged, share, pasted))


def normalize(
    images: jax.Array, mean: Sequence[float], std: Sequence[float], dtype: DTypeLike
) -> jax.Array:
    """Returns (images / 255 - mean) / std, computed in float32.

    Args:
      images: [batch, h, w, c] uint8.
      mean: of each channel, in units of pixel / 255.
      std: likewise.
      dtype: of the result.
    """
    scale = 1 / (255 * np.asarray(std))
    offset = -np.asarray(mean) / np.asarray(std)
    normalized = images.astype(jnp.float32) * jnp.float32(scale) + jnp.float32(offset)
    return normalized.astype(dtype)
