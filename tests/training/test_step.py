"""The train step against NumPy, and against itself computed another way."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cifar_jax.models import registry
from cifar_jax.parallel import devices
from cifar_jax.training import metrics as metrics_lib
from cifar_jax.training import program as program_lib
from cifar_jax.training import state as state_lib
from cifar_jax.training import step as step_lib
from cifar_jax.training.metrics import Metrics, to_sums
from cifar_jax.training.state import TrainState
from tests import tiny

IMAGES = np.random.default_rng(0).integers(0, 256, (32, 8, 8, 3), dtype=np.uint8)
LABELS = np.random.default_rng(1).integers(0, 10, 32).astype(np.int32)
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)


def make(config, model, optimizer):
    variables = devices.jit_once(lambda key: model.init(key, jnp.zeros((1, 8, 8, 3))))(
        jax.random.key(0)
    )
    params, batch_stats = variables["params"], variables.get("batch_stats", {})
    ema = {"params": params, "batch_stats": batch_stats} if config.ema_decay else {}
    state = TrainState(jnp.int32(0), params, batch_stats, optimizer.init(params), ema)
    return state, step_lib.make_train_step(model, optimizer, config, MEAN, STD, steps_per_epoch=3)


def softmax_regression(**fields):
    config = tiny.config(**fields)
    model = registry.create("mlp", 10, hidden_sizes=())
    state, step = make(config, model, optax.sgd(0.1))
    new, metrics = jax.jit(step)(state, (IMAGES, LABELS, np.arange(32)), jax.random.key(0))
    return state, new, metrics


def test_a_step_of_softmax_regression_is_numpys():
    state, new, metrics = softmax_regression(loss__label_smoothing=0.1)
    kernel = np.asarray(state.params["head"]["kernel"], np.float64)
    pixels = ((IMAGES / 255 - np.array(MEAN)) / np.array(STD)).reshape(32, -1)
    logits = pixels @ kernel
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    targets = 0.01 + 0.9 * np.eye(10)[LABELS]
    gradient = pixels.T @ (probabilities - targets) / 32
    np.testing.assert_allclose(new.params["head"]["kernel"], kernel - 0.1 * gradient, atol=1e-6)
    bias = -0.1 * (probabilities - targets).mean(axis=0)
    np.testing.assert_allclose(new.params["head"]["bias"], bias, atol=1e-6)
    sums = to_sums(metrics)
    loss = -(targets * np.log(probabilities)).sum()
    np.testing.assert_allclose(sums["loss"], (loss, 32), rtol=1e-5)
    assert sums["accuracy"] == ((logits.argmax(axis=1) == LABELS).sum(), 32)
    assert new.step == 1


def test_accumulated_parts_equal_the_whole_batch():
    _, whole, metrics = softmax_regression()
    _, parts, more = softmax_regression(optimizer__accumulation_steps=4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-7), whole, parts)
    np.testing.assert_allclose(to_sums(metrics)["loss"], to_sums(more)["loss"], rtol=1e-6)


def test_moving_averages():
    state, new, _ = softmax_regression(ema_decay=0.75)
    expected = jax.tree.map(lambda old, fresh: 0.75 * old + 0.25 * fresh, state.params, new.params)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-7), expected, new.ema["params"]
    )
    assert new.variables() is new.ema


@pytest.fixture(scope="module")
def bn_program():
    """Returns {resident: compiled program}, the initial state and the rows of 12 batches."""
    config = tiny.bn_config(augment__flip=True, augment__crop_padding=1, augment__mixup_alpha=0.3)
    options = config.model.to_dict()
    model = registry.create(options.pop("name"), 10, **options)
    mesh = devices.make_mesh(8)
    rows = np.random.default_rng(2).integers(0, 32, (12, 8)).astype(np.int32)
    with jax.set_mesh(mesh):
        state, step = make(config, model, optax.sgd(0.1, momentum=0.9))
        state = devices.replicate(mesh, state)
        programs = {}
        for resident, data in ((True, (IMAGES, LABELS)), (False, (IMAGES[rows], LABELS[rows]))):
            program = program_lib.compile_train(step, mesh, resident)
            arguments = (state, Metrics.empty(), data, rows, 12, jax.random.key(0))
            programs[resident] = program.lower(*arguments).compile()
        yield programs, state, rows


def run(bn_program, calls, resident=True):
    """Runs the program in calls of the given lengths; returns all its arrays."""
    programs, state, rows = bn_program
    key = jax.random.key(0)
    state, metrics, first = jax.tree.map(jnp.copy, state), Metrics.empty(), 0
    for length in calls:
        indices = np.zeros_like(rows)
        indices[:length] = rows[first : first + length]
        data = (IMAGES, LABELS) if resident else (IMAGES[indices], LABELS[indices])
        state, metrics = programs[resident](state, metrics, data, indices, length, key)
        first += length
    return [np.asarray(leaf) for leaf in jax.tree.leaves((state, metrics))]


def test_the_calls_do_not_change_a_bit(bn_program):
    whole = run(bn_program, [12])
    for calls in ([1] * 12, [5, 1, 6]):
        for one, other in zip(whole, run(bn_program, calls), strict=True):
            np.testing.assert_array_equal(one, other)


def test_streamed_batches_are_the_resident_ones(bn_program):
    for one, other in zip(run(bn_program, [12]), run(bn_program, [7, 5], False), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_the_gradients_are_joined_into_one_all_reduce(bn_program):
    text = bn_program[0][True].as_text()
    # Three norms exchange their sums once forward and once backward; the gradients, loss and
    # accuracy of the step go together. Nothing is gathered.
    assert text.count(" all-reduce(") <= 2 * 3 + 2
    assert " all-gather(" not in text
    assert " all-to-all(" not in text


def test_bfloat16_computes_close_to_float32_with_float32_parameters():
    losses = {}
    for dtype in (jnp.float32, jnp.bfloat16):
        model = registry.create("mlp", 10, dtype=dtype)
        variables = devices.jit_once(model.init)(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
        assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
        images = jnp.asarray(np.random.default_rng(0).normal(size=(8, 32, 32, 3)), jnp.float32)
        losses[dtype] = jax.jit(model.apply)(variables, images.astype(dtype))
        assert losses[dtype].dtype == jnp.float32
    np.testing.assert_allclose(*losses.values(), atol=0.05)


def test_a_step_of_convolutions_in_bfloat16_on_two_devices():
    config = tiny.bn_config(dtype="bfloat16")
    options = config.model.to_dict()
    model = registry.create(options.pop("name"), 10, dtype=jnp.bfloat16, **options)
    mesh = devices.make_mesh(32)
    with jax.set_mesh(mesh):
        state, step = make(config, model, optax.sgd(0.01))
        before = jax.device_get(state.params)
        program = program_lib.compile_train(step, mesh, resident=True)
        rows = np.arange(32, dtype=np.int32)[None]
        arguments = (devices.replicate(mesh, state), Metrics.empty(), (IMAGES, LABELS), rows, 1)
        new, metrics = program(*arguments, jax.random.key(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(new.params)} == {jnp.dtype("float32")}
    moved = jax.tree.map(lambda a, b: np.abs(np.asarray(a) - b).max(), new.params, before)
    assert all(0 < distance < 0.5 for distance in jax.tree.leaves(moved["Conv_1"]["kernel"]))
    assert 1 < metrics_lib.means(to_sums(metrics))["loss"] < 5


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_all_finite(dtype):
    good = {"a": jnp.ones((2, 3), dtype), "b": jnp.array([1, 2])}
    assert state_lib.all_finite(good).tolist() == [True]
    for bad in (jnp.nan, jnp.inf):
        tree = good | {"c": jnp.array([1.0, bad], dtype)}
        assert state_lib.all_finite(tree).tolist() == [False]
        assert state_lib.all_finite(tree, 2).tolist() == [True, False]
