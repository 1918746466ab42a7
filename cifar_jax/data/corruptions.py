"""Corrupts images as photographs are: the fifteen corruptions of CIFAR-10-C at five strengths.

Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and
Perturbations", 2019, with their parameters for images of 32 x 32 pixels. Their five photographs of
frost are replaced by random textures of the same mean colours and deviations.
"""

import io
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from cifar_jax.data import distortions
from cifar_jax.data.distortions import Random
from cifar_jax.errors import UserError

STRENGTHS = (1, 2, 3, 4, 5)
# Images that are corrupted at one time: the images of a chunk share a generator.
_CHUNK = 1000


def corrupt_images(images: np.ndarray, name: str, strength: int, seed: int = 0) -> np.ndarray:
    """Returns corrupted images, uint8 of the same shape; a function of the arguments alone.

    Args:
      images: uint8 [images, height, width, channels], of 1 or 3 channels.
      name: one of `CORRUPTIONS`, the names of TFDS's set cifar10_corrupted.
      strength: 1 to 5.
      seed: a non-negative integer.

    Raises:
      UserError: the images have another number of channels.
    """
    if images.shape[3] not in (1, 3):
        raise UserError(f"images of {images.shape[3]} channels cannot be corrupted, only 1 or 3")
    corrupt, *parameters = CORRUPTIONS[name]
    parts = []
    for first in range(0, len(images), _CHUNK):
        random = np.random.default_rng([seed, zlib.crc32(name.encode()), strength, first])
        chunk = images[first : first + _CHUNK]
        if corrupt not in (_pixelate, _compress):
            chunk = chunk.astype(np.float32) / 255
        out = corrupt(random, chunk, *np.atleast_1d(parameters[strength - 1]))
        if out.dtype != np.uint8:
            out = (np.clip(out, 0, 1) * 255).astype(np.uint8)
        parts.append(out)
    return np.concatenate(parts)


def _gaussian_noise(random: Random, x: np.ndarray, scale: float) -> np.ndarray:
    return x + random.normal(scale=scale, size=x.shape)


def _shot_noise(random: Random, x: np.ndarray, photons: float) -> np.ndarray:
    return random.poisson(x * photons) / photons


def _impulse_noise(random: Random, x: np.ndarray, share: float) -> np.ndarray:
    salt = random.random(x.shape) < 0.5
    return np.where(random.random(x.shape) < share, salt, x)


def _motion_blur(random: Random, x: np.ndarray, radius: float, sigma: float) -> np.ndarray:
    return distortions.blur_along(x, radius, sigma, random.uniform(-45, 45, len(x)))


def _snow(random: Random, x: np.ndarray, *parameters: float) -> np.ndarray:
    mean, scale, factor, least, radius, sigma, share = parameters
    layer = distortions.zoom(
        random.normal(mean, scale, (*x.shape[:3], 1)).astype(np.float32), factor
    )
    layer = np.clip(np.where(layer < least, 0, layer), 0, 1)
    layer = distortions.blur_along(layer, radius, sigma, random.uniform(-135, -45, len(x)))
    grey = x
    if x.shape[3] == 3:
        grey = (x * np.array([0.299, 0.587, 0.114], x.dtype)).sum(3, keepdims=True)
    x = share * x + (1 - share) * np.maximum(x, 1.5 * grey + 0.5)
    return x + layer + layer[:, ::-1, ::-1]


def _fog(random: Random, x: np.ndarray, amount: float, decay: float) -> np.ndarray:
    most = x.max((1, 2, 3), keepdims=True)
    return (
        (x + amount * distortions.draw_clouds(random, x.shape[:3], decay)[..., None])
        * most
        / (most + amount)
    )


# The mean red, green and blue of each photograph of frost, and the deviation within a window.
_FROST = np.array(
    [
        (77, 148, 165, 15),
        (198, 203, 212, 16),
        (198, 203, 212, 16),
        (142, 157, 170, 18),
        (103, 114, 126, 28),
    ]
)


def _frost(random: Random, x: np.ndarray, share: float, amount: float) -> np.ndarray:
    texture = distortions.draw_clouds(random, x.shape[:3], 1.4)[..., None]
    texture = texture - texture.mean((1, 2), keepdims=True)
    texture /= texture.std((1, 2), keepdims=True)
    chosen = _FROST[random.integers(len(_FROST), size=len(x))][:, None, None]
    frost = np.clip(chosen[..., :3] + chosen[..., 3:] * texture, 0, 255) / 255
    return share * x + amount * (frost if x.shape[3] == 3 else frost.mean(3, keepdims=True))


def _brighten(random: Random, x: np.ndarray, amount: float) -> np.ndarray:
    """Raises the largest of the channels; the hue and the saturation stay."""
    value = x.max(3, keepdims=True)
    new = np.minimum(value + amount, 1)
    return np.where(value > 0, x * new / np.maximum(value, 1e-9), new)


def _reduce_contrast(random: Random, x: np.ndarray, factor: float) -> np.ndarray:
    mean = x.mean((1, 2), keepdims=True)
    return (x - mean) * factor + mean


def _by_pillow(x: np.ndarray, change: Callable[[Image.Image], Image.Image]) -> np.ndarray:
    plain = x[..., 0] if x.shape[3] == 1 else x
    return np.stack([np.asarray(change(Image.fromarray(one))) for one in plain]).reshape(x.shape)


def _pixelate(random: Random, x: np.ndarray, factor: float) -> np.ndarray:
    size = x.shape[2], x.shape[1]
    small = int(size[0] * factor), int(size[1] * factor)
    box = Image.Resampling.BOX
    return _by_pillow(x, lambda image: image.resize(small, box).resize(size, box))


def _compress(random: Random, x: np.ndarray, quality: float) -> np.ndarray:
    def change(image: Image.Image) -> Image.Image:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=int(quality))
        return Image.open(file)

    return _by_pillow(x, change)


# Name -> the function and its parameters at the five strengths. The functions take the generator,
# images as float32 from 0 to 1 (the last two: uint8) and the parameters.
CORRUPTIONS: dict[str, tuple[Any, ...]] = {
    "gaussian_noise": (_gaussian_noise, 0.04, 0.06, 0.08, 0.09, 0.10),
    "shot_noise": (_shot_noise, 500, 250, 100, 75, 50),
    "impulse_noise": (_impulse_noise, 0.01, 0.02, 0.03, 0.05, 0.07),
    "defocus_blur": (distortions.defocus, (0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
    "frosted_glass_blur": (
        distortions.blur_through_glass,
        (0.05, 1, 1),
        (0.25, 1, 1),
        (0.4, 1, 1),
        (0.25, 1, 2),
        (0.4, 1, 2),
    ),
    "motion_blur": (_motion_blur, (6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
    "zoom_blur": (distortions.blur_by_zoom, 1.06, 1.11, 1.16, 1.21, 1.26),
    "snow": (
        _snow,
        (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
        (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
        (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
        (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
        (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
    ),
    "frost": (_frost, (1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)),
    "fog": (_fog, (0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),
    "brightness": (_brighten, 0.05, 0.1, 0.15, 0.2, 0.3),
    "contrast": (_reduce_contrast, 0.75, 0.5, 0.4, 0.3, 0.15),
    "elastic": (
        distortions.bend,
        (0, 0, 0.08 * 32),
        (0.05 * 32, 0.2 * 32, 0.07 * 32),
        (0.08 * 32, 0.06 * 32, 0.06 * 32),
        (0.1 * 32, 0.04 * 32, 0.05 * 32),
        (0.1 * 32, 0.03 * 32, 0.03 * 32),
    ),
    "pixelate": (_pixelate, 0.95, 0.9, 0.85, 0.75, 0.65),
    "jpeg_compression": (_compress, 80, 65, 58, 50, 40),
}
