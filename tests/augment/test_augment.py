"""Every augmentation of a batch, against NumPy."""

import functools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies

from cifar_jax.augment import batch as augment
from cifar_jax.augment import mixing
from cifar_jax.errors import UserError
from tests.pictures import noise, on_batch, options, sample_images

pytestmark = [pytest.mark.numbers, pytest.mark.usefixtures("_strict_shapes", "_strict_types")]
few_seeds = hypothesis.settings(max_examples=20, deadline=None, derandomize=True)
seeds = strategies.integers(0, 2**31 - 1)


# Batches: flip, crop, cutout.


def test_flip_mirrors_half_of_the_images():
    images = noise(4096, 4, 5)
    result = np.asarray(jax.jit(augment.random_flip)(jax.random.key(0), images))
    mirrored = (result == images[:, :, ::-1]).all(axis=(1, 2, 3))
    kept = (result == images).all(axis=(1, 2, 3))
    assert (mirrored ^ kept).all()
    assert abs(mirrored.mean() - 0.5) < 5 * 0.5 / 64


def test_alternating_flip_mirrors_each_image_in_every_other_epoch():
    images, indices = noise(4096, 4, 5), np.random.default_rng(0).permutation(50_000)[:4096]
    flip = jax.jit(augment.alternating_flip)

    def mirrored(key, order, epoch):
        result = np.asarray(flip(key, images[order], indices[order], epoch))
        found = (result == images[order][:, :, ::-1]).all(axis=(1, 2, 3))
        kept = (result == images[order]).all(axis=(1, 2, 3))
        assert (found ^ kept).all()
        return found

    key, order = jax.random.key(0), np.arange(4096)
    first = mirrored(key, order, 0)
    assert abs(first.mean() - 0.5) < 5 * 0.5 / 64
    for epoch in range(1, 4):
        np.testing.assert_array_equal(mirrored(key, order, epoch), first ^ (epoch % 2 == 1))
    # A coin belongs to its image, whatever the image's place in the batch and its neighbours.
    order = np.random.default_rng(1).permutation(4096)[:100]
    np.testing.assert_array_equal(mirrored(key, order, 0), first[order])
    other = mirrored(jax.random.key(1), np.arange(4096), 0)
    assert abs((first ^ other).mean() - 0.5) < 5 * 0.5 / 64


def test_crop_is_a_window_of_the_reflected_image_each_equally_likely():
    images, padding = noise(8192, 6, 7, channels=1), 2
    crop = jax.jit(augment.random_crop, static_argnums=2)
    result = np.asarray(crop(jax.random.key(1), images, padding))
    margins = ((0, 0), (padding, padding), (padding, padding), (0, 0))
    padded = np.pad(images, margins, mode="reflect")
    places = np.ndindex(5, 5)
    equal = [(result == padded[:, r : r + 6, c : c + 7]).all(axis=(1, 2, 3)) for r, c in places]
    counts = np.sum(equal, axis=1)
    assert (np.sum(equal, axis=0) == 1).all()
    expected = 8192 / 25
    assert np.sum((counts - expected) ** 2 / expected) < 60, "chi squared with 24 degrees"


@pytest.mark.parametrize("padding", [6, 40])
def test_crop_wider_than_the_image_is_an_error(padding):
    with pytest.raises(UserError, match="below the image's side of 6"):
        augment.random_crop(jax.random.key(0), noise(2, 6, 7), padding)


@few_seeds
@hypothesis.given(seed=seeds)
@pytest.mark.parametrize("size", [7, 8])
def test_cutout_covers_a_square_cut_off_at_the_border(size, seed):
    images = noise(64, 20, 24) | 1
    cutout = jax.jit(augment.cutout, static_argnums=(2, 3))
    result = np.asarray(cutout(jax.random.key(seed), images, size, (10, 20, 30)))
    covered = (result == (10, 20, 30)).all(axis=-1)
    np.testing.assert_array_equal(result[~covered], images[~covered])
    for mask in covered:
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        assert mask.sum() == len(rows) * len(columns)
        for place, limit in ((rows, 20), (columns, 24)):
            assert np.ptp(place) == len(place) - 1
            whole = len(place) == size
            # The centre lies in the image, so at least half of the square does.
            cut = place[0] == 0 or place[-1] == limit - 1
            assert whole or (cut and size // 2 <= len(place) < size)


def test_cutout_centres_are_uniform():
    images = np.ones((4096, 8, 8, 1), np.uint8)
    cutout = jax.jit(augment.cutout, static_argnums=(2, 3))
    result = np.asarray(cutout(jax.random.key(2), images, 1, (0,)))
    counts = np.sum(result == 0, axis=(0, 3))
    assert counts.sum() == 4096
    assert np.sum((counts - 64) ** 2 / 64) < 120, "chi squared with 63 degrees"


# Batches: colours, RandAugment, TrivialAugment.


def test_brightness_factors_fill_their_interval():
    images = np.full((2048, 2, 2, 3), 100, np.uint8)
    jitter = jax.jit(augment.color_jitter, static_argnums=(2, 3, 4, 5))
    result = np.asarray(jitter(jax.random.key(3), images, 0.4, 0, 0, 0))
    assert (result == result[:, :1, :1, :1]).all()
    levels = result[:, 0, 0, 0]
    assert levels.min() in (60, 61)
    assert levels.max() in (138, 139)
    assert abs(levels.mean() - 99.5) < 5 * 23 / 2048**0.5
    strong = np.asarray(jitter(jax.random.key(3), images, 1.5, 0, 0, 0))[:, 0, 0, 0]
    assert strong.min() in (0, 1), "a factor is never negative"
    assert strong.max() in (249, 250)


def test_jitter_is_its_parts_in_order():
    images, key = sample_images(), jax.random.key(4)
    strengths = (0.4, 0.3, 0.5, 0.2)

    @jax.jit
    def both_ways(key, images):
        step = images
        for i in range(4):
            alone = tuple(s if i == j else 0 for j, s in enumerate(strengths))
            step = augment.color_jitter(key, step, *alone)
        return augment.color_jitter(key, images, *strengths), step

    result, step = both_ways(key, images)
    np.testing.assert_array_equal(result, step)
    assert (np.asarray(result) != images).mean() > 0.5


# Mixup, CutMix, normalize.


def mixed_pair(name, seed, alpha, batch=6):
    images = np.random.default_rng(seed).standard_normal((batch, 10, 12, 3), np.float32)
    targets = np.eye(batch, dtype=np.float32)
    function = jax.jit(getattr(mixing, name), static_argnums=3)
    result = function(jax.random.key(seed), images, targets, alpha)
    return images, targets, *map(np.asarray, result)


@few_seeds
@hypothesis.given(seed=seeds)
def test_mixup_is_one_convex_combination_with_the_reversed_batch(seed):
    images, targets, mixed, soft = mixed_pair("mixup", seed, 0.4)
    weight = soft[0, 0]
    assert 0 <= weight <= 1
    np.testing.assert_allclose(soft.sum(axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(soft, weight * targets + (1 - weight) * targets[::-1], atol=1e-6)
    np.testing.assert_allclose(mixed, weight * images + (1 - weight) * images[::-1], atol=2e-6)


@few_seeds
@hypothesis.given(seed=seeds)
def test_cutmix_pastes_one_rectangle_and_weighs_by_area(seed):
    images, targets, mixed, soft = mixed_pair("cutmix", seed, 1.0)
    own = (mixed == images).all(axis=(0, 3))
    np.testing.assert_array_equal(mixed, np.where(own[..., None], images, images[::-1]))
    rows, columns = np.flatnonzero((~own).any(axis=1)), np.flatnonzero((~own).any(axis=0))
    assert (~own).sum() == len(rows) * len(columns)
    share = own.mean()
    np.testing.assert_allclose(soft, share * targets + (1 - share) * targets[::-1], atol=1e-6)


def test_weights_follow_the_beta_distribution():
    keys = jax.random.split(jax.random.key(7), 2000)
    weights = np.asarray(on_batch(lambda key: mixing._draw_share(key, 0.2))(keys))
    # Beta(a, a) has the mean 1/2 and the variance 1 / (4 (2a + 1)).
    assert abs(weights.mean() - 0.5) < 0.05
    assert abs(weights.var() - 1 / (4 * 1.4)) < 0.02
    shares = np.random.default_rng(0).uniform(size=len(keys))
    outside = functools.partial(mixing._outside_rectangle, height=32, width=32)
    masks = np.asarray(on_batch(outside)(keys, shares))[:, 0, ..., 0]
    uncut = masks[(masks[:, 0] == 1).all(-1) & (masks[:, -1] == 1).all(-1)]
    uncut = uncut[(uncut[:, :, 0] == 1).all(-1) & (uncut[:, :, -1] == 1).all(-1)]
    sides = (uncut == 0).any(axis=2).sum(axis=1), (uncut == 0).any(axis=1).sum(axis=1)
    np.testing.assert_array_equal(*sides, err_msg="the rectangle has the image's proportions")
    assert 0.5 < masks.mean() < 0.75, "half of the area, less what the border cuts off"


def test_mix_draws_between_both_and_keeps_dtypes():
    images = noise(4, 6, 6).astype(np.float32) / 255
    targets = np.eye(4, dtype=np.float32)
    both = options(mixup_alpha=1.0, cutmix_alpha=1.0)

    mix = jax.jit(lambda key: mixing.mix(key, images, targets, both))
    drawn = [jax.device_get(mix(key)) for key in jax.random.split(jax.random.key(8), 100)]
    found = [np.all((x == images) | (x == images[::-1])) for x, _ in drawn]
    assert abs(np.mean(found) - 0.5) < 0.2
    totals = np.stack([np.sum(soft, axis=1) for _, soft in drawn])
    np.testing.assert_allclose(totals, 1, atol=1e-6)
    half = jnp.asarray(images, jnp.bfloat16)
    mixed, soft = jax.eval_shape(lambda x: mixing.mix(jax.random.key(0), x, targets, both), half)
    assert (mixed.dtype, soft.dtype) == (jnp.bfloat16, jnp.float32)
    same, _ = mixing.mix(jax.random.key(0), half, targets, options())
    assert same is half


def test_normalize_equals_numpy():
    images, mean, std = noise(2), (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)
    expected = (images / 255 - np.array(mean)) / np.array(std)
    result = augment.normalize(images, mean, std, jnp.float32)
    np.testing.assert_allclose(result, expected, atol=1e-6)
    half = augment.normalize(images, mean, std, jnp.bfloat16)
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half.astype(jnp.float32), expected, rtol=2**-8, atol=1e-6)
