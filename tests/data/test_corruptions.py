"""The corruptions: fixed by their arguments, stronger by strength, and each checked by hand."""

from unittest import mock

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from cifar_jax.data import corruptions, distortions
from cifar_jax.errors import UserError

_RANDOM = np.random.default_rng(0)
# Smooth images, as photographs are: noise would hide what blurring does.
IMAGES = ndimage.gaussian_filter(_RANDOM.normal(size=(20, 32, 32, 3)), (0, 2, 2, 0))
IMAGES = np.clip(127 + 300 * IMAGES, 0, 255).astype(np.uint8)


def change(name, strength, images=IMAGES):
    found = corruptions.corrupt_images(images, name, strength).astype(float)
    return np.abs(found - images).mean()


@pytest.mark.parametrize("name", corruptions.CORRUPTIONS)
def test_corruptions_are_fixed_fit_grey_images_and_grow(name):
    for images in (IMAGES[:4], IMAGES[:4, ..., :1], IMAGES[:4, :28, :28, :1]):
        first, again = (corruptions.corrupt_images(images, name, 3) for _ in range(2))
        np.testing.assert_array_equal(first, again)
        assert (first.shape, first.dtype) == (images.shape, np.uint8)
        assert (first != images).any()
    # By design, the published strengths of the elastic transform shrink what moves all together.
    if name != "elastic":
        assert change(name, 5) > change(name, 1)


# The parameters of CIFAR-10-C at the five strengths, as its authors published them; for the blur by
# zoom the end of the range of factors, for the elastic transform shares of the side.
PUBLISHED = {
    "gaussian_noise": (0.04, 0.06, 0.08, 0.09, 0.1),
    "shot_noise": (500, 250, 100, 75, 50),
    "impulse_noise": (0.01, 0.02, 0.03, 0.05, 0.07),
    "defocus_blur": ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
    "frosted_glass_blur": ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
    "motion_blur": ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
    "zoom_blur": (1.06, 1.11, 1.16, 1.21, 1.26),
    "snow": (
        (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
        (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
        (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
        (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
        (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
    ),
    "frost": ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)),
    "fog": ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),
    "brightness": (0.05, 0.1, 0.15, 0.2, 0.3),
    "contrast": (0.75, 0.5, 0.4, 0.3, 0.15),
    "elastic": (
        (0, 0, 0.08),
        (0.05, 0.2, 0.07),
        (0.08, 0.06, 0.06),
        (0.1, 0.04, 0.05),
        (0.1, 0.03, 0.03),
    ),
    "pixelate": (0.95, 0.9, 0.85, 0.75, 0.65),
    "jpeg_compression": (80, 65, 58, 50, 40),
}


def test_the_parameters_are_the_published_ones():
    found = {name: entry[1:] for name, entry in corruptions.CORRUPTIONS.items()}
    assert found.keys() == PUBLISHED.keys()
    for name, expected in PUBLISHED.items():
        scale = 32 if name == "elastic" else 1
        assert np.array(found[name]) == pytest.approx(scale * np.array(expected)), name


@pytest.mark.parametrize("repeat", [True, False])
def test_images_are_mirrored_at_the_border_as_scipy_does(repeat):
    images = IMAGES[:3, :9, :7] / np.float32(255)
    y, across = np.random.default_rng(0).uniform(-20, 30, (2, 3, 9, 7))
    found = distortions._sample(images, y, across, repeat)
    mode = "reflect" if repeat else "mirror"
    for image, *places, one in zip(images, y, across, found, strict=True):
        for channel in range(3):
            expected = ndimage.map_coordinates(image[..., channel], places, order=1, mode=mode)
            np.testing.assert_allclose(one[..., channel], expected, atol=1e-6)


def test_the_elastic_transform_repeats_the_border_only_when_it_moves_single_pixels():
    kinds = []

    def note(x, y, across, repeat):
        kinds.append(repeat)
        return x

    with mock.patch.object(distortions, "_sample", note):
        corruptions.corrupt_images(IMAGES[:2], "elastic", 3)
    # OpenCV's BORDER_REFLECT_101 for the affine part, then SciPy's "reflect".
    assert kinds == [False, True]


def test_noise_has_the_published_deviation():
    grey = np.full((50, 32, 32, 3), 128, np.uint8)
    for strength, scale in enumerate((0.04, 0.06, 0.08, 0.09, 0.10), 1):
        found = corruptions.corrupt_images(grey, "gaussian_noise", strength)
        assert found.std() / 255 == pytest.approx(scale, rel=0.02)
    found = corruptions.corrupt_images(grey, "shot_noise", 5)
    assert found.std() / 255 == pytest.approx(np.sqrt(128 / 255 / 50), rel=0.02)
    found = corruptions.corrupt_images(grey, "impulse_noise", 4)
    assert (found != 128).mean() == pytest.approx(0.05, rel=0.05)
    assert (found == 255).mean() == pytest.approx(0.025, rel=0.1)


def test_contrast_brightness_and_pixels_by_hand():
    x = IMAGES / 255
    mean = x.mean(axis=(1, 2), keepdims=True)
    expected = np.clip(mean + 0.4 * (x - mean), 0, 1) * 255
    np.testing.assert_allclose(corruptions.corrupt_images(IMAGES, "contrast", 3), expected, atol=1)
    found = corruptions.corrupt_images(IMAGES, "brightness", 2) / 255
    np.testing.assert_allclose(found.max(axis=3), np.minimum(x.max(axis=3) + 0.1, 1), atol=1 / 255)
    small = Image.fromarray(IMAGES[0]).resize((24, 24), Image.Resampling.BOX)
    expected = np.asarray(small.resize((32, 32), Image.Resampling.BOX))
    np.testing.assert_array_equal(corruptions.corrupt_images(IMAGES, "pixelate", 4)[0], expected)


def test_a_point_shows_the_kernels_of_the_blurs():
    point = np.zeros((1, 32, 32, 1), np.uint8)
    point[0, 16, 16] = 255
    found = corruptions.corrupt_images(point, "defocus_blur", 5)[0, ..., 0] / 255
    assert found.sum() == pytest.approx(1, abs=0.05)
    np.testing.assert_allclose(found[15:18, 15:18], 1 / 9, atol=0.01)
    # The whole image, in the middle, at six sizes from 1 to 1.05, and once more as it is.
    same = np.full((1, 32, 32, 1), 77, np.uint8)
    for name in ("defocus_blur", "motion_blur", "zoom_blur", "elastic", "frosted_glass_blur"):
        assert np.abs(corruptions.corrupt_images(same, name, 5).astype(int) - 77).max() <= 2
    found = corruptions.corrupt_images(point, "motion_blur", 1)[0, ..., 0] / 255
    weights = np.exp(-(np.arange(13) ** 2) / 2)
    assert found.max() == pytest.approx(weights.max() / weights.sum(), abs=0.01)


def test_images_with_transparency_are_refused():
    with pytest.raises(UserError, match="images of 4 channels cannot be corrupted, only 1 or 3"):
        corruptions.corrupt_images(np.zeros((1, 8, 8, 4), np.uint8), "fog", 1)
