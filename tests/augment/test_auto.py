"""RandAugment and TrivialAugment: each operation at its strength, and how they are drawn."""

import jax
import numpy as np
import pytest
from PIL import ImageOps

from cifar_jax.augment import auto as auto_augment
from cifar_jax.augment import image_ops
from cifar_jax.errors import UserError
from tests.pictures import (
    ENHANCERS,
    FILL,
    noise,
    on_batch,
    pillow_warp,
    sample_images,
    to_pillow,
)

pytestmark = pytest.mark.usefixtures("_strict_shapes", "_strict_types")


@pytest.mark.parametrize("wide", [False, True])
def test_warps_of_every_strength_equal_pillow(wide):
    image = sample_images()[0]
    _, matrices = auto_augment._tables(24, 32, wide)
    largest = {
        "shear_x": (0.3, 0.99),
        "shear_y": (0.3, 0.99),
        "translate_x": (32 * 150 / 331, 32),
        "translate_y": (24 * 150 / 331, 32),
        "rotate": (30, 135),
    }
    chosen, expected = [], []
    for name, limits in largest.items():
        levels = np.linspace(0, limits[wide], 31)
        for direction, sign in enumerate((1, -1)):
            chosen.append(matrices[auto_augment.OPERATIONS.index(name), :, direction])
            expected += [pillow_warp(to_pillow(image), name, sign * x) for x in levels]
    chosen = np.concatenate(chosen)
    batch = np.broadcast_to(image, (len(chosen), *image.shape))
    fill = np.broadcast_to(np.uint8(FILL), (len(chosen), 3))
    result = on_batch(image_ops.warp)(batch, chosen, fill)
    np.testing.assert_array_equal(result, np.stack([np.asarray(x) for x in expected]))


def by_hand(image, name, strength, sign, wide):
    """One operation by Pillow; strength in [0, 1]."""
    picture = to_pillow(image)
    if name in ENHANCERS:
        return ENHANCERS[name](picture).enhance(1 + sign * strength * (0.99 if wide else 0.9))
    if name == "posterize":
        return ImageOps.posterize(picture, 8 - round((6 if wide else 4) * strength))
    if name == "solarize":
        return ImageOps.solarize(picture, 256 * (1 - strength))
    if name in ("identity", "autocontrast", "equalize"):
        return {"identity": lambda x: x, **vars(ImageOps)}[name](picture)
    limits = {"shear": (0.3, 0.99), "translate": (32 * 150 / 331, 32), "rotate": (30, 135)}
    return pillow_warp(picture, name, sign * strength * limits[name.split("_")[0]][wide])


@pytest.mark.parametrize(("wide", "place"), [(False, 9), (False, 30), (True, 20)])
def test_each_operation_equals_pillow_at_its_strength(wide, place):
    names = auto_augment.OPERATIONS
    operations = np.repeat(np.arange(len(names)), 2)
    signs = np.tile([0, 1], len(names))
    image = noise(1)[0] // 2 + 40
    images = np.broadcast_to(image, (len(operations), *image.shape))
    bins = np.full_like(operations, place)
    apply = jax.jit(auto_augment._apply_operations, static_argnames=("wide", "fill"))
    result = np.asarray(apply(images, operations, bins, signs, wide=wide, fill=FILL))
    for i, (operation, sign) in enumerate(zip(operations, signs, strict=True)):
        expected = by_hand(image, names[operation], place / 30, 1 - 2 * sign, wide)
        difference = np.abs(result[i].astype(int) - np.asarray(expected))
        rounded = names[operation] == "autocontrast" or names[operation] in ENHANCERS
        assert difference.max() <= rounded, names[operation]
        assert np.mean(difference > 0) < 0.01, names[operation]


def test_draws_are_uniform_over_operations_strengths_and_directions(monkeypatch):
    seen = []

    def record(images, operations, bins, signs, wide, fill):
        seen.append((operations, bins, signs))
        return images

    monkeypatch.setattr(auto_augment, "_apply_operations", record)
    images = noise(8192, 2, 2)
    auto_augment.trivial_augment(jax.random.key(5), images, FILL)
    with jax.disable_jit():
        auto_augment.rand_augment(jax.random.key(6), images, 2, 11, FILL)
    assert len(seen) == 3
    for i, (operations, bins, signs) in enumerate(seen):
        for draw, size in ((operations, 14), (bins, 31), (signs, 2)):
            if i and size == 31:
                assert (np.asarray(draw) == 11).all()
                continue
            counts, expected = np.bincount(draw, minlength=size), 8192 / size
            assert len(counts) == size
            assert np.sum((counts - expected) ** 2 / expected) < size + 6 * (2 * size) ** 0.5
    agree = np.mean(np.asarray(seen[1][0]) == np.asarray(seen[2][0]))
    assert agree < 0.1, "the two operations of an image are drawn independently"


@pytest.mark.parametrize("magnitude", [-1, 31])
def test_magnitude_out_of_range_is_an_error(magnitude):
    with pytest.raises(UserError, match="between 0 and 30"):
        auto_augment.rand_augment(jax.random.key(0), noise(2), 1, magnitude, FILL)
