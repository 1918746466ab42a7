"""All augmentations of a batch together: by devices, by the key, and turned off."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from cifar_jax.augment import batch as augment
from cifar_jax.augment import mixing
from tests.pictures import FILL, noise, options

pytestmark = [pytest.mark.numbers, pytest.mark.usefixtures("_strict_shapes", "_strict_types")]
ALL = {
    **{"flip": True, "crop_padding": 4, "cutout": 8, "rand_augment_ops": 2},
    **dict.fromkeys(("brightness", "contrast", "saturation"), 0.4),
    **{"hue": 0.1, "mixup_alpha": 0.2, "cutmix_alpha": 1.0},
}


@functools.cache
def compile_all(num_devices):
    devices = jax.devices()[:num_devices]
    mesh = jax.make_mesh((num_devices,), ("data",), (AxisType.Auto,), devices=devices)
    split = NamedSharding(mesh, PartitionSpec("data"))
    whole = NamedSharding(mesh, PartitionSpec())
    chosen = options(**ALL)

    def augment_and_mix(key, images):
        targets = jnp.eye(10)[jnp.arange(len(images)) % 10]
        images = augment.apply(key, images, chosen, FILL)
        floats = augment.normalize(images, (0.5,) * 3, (0.5,) * 3, jnp.float32)
        return images, *mixing.mix(key, floats, targets, chosen)

    jitted = jax.jit(augment_and_mix, in_shardings=(whole, split), out_shardings=split)
    shape = jax.ShapeDtypeStruct((8, 16, 16, 3), jnp.uint8)
    with jax.set_mesh(mesh):
        program = jitted.lower(jax.eval_shape(lambda: jax.random.key(0)), shape).compile()
    return program, (whole, split)


def run_all(num_devices, seed):
    program, shardings = compile_all(num_devices)
    key, images = map(jax.device_put, (jax.random.key(seed), noise(8, 16, 16)), shardings)
    return [np.asarray(x) for x in program(key, images)]


def test_one_and_two_devices_give_the_same():
    for seed in range(4):
        (one, *one_mixed), (two, *two_mixed) = run_all(1, seed), run_all(2, seed)
        np.testing.assert_array_equal(one, two)
        for a, b in zip(one_mixed, two_mixed, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-6)


def test_devices_exchange_nothing_but_the_partners_to_mix_with():
    text = compile_all(2)[0].as_text()
    assert not [x for x in ("all-gather", "all-reduce", "all-to-all") if x in text]
    assert 1 <= len(re.findall(r" collective-permute(-start)?\(", text)) <= 2


def test_the_key_decides():
    first, again, other = run_all(2, 0), run_all(2, 0), run_all(2, 1)
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1], again[1])
    assert np.mean(first[0] != other[0]) > 0.3


def test_one_channel():
    chosen = options(**ALL | {"rand_augment_ops": 0, "trivial_augment": True})
    images = noise(8, 16, 16, channels=1)
    result = jax.jit(lambda k, x: augment.apply(k, x, chosen, (99,)))(jax.random.key(0), images)
    assert result.shape == images.shape
    assert result.dtype == np.uint8
    assert np.mean(np.asarray(result) != images) > 0.5


def test_apply_is_its_parts_and_off_is_nothing():
    images, key = noise(8, 16, 16), jax.random.key(9)
    assert augment.apply(key, images, options(), FILL) is images
    parts = {"flip": True, "crop_padding": 4, "cutout": 6}

    @jax.jit
    def both_ways(key, images):
        step = images
        for name, value in parts.items():
            step = augment.apply(key, step, options(**{name: value}), FILL)
        return augment.apply(key, images, options(**parts), FILL), step

    np.testing.assert_array_equal(*both_ways(key, images))
