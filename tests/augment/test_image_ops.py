"""Each operation on one image, against Pillow and colorsys."""

import colorsys

import numpy as np
import pytest
from PIL import ImageOps

from cifar_jax.augment import image_ops
from tests.pictures import ENHANCERS, noise, on_batch, sample_images, with_pillow

pytestmark = pytest.mark.usefixtures("_strict_shapes", "_strict_types")


@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize("name", ENHANCERS)
def test_enhancing_operations_equal_pillow_up_to_its_rounding(name, channels):
    factors = 1 + np.linspace(-0.99, 0.99, 31, dtype=np.float32)
    images = np.repeat(sample_images(channels), len(factors), axis=0)
    factors = np.tile(factors, len(sample_images()))
    result = np.asarray(on_batch(getattr(image_ops, name))(images, factors))
    expected = with_pillow(lambda x, f: ENHANCERS[name](x).enhance(float(f)), images, factors)
    # Pillow cuts off a float that may lie just below the integer that is meant.
    assert np.abs(result.astype(int) - expected).max() <= 1
    assert np.mean(result != expected) < 0.02


def test_enhancing_is_exact_where_factors_are_hundredths():
    hundredths = np.arange(0, 200, 3)
    image = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
    images = np.broadcast_to(image, (len(hundredths), *image.shape))
    result = on_batch(image_ops.brightness)(images, np.float32(hundredths / 100))
    expected = images.astype(int) * hundredths[:, None, None, None] // 100
    np.testing.assert_array_equal(result, np.minimum(expected, 255))
    largest = on_batch(image_ops.brightness)(images[:2], np.float32([30, 1e6]))
    np.testing.assert_array_equal(largest, np.minimum(images[:2].astype(int) * 30, 255))


@pytest.mark.parametrize("channels", [3, 1])
def test_equalize_equals_pillow(channels):
    images = sample_images(channels)
    expected = with_pillow(ImageOps.equalize, images)
    np.testing.assert_array_equal(on_batch(image_ops.equalize)(images), expected)


@pytest.mark.parametrize("channels", [3, 1])
def test_autocontrast_equals_pillow_up_to_its_rounding(channels):
    images = sample_images(channels)
    expected = with_pillow(ImageOps.autocontrast, images).astype(int)
    result = np.asarray(on_batch(image_ops.autocontrast)(images)).astype(int)
    # Pillow cuts off a double that may lie just below the integer that is meant.
    assert set(np.unique(result - expected)) <= {0, 1}
    assert np.mean(result != expected) < 0.01
    flat = 4
    np.testing.assert_array_equal(result[flat], images[flat])


def test_posterize_equals_pillow():
    images, bits = np.repeat(sample_images(), 8, axis=0), np.tile(np.arange(1, 9), 6)
    expected = with_pillow(lambda image, b: ImageOps.posterize(image, int(b)), images, bits)
    result = on_batch(image_ops.posterize)(images, bits.astype(np.float32))
    np.testing.assert_array_equal(result, expected)


def test_solarize_equals_pillow_and_inverts_from_zero():
    thresholds = np.float32([0, 8.533, 100, 128, 255, 256])
    images = np.repeat(sample_images(), 6, axis=0)
    every = np.tile(thresholds, 6)
    expected = with_pillow(lambda image, t: ImageOps.solarize(image, float(t)), images, every)
    result = np.asarray(on_batch(image_ops.solarize)(images, every))
    np.testing.assert_array_equal(result, expected)
    np.testing.assert_array_equal(result[::6], with_pillow(ImageOps.invert, sample_images()))
    np.testing.assert_array_equal(result[5::6], sample_images())


def test_hue_equals_colorsys():
    image = np.concatenate([noise(1, 8, 8)[0], sample_images()[4][:2, :8]])
    shifts = np.float32([-0.5, -0.1, 0, 0.25, 1 / 3])

    def turn(pixel, shift):
        hue, saturation, value = colorsys.rgb_to_hsv(*pixel / 255)
        return 255 * np.array(colorsys.hsv_to_rgb((hue + shift) % 1, saturation, value))

    expected = np.array([[[turn(p, s) for p in row] for row in image] for s in shifts])
    batch = np.broadcast_to(image, (5, *image.shape))
    result = np.asarray(on_batch(image_ops.shift_hue)(batch, shifts)).astype(float)
    assert np.abs(result - expected).max() < 0.501
    np.testing.assert_array_equal(result[2], image)
    # A third of the circle makes red green, green blue and blue red.
    np.testing.assert_array_equal(result[4], image[..., [2, 0, 1]])


def test_one_channel_has_no_hue_and_no_saturation():
    image = noise(1, channels=1)[0]
    np.testing.assert_array_equal(image_ops.shift_hue(image, 0.2), image)
    np.testing.assert_array_equal(image_ops.color(image, 0.2), image)
