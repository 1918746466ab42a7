"""RandAugment and TrivialAugment: random image operations, on the device and under jit.

Every image of a batch draws its own operation. All of them are computed and one is kept, except for
the geometric ones: they are one affine warp, whose matrices are tabulated while tracing.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from cifar_jax.augment import image_ops
from cifar_jax.errors import UserError

NUM_BINS = 31
OPERATIONS = (
    "identity",
    "autocontrast",
    "equalize",
    "posterize",
    "solarize",
    "brightness",
    "color",
    "contrast",
    "sharpness",
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
    "rotate",
)


def affine_matrix(operation: str, level: float, height: int, width: int) -> np.ndarray:
    """Returns an operation's matrix, int32 [2, 3], for `image_ops.warp`.

    Operations that change only colours get the identity.

    Args:
      operation: a name in OPERATIONS.
      level: for shear the shift per pixel, for translate the number of pixels (its fraction is
        dropped), for rotate the degrees counter-clockwise about the centre; its sign is the
        direction.
      height: of the image, in pixels.
      width: of the image, in pixels.
    """
    matrix = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    if operation == "rotate":
        cos, sin = np.cos(np.deg2rad(level)), np.sin(np.deg2rad(level))
        matrix[:, :2] = [[cos, -sin], [sin, cos]]
        centre = np.array([width / 2, height / 2])
        matrix[:, 2] = centre - matrix[:, :2] @ centre
    elif operation.startswith(("shear", "translate")):
        row, column = ("x", "y").index(operation[-1]), 2
        if operation.startswith("shear"):
            column, value = 1 - row, level
        else:
            value = np.trunc(level)
        matrix[row, column] = value
    # A pixel's centre is half a unit from its corner; its source is the pixel around that point.
    matrix[:, 2] += matrix[:, :2].sum(axis=1) / 2
    return np.floor(matrix * 65536 + 0.5).astype(np.int32)


@functools.cache
def _tables(height: int, width: int, wide: bool) -> tuple[np.ndarray, np.ndarray]:
    """Returns levels [operations, bins, 2] float32 and matrices [operations, bins, 2, 2, 3] int32.

    The axis of length 2 is the direction: forwards, backwards. A level is the operation's argument:
    a factor around 1 for the four enhancing ones, a number of bits, or a threshold.
    """
    enhance, shear, rotate, bits = (0.99, 0.99, 135.0, 6) if wide else (0.9, 0.3, 30.0, 4)
    shift = (32.0, 32.0) if wide else (width * 150 / 331, height * 150 / 331)
    largest = dict.fromkeys(("brightness", "color", "contrast", "sharpness"), enhance)
    largest |= {"shear_x": shear, "shear_y": shear, "rotate": rotate}
    largest |= {"translate_x": shift[0], "translate_y": shift[1]}
    fractions = np.linspace(0, 1, NUM_BINS)
    levels = np.zeros((len(OPERATIONS), NUM_BINS, 2), np.float32)
    matrices = np.zeros((len(OPERATIONS), NUM_BINS, 2, 2, 3), np.int32)
    for i, name in enumerate(OPERATIONS):
        strengths = largest.get(name, 0.0) * np.stack([fractions, -fractions], axis=-1)
        for place in np.ndindex(NUM_BINS, 2):
            matrices[i][place] = affine_matrix(name, float(strengths[place]), height, width)
        if name == "posterize":
            levels[i] = 8 - np.round(bits * fractions)[:, None]
        elif name == "solarize":
            levels[i] = 256 * (1 - fractions)[:, None]
        else:
            levels[i] = 1 + strengths
    return levels, matrices


def _apply_operations(
    images: jax.Array,
    operations: jax.Array,
    bins: jax.Array,
    signs: jax.Array,
    wide: bool,
    fill: Sequence[int] | jax.Array,
) -> jax.Array:
    """Applies to each image its own operation; operations, bins and signs are int32 [batch]."""
    _, height, width, _ = images.shape
    fill = jnp.asarray(fill, images.dtype)
    levels, matrices = _tables(height, width, wide)
    # Geometric operations keep the colours and the others have the identity matrix, so every image
    # passes through one branch and then one warp.
    pixelwise = (
        lambda image, level: image,
        lambda image, level: image_ops.autocontrast(image),
        lambda image, level: image_ops.equalize(image),
        image_ops.posterize,
        image_ops.solarize,
        image_ops.brightness,
        image_ops.color,
        image_ops.contrast,
        image_ops.sharpness,
    )

    def apply_one(image, operation, level, matrix):
        branch = jnp.where(operation < len(pixelwise), operation, 0)
        return image_ops.warp(lax.switch(branch, pixelwise, image, level), matrix, fill)

    chosen = (operations, bins, signs)
    level, matrix = jnp.asarray(levels)[chosen], jnp.asarray(matrices)[chosen]
    return jax.vmap(apply_one)(images, operations, level, matrix)


def rand_augment(
    key: jax.Array, images: jax.Array, num_ops: int, magnitude: int, fill: Sequence[int] | jax.Array
) -> jax.Array:
    """Applies `num_ops` operations of one magnitude to each image, drawn uniformly for each image.

    Cubuk, Zoph, Shlens and Le, "RandAugment: Practical automated data augmentation with a reduced
    search space", 2020.

    Args:
      key: a PRNG key.
      images: [batch, height, width, channels] uint8.
      num_ops: the number of operations, drawn with replacement and applied one after another.
      magnitude: from 0 (hardly any change) to 30 (the strongest: rotation by 30 degrees, and so
        on).
      fill: [channels], 0 to 255, the value of pixels that a moved image leaves empty.

    Returns:
      The images, in the same shape and dtype.

    Raises:
      UserError: the magnitude is not between 0 and 30.
    """
    if not 0 <= magnitude < NUM_BINS:
        raise UserError(f"RandAugment's magnitude must be between 0 and 30, not {magnitude}")

    def step(i, images):
        draws = jax.random.split(jax.random.fold_in(key, i))
        operations = jax.random.randint(draws[0], images.shape[:1], 0, len(OPERATIONS))
        signs = jax.random.randint(draws[1], images.shape[:1], 0, 2)
        bins = jnp.full_like(operations, magnitude)
        return _apply_operations(images, operations, bins, signs, wide=False, fill=fill)

    return lax.fori_loop(0, num_ops, step, images)


def trivial_augment(
    key: jax.Array, images: jax.Array, fill: Sequence[int] | jax.Array
) -> jax.Array:
    """Applies one operation of a random magnitude to each image, in the paper's wide ranges.

    Mueller and Hutter, "TrivialAugment: Tuning-free yet state-of-the-art data augmentation", 2021.

    Args:
      key: a PRNG key.
      images: [batch, height, width, channels] uint8.
      fill: [channels], 0 to 255, the value of pixels that a moved image leaves empty.

    Returns:
      The images, in the same shape and dtype.
    """
    sizes = (len(OPERATIONS), NUM_BINS, 2)
    keys = jax.random.split(key, len(sizes))
    draws = (
        jax.random.randint(k, images.shape[:1], 0, n) for k, n in zip(keys, sizes, strict=True)
    )
    operations, bins, signs = draws
    return _apply_operations(images, operations, bins, signs, wide=True, fill=fill)
