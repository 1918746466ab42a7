"""Operations on one image, on the device: the parts of colour jitter and RandAugment.

An image is [height, width, channels] uint8; three channels are red, green and blue. The results are
Pillow's, except for Pillow's rounding errors of one grey level and for the hue, which Pillow
quantises.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike


def greyscale(image: jax.Array) -> jax.Array:
    """Returns the luma (ITU-R 601-2) of [h, w, c] uint8 as [h, w, 1] int32 in 0..255."""
    image = image.astype(jnp.int32)
    if image.shape[-1] != 3:
        return image
    weights = jnp.array([[[19595, 38470, 7471]]])
    return (jnp.sum(image * weights, axis=-1, keepdims=True) + 0x8000) >> 16


def _extrapolate(degenerate: jax.Array, image: jax.Array, factor: jax.Array) -> jax.Array:
    """Goes from `degenerate` (factor 0) to `image` (factor 1) and beyond; factors above 30 are 30.

    In integers, so that every device gives the same result. The 128 makes up for the rounding of
    the factor: where the exact result is an integer, the result is that integer.
    """
    start = degenerate.astype(jnp.int32)
    scale = jnp.round(jnp.minimum(factor, 30) * 2**18).astype(jnp.int32)
    mixed = (start << 18) + scale * (image.astype(jnp.int32) - start) + 128 >> 18
    return jnp.clip(mixed, 0, 255).astype(jnp.uint8)


def brightness(image: jax.Array, factor: jax.Array) -> jax.Array:
    """Scales an image [h, w, c] uint8: factor 0 is black, 1 the image, 2 twice as bright."""
    return _extrapolate(jnp.zeros_like(image), image, factor)


def contrast(image: jax.Array, factor: jax.Array) -> jax.Array:
    """Scales the contrast of an image [h, w, c] uint8; factor 0 is its mean grey level."""
    grey = greyscale(image)
    mean = (2 * jnp.sum(grey) + grey.size) // (2 * grey.size)
    return _extrapolate(jnp.full_like(image, mean), image, factor)


def color(image: jax.Array, factor: jax.Array) -> jax.Array:
    """Scales the saturation of an image [h, w, c] uint8; factor 0 is the greyscale image."""
    if image.shape[-1] != 3:
        return image
    return _extrapolate(greyscale(image), image, factor)


def sharpness(image: jax.Array, factor: jax.Array) -> jax.Array:
    """Scales the detail of an image [h, w, c] uint8; factor 0 smooths all but the border."""
    pixels = image.astype(jnp.int32)
    rows = pixels[:-2] + pixels[1:-1] + pixels[2:]
    total = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:] + 4 * pixels[1:-1, 1:-1]
    smooth = lax.dynamic_update_slice(pixels, (2 * total + 13) // 26, (1, 1, 0))
    return _extrapolate(smooth, image, factor)


def shift_hue(image: jax.Array, shift: ArrayLike) -> jax.Array:
    """Turns the hue of an image [h, w, 3] uint8 by a fraction `shift` of the colour circle."""
    if image.shape[-1] != 3:
        return image
    pixels = image.astype(jnp.float32)
    red, green, blue = pixels[..., 0], pixels[..., 1], pixels[..., 2]
    value = pixels.max(axis=-1)
    chroma = value - pixels.min(axis=-1)
    divisor = jnp.maximum(chroma, 1)
    sextant = jnp.where(
        value == red,
        (green - blue) / divisor,
        jnp.where(value == green, 2 + (blue - red) / divisor, 4 + (red - green) / divisor),
    )
    sixths = (sextant + 6 * shift)[..., None] + jnp.array([[[5.0, 3.0, 1.0]]])
    distance = sixths - 6 * jnp.floor(sixths / 6)
    loss = jnp.clip(jnp.minimum(distance, 4 - distance), 0, 1)
    return jnp.round(value[..., None] - chroma[..., None] * loss).astype(jnp.uint8)


def posterize(image: jax.Array, bits: jax.Array) -> jax.Array:
    """Keeps the upper `bits` (0 to 8) of each value of an image [h, w, c] uint8."""
    return image & (0xFF << (8 - bits.astype(jnp.int32))).astype(jnp.uint8)


def solarize(image: jax.Array, threshold: jax.Array) -> jax.Array:
    """Inverts the values of an image [h, w, c] uint8 from `threshold` (0 to 256) upwards."""
    return jnp.where(image.astype(jnp.float32) < threshold, image, 255 - image)


def autocontrast(image: jax.Array) -> jax.Array:
    """Stretches each channel of an image [h, w, c] uint8 so that it spans 0 to 255."""
    pixels = image.astype(jnp.int32)
    low, high = (edge(pixels, axis=(0, 1), keepdims=True) for edge in (jnp.min, jnp.max))
    stretched = (pixels - low) * 255 // jnp.maximum(high - low, 1)
    return jnp.where(high > low, stretched, pixels).astype(jnp.uint8)


def equalize(image: jax.Array) -> jax.Array:
    """Makes the grey levels of each channel of an image [h, w, c] uint8 equally frequent."""

    def equalize_channel(channel: jax.Array) -> jax.Array:
        histogram = jnp.zeros(256, jnp.int32).at[channel.reshape(-1)].add(1)
        step = (channel.size - histogram[channel.max()]) // 255
        below = jnp.cumsum(histogram) - histogram
        table = jnp.clip((below + step // 2) // jnp.maximum(step, 1), 0, 255)
        return jnp.where(step > 0, table.astype(jnp.uint8)[channel], channel)

    return jax.vmap(equalize_channel, in_axes=-1, out_axes=-1)(image)


def warp(image: jax.Array, matrix: jax.Array, fill: jax.Array) -> jax.Array:
    """Moves the pixels of an image by an affine map, taking the nearest pixel.

    The arithmetic is in integers, so every device picks the same pixel.

    Args:
      image: [h, w, c] uint8, at most 2048 pixels a side.
      matrix: [2, 3] int32 in units of 1/65536 pixel; multiplied by (column, row, 1) of an output
        pixel, it gives the column and the row of the input pixel that is shown there.
      fill: [c] uint8, shown where the input pixel would be outside the image.
    """
    height, width, _ = image.shape
    rows, columns = jnp.arange(height)[:, None], jnp.arange(width)[None, :]
    x, y = (a * columns + b * rows + c >> 16 for a, b, c in matrix)
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    moved = image[jnp.clip(y, 0, height - 1), jnp.clip(x, 0, width - 1)]
    return jnp.where(inside[..., None], moved, fill[None, None])
