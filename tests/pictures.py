"""Images and options for the tests of augmentation, and what Pillow makes of images."""

import functools
from types import SimpleNamespace

import jax
import numpy as np
from PIL import Image, ImageEnhance

FILL = (125, 123, 114)
ENHANCERS = {
    "brightness": ImageEnhance.Brightness,
    "contrast": ImageEnhance.Contrast,
    "color": ImageEnhance.Color,
    "sharpness": ImageEnhance.Sharpness,
}
OFF = {
    **dict.fromkeys(("flip", "trivial_augment"), False),
    **dict.fromkeys(("crop_padding", "cutout", "rand_augment_ops"), 0),
    **dict.fromkeys(("brightness", "contrast", "saturation", "hue"), 0.0),
    **dict.fromkeys(("mixup_alpha", "cutmix_alpha"), 0.0),
    "rand_augment_magnitude": 9,
}


def options(**chosen):
    return SimpleNamespace(**OFF | chosen)


def noise(batch, height=32, width=32, channels=3, seed=0):
    shape = (batch, height, width, channels)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def sample_images(channels=3):
    """Noise, a ramp, dark, bright and flat pictures, and one with few levels: [6, 24, 32, c]."""
    rough = noise(1, 24, 32, channels)[0]
    ramp = np.arange(24 * 32 * channels).reshape(24, 32, channels) % 241
    flat = np.full_like(rough, 77)
    pictures = [rough, ramp, rough // 3 + 5, 200 + rough // 5, flat, rough // 64 * 50]
    return np.stack(pictures).astype(np.uint8)


def to_pillow(image):
    return Image.fromarray(image if image.shape[-1] == 3 else image[..., 0])


def with_pillow(operation, images, *arguments):
    """Maps a function (Pillow image, argument...) -> Pillow image over a batch."""
    rows = zip(images, *arguments, strict=True)
    made = [np.asarray(operation(to_pillow(image), *rest)) for image, *rest in rows]
    return np.stack(made).reshape(images.shape)


@functools.cache
def on_batch(operation):
    return jax.jit(jax.vmap(operation))


def pillow_warp(image, name, level):
    if name == "rotate":
        return image.rotate(level, fillcolor=FILL)
    amount = int(level) if name.startswith("translate") else level
    matrix = {
        "shear_x": (1, amount, 0, 0, 1, 0),
        "shear_y": (1, 0, 0, amount, 1, 0),
        "translate_x": (1, 0, amount, 0, 1, 0),
        "translate_y": (1, 0, 0, 0, 1, amount),
    }[name]
    return image.transform(image.size, Image.Transform.AFFINE, matrix, fillcolor=FILL)
