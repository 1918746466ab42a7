"""A batch computed in parts, or by two devices, is the whole batch, in float64."""

import dataclasses
import functools
from contextlib import nullcontext
from typing import Any

import jax
import numpy as np
import optax
import pytest
from flax import linen as nn
from jax.sharding import PartitionSpec as P

from cifar_jax.models import layers
from cifar_jax.parallel import devices
from cifar_jax.training import step as step_lib
from cifar_jax.training.state import TrainState
from tests import tiny

pytestmark = pytest.mark.numbers
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (24, 8, 8, 3), dtype=np.uint8)
LABELS = RNG.integers(0, 10, 24).astype(np.int32)
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)
RATE = 0.1


class Float64(nn.Module):
    """Two layers in float64, with the package's BatchNorm in between or without."""

    norm: bool
    num_classes: int = 10
    dtype: Any = np.float64

    @nn.compact
    def __call__(self, images, train=False):
        options = {"dtype": np.float64, "param_dtype": np.float64}
        x = nn.Dense(6, **options)(images.reshape(len(images), -1))
        if self.norm:
            x = layers.BatchNorm(use_running_average=not train, dtype=np.float64)(x)
        return nn.Dense(self.num_classes, **options)(nn.tanh(x))


@functools.cache
def make(norm, parts):
    """Returns the state before the first step of plain SGD, in float64, and the step."""
    config = tiny.config(optimizer__accumulation_steps=parts, loss__label_smoothing=0.1)
    model = Float64(norm)
    variables = dict(devices.jit_once(model.init)(jax.random.key(0), np.zeros((1, 8, 8, 3))))
    variables = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables)
    optimizer = optax.sgd(RATE)
    params, stats = variables["params"], variables.get("batch_stats", {})
    state = TrainState(np.int32(0), params, stats, optimizer.init(params), {})
    return state, jax.jit(
        step_lib.make_train_step(model, optimizer, config, MEAN, STD, steps_per_epoch=3)
    )


def step(norm, parts, images=IMAGES, labels=LABELS, stats=None, mesh=None):
    """Returns the state after one step, on one device or on a mesh, and its metrics."""
    with jax.enable_x64(True):
        state, train_step = make(norm, parts)
        if stats is not None:
            state = dataclasses.replace(state, batch_stats=stats)
        batch = (images, labels, np.arange(len(labels), dtype=np.int32))
        if mesh is not None:
            state, batch = devices.replicate(mesh, state), devices.put(mesh, batch, P("data"))
        with jax.set_mesh(mesh) if mesh is not None else nullcontext():
            new, metrics = train_step(state, batch, jax.random.key(1))
        return jax.device_get(new), metrics


def assert_equal(tree, other):
    for one, another in zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True):
        assert np.asarray(one).dtype == np.float64
        np.testing.assert_allclose(one, another, rtol=0, atol=1e-13)


@pytest.mark.parametrize("parts", [2, 8])
def test_the_parts_give_the_whole_batch(parts):
    whole, metrics = step(False, 1)
    computed, more = step(False, parts)
    assert_equal(computed.params, whole.params)
    np.testing.assert_allclose(more[0], metrics[0], rtol=1e-6)
    assert more[1] == metrics[1]


def test_batch_norm_takes_the_statistics_of_each_part():
    """The gradient is the mean of the parts' own; the running statistics go through them."""
    first, _ = step(True, 1, IMAGES[::2], LABELS[::2])
    second, _ = step(True, 1, IMAGES[1::2], LABELS[1::2], first.batch_stats)
    computed, _ = step(True, 2)
    mean = jax.tree.map(lambda a, b: (a + b) / 2, first.params, second.params)
    assert_equal(computed.params, mean)
    assert_equal(computed.batch_stats, second.batch_stats)
    whole, _ = step(True, 1)
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), whole.params, computed.params)
    assert 1e-6 < max(jax.tree.leaves(moved)) < RATE


@pytest.mark.parametrize("parts", [1, 3])
def test_two_devices_compute_what_one_does(parts):
    """BatchNorm included: its statistics are those of the images of both devices."""
    one, metrics = step(True, parts)
    two, more = step(True, parts, mesh=devices.make_mesh(24))
    assert_equal((one.params, one.batch_stats), (two.params, two.batch_stats))
    np.testing.assert_allclose(more[0], metrics[0], rtol=1e-6)
    assert more[1] == metrics[1]
