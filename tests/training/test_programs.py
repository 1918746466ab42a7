"""What is not trained costs no gradient, and the rest is trained as before."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cifar_jax.config import durations
from cifar_jax.models import registry
from cifar_jax.optim import build, schedules
from cifar_jax.optim.groups import REST
from cifar_jax.parallel import devices, seeds
from cifar_jax.training import state
from cifar_jax.training import step as steps
from cifar_jax.training.program import TrainPrograms
from configs import default
from tests import tiny

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)
IMAGES = np.random.default_rng(0).integers(0, 256, (320, 8, 8, 3), dtype=np.uint8)
LABELS = np.random.default_rng(1).integers(0, 10, 320).astype(np.int32)
ROWS = np.random.default_rng(2).permutation(320).astype(np.int32).reshape(5, 64)


def small(**fields):
    """A network of two layers, the first of which is trained for 3 of the 5 steps of an epoch."""
    config = tiny.config(optimizer__name="sgd", optimizer__momentum=0.9, **fields)
    with config.unlocked():
        config.optimizer.groups.first = default.get_group("Dense_0/.*")
    config.optimizer.groups.first.num_epochs = 0.6
    lengths = durations.resolve_durations(config, 320)
    return config, lengths, registry.create_model(config, 10)


def make_step(config, lengths, model, first_step):
    optimizer = build.create_optimizer(config, lengths)
    return steps.make_train_step(
        model, optimizer, config, MEAN, STD, lengths.steps_per_epoch, first_step
    )


def begin(config, lengths, model):
    init = state.make_init(config, lengths, model, IMAGES.shape[1:])
    return devices.jit_once(init)(jax.random.key(0))


def count_convolutions(config, first_step):
    """The convolutions of a step as an accelerator gets it."""
    lengths = durations.resolve_durations(config, 320)
    model = registry.create_model(config, 10)
    step = make_step(config, lengths, model, first_step)
    init = state.make_init(config, lengths, model, (32, 32, 3))
    current = jax.eval_shape(init, jax.random.key(0))
    images = jax.ShapeDtypeStruct((64, 32, 32, 3), jnp.uint8)
    labels = jax.ShapeDtypeStruct((64,), jnp.int32)
    traced = jax.jit(step).trace(current, (images, labels, labels), jax.random.key(0))
    return traced.lower(lowering_platforms=("cuda",)).as_text().count("stablehlo.convolution")


def test_where_groups_end():
    config = tiny.speedrun_config()
    assert schedules.find_ends(config.optimizer, 5) == {"stem_kernel": 0, "stem_bias": 3}
    config.optimizer.groups.stem_bias.num_epochs = 0.01
    assert schedules.find_ends(config.optimizer, 5)["stem_bias"] == 1
    config.optimizer.name = "frozen"
    assert schedules.find_ends(config.optimizer, 5)[REST] == 0
    assert schedules.find_ends(default.get_config().optimizer, 5) == {}


@pytest.mark.slow
def test_what_is_not_trained_costs_no_convolution():
    config = tiny.speedrun_config()
    # Seven forward, six gradients by kernels (not by the stem's) and six by what went in; the last
    # of these is for the stem's biases alone.
    assert count_convolutions(config, 0) == 7 + 6 + 6
    assert count_convolutions(config, 2) == 7 + 6 + 6
    assert count_convolutions(config, 3) == 7 + 6 + 5
    # All but the head is frozen.
    with config.unlocked():
        config.optimizer.name = "frozen"
        config.optimizer.groups.norm_biases.name = "frozen"
    assert count_convolutions(config, 3) == 7


@pytest.mark.parametrize("accumulation_steps", [1, 2])
def test_the_rest_is_trained_as_if_all_had_a_gradient(accumulation_steps):
    config, lengths, model = small(optimizer__accumulation_steps=accumulation_steps)
    current, key = begin(config, lengths, model), jax.random.key(0)
    every, fewer = (jax.jit(make_step(config, lengths, model, first)) for first in (0, 3))
    for rows in ROWS[:3]:
        current, _ = every(current, (IMAGES[rows], LABELS[rows], rows), key)
    batch = (IMAGES[ROWS[3]], LABELS[ROWS[3]], ROWS[3])
    found, expected = fewer(current, batch, key)[0], every(current, batch, key)[0]
    jax.tree.map(
        lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6),
        (found.params, found.batch_stats),
        (expected.params, expected.batch_stats),
    )
    for name in ("kernel", "bias"):
        kept = current.params["Dense_0"][name]
        np.testing.assert_array_equal(found.params["Dense_0"][name], kept)
    moved = found.params["head"]["kernel"] - current.params["head"]["kernel"]
    assert np.abs(moved).max() > 1e-4


def test_what_is_not_trained_has_the_gradient_zero():
    """So it does not count for the clipping either."""
    config, lengths, model = small()
    current = begin(config, lengths, model)
    plain = optax.stateless(lambda gradient, params: gradient)
    step = steps.make_train_step(model, plain, config, MEAN, STD, 5, first_step=3)
    batch = (IMAGES[:64], LABELS[:64], ROWS[0])
    new, _ = jax.jit(step)(current.replace(opt_state=plain.init({})), batch, jax.random.key(0))
    gradient = jax.tree.map(jnp.subtract, new.params, current.params)
    assert not any(leaf.any() for leaf in jax.tree.leaves(gradient["Dense_0"]))
    assert np.abs(gradient["head"]["kernel"]).max() > 1e-4


def run(programs, state, calls, mesh, num_seeds=1):
    """Makes steps in calls of these lengths; returns all arrays of the state but the momenta."""
    key = seeds.stack(mesh, [jax.random.key(0)] * num_seeds)
    current, first = jax.tree.map(jnp.copy, state), 0
    for length in calls:
        assert length <= programs.most(first)
        rows = np.zeros_like(ROWS)
        rows[:length] = np.take(ROWS, range(first, first + length), axis=0, mode="wrap")
        arguments = (current, (IMAGES, LABELS), rows, length, key)
        current, _ = programs.compile(first, arguments)(*arguments)
        first += length
    return [np.asarray(leaf) for leaf in jax.tree.leaves(current)]


def test_the_calls_do_not_change_a_bit():
    config, lengths, model = small()
    mesh = devices.make_mesh(config.batch_size)
    with jax.set_mesh(mesh):
        current = devices.replicate(mesh, begin(config, lengths, model))
        programs = TrainPrograms(config, lengths, model, MEAN, STD, mesh, resident=True)
        assert [programs.most(first) for first in (0, 2, 3)] == [3, 1, durations.MOST_STEPS - 3]
        whole = run(programs, current, [3, 4], mesh)
        for calls in ([1] * 7, [2, 1, 3, 1]):
            for one, other in zip(whole, run(programs, current, calls, mesh), strict=True):
                np.testing.assert_array_equal(one, other)


def test_a_whole_epoch_has_a_program_of_its_own_on_an_accelerator():
    config, lengths, model = small()
    mesh = devices.make_mesh(config.batch_size)
    with jax.set_mesh(mesh):
        current = devices.replicate(mesh, begin(config, lengths, model))
        arguments = current, (IMAGES, LABELS), ROWS
        key = jax.random.key(0)
        results = {}
        for platform in ("cpu", "accelerator"):
            programs = TrainPrograms(config, lengths, model, MEAN, STD, mesh, resident=True)
            programs._any_length = platform == "cpu"
            whole, part = (programs.compile(5, (*arguments, n, key)) for n in (5, 2))
            assert (whole is part) == (platform == "cpu")
            assert ("known_trip_count" in whole.as_text()) == (platform == "accelerator")
            assert "known_trip_count" not in part.as_text()
            given = jax.tree.map(jnp.copy, current)
            results[platform] = whole(given, *arguments[1:], 5, key)
    jax.tree.map(
        lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6),
        *results.values(),
    )
