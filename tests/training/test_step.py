"""The train step against NumPy, and against itself computed another way."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.utils.class_weight import compute_class_weight

from cifar_jax.augment import batch as augment
from cifar_jax.augment import mixing
from cifar_jax.config import durations
from cifar_jax.errors import UserError
from cifar_jax.models import registry
from cifar_jax.optim import build
from cifar_jax.parallel import devices
from cifar_jax.training import program as program_lib
from cifar_jax.training import state as state_lib
from cifar_jax.training import step as step_lib
from cifar_jax.training.state import TrainState
from configs import default
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


@functools.cache
def make_small(model, **fields):
    """Returns the state before the first step of SGD, and the step."""
    state, step = make(tiny.config(**fields), model, optax.sgd(0.1))
    return state, jax.jit(step)


def take_step(model, images=IMAGES, number=0, **fields):
    """Returns the state before and after a step, whose number is given, and its metrics."""
    state, step = make_small(model, **fields)
    state = state.replace(step=jnp.int32(number))
    with jax.numpy_dtype_promotion("strict"):
        new, metrics = step(state, (images, LABELS, np.arange(32)), jax.random.key(0))
    return state, new, metrics


def softmax_regression(images=IMAGES, number=0, **fields):
    return take_step(registry.create("mlp", 10, hidden_sizes=()), images, number, **fields)


def small_bn_net(dropout_rate=0.0):
    """Returns a network with one hidden layer, which dropout and BatchNorm follow."""
    options = {"conv_features": (), "dense_features": (6,), "dense_dropout_rate": dropout_rate}
    return registry.create("bn_cnn", 10, **options)


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
    loss = -(targets * np.log(probabilities)).sum()
    np.testing.assert_allclose(metrics[0], loss, rtol=1e-5)
    assert metrics[1] == (logits.argmax(axis=1) == LABELS).sum()
    assert new.step == 1


def numpy_gradient(kernel, factors=None, labels=LABELS):
    """Returns the gradients of kernel and bias of softmax regression without a bias."""
    pixels = ((IMAGES / 255 - np.array(MEAN)) / np.array(STD)).reshape(32, -1)
    exponentials = np.exp(pixels @ kernel)
    residuals = exponentials / exponentials.sum(axis=1, keepdims=True) - np.eye(10)[labels]
    residuals *= 1 if factors is None else factors[labels][:, None]
    return pixels.T @ residuals / 32, residuals.mean(axis=0)


def test_class_weights_multiply_the_losses_of_their_images():
    factors = np.arange(10, dtype=np.float32)
    state, _ = make_small(model := registry.create("mlp", 10, hidden_sizes=()))
    parts = (model, optax.sgd(0.1), tiny.config(), MEAN, STD, 3)
    step = step_lib.make_train_step(*parts, class_weights=factors)
    with jax.numpy_dtype_promotion("strict"):
        new, _ = jax.jit(step)(state, (IMAGES, LABELS, np.arange(32)), jax.random.key(0))
    kernel = np.asarray(state.params["head"]["kernel"], np.float64)
    gradient, _ = numpy_gradient(kernel, factors)
    np.testing.assert_allclose(new.params["head"]["kernel"], kernel - 0.1 * gradient, atol=1e-6)


def test_balanced_class_weights_are_those_of_scikit_learn():
    labels = np.repeat([0, 1, 3], [30, 5, 1])
    found = step_lib.resolve_class_weights("balanced", labels, 5)
    expected = compute_class_weight("balanced", classes=np.array([0, 1, 3]), y=labels)
    np.testing.assert_allclose(found, [*expected[:2], 0, expected[2], 0], rtol=1e-6)
    assert found[labels].mean() == pytest.approx(1)
    assert step_lib.resolve_class_weights(None, labels, 5) is None
    assert step_lib.resolve_class_weights((1, 2), labels, 2).tolist() == [1, 2]
    with pytest.raises(UserError, match="has 2 numbers, but the data have 5 classes: give one"):
        step_lib.resolve_class_weights((1, 2), labels, 5)


def test_sharpness_aware_minimization_takes_the_gradient_at_the_worst_weights_near():
    config, model = (
        tiny.config(optimizer__sam_radius=0.5),
        registry.create("mlp", 10, hidden_sizes=()),
    )
    config.optimizer.name, config.optimizer.learning_rate = "sgd", 0.1
    config.optimizer.weight_decay = 0.2
    optimizer = build.create_optimizer(config, durations.resolve_durations(config, 320))
    state, step = make(config, model, optimizer)
    kernel = np.asarray(state.params["head"]["kernel"], np.float64)
    near, bias = numpy_gradient(kernel)
    scale = 0.5 / np.sqrt((near**2).sum() + (bias**2).sum())
    pixels = ((IMAGES / 255 - np.array(MEAN)) / np.array(STD)).reshape(32, -1)
    exponentials = np.exp(pixels @ (kernel + scale * near) + scale * bias)
    residuals = exponentials / exponentials.sum(axis=1, keepdims=True) - np.eye(10)[LABELS]
    worst = pixels.T @ residuals / 32
    assert np.abs(worst - near).max() > 1e-3
    new, _ = jax.jit(step)(state, (IMAGES, LABELS, np.arange(32)), jax.random.key(0))
    expected = kernel - 0.1 * (worst + 0.2 * kernel)
    np.testing.assert_allclose(new.params["head"]["kernel"], expected, atol=1e-6)


def take_sam_step(model, radius=0.5, class_weights=None, change=None):
    """Returns the state before and after a step of sharpness-aware SGD."""
    config = tiny.config(optimizer__sam_radius=radius, optimizer__learning_rate=0.1)
    config.optimizer.name = "sgd"
    if change:
        change(config)
    optimizer = build.create_optimizer(config, durations.resolve_durations(config, 320))
    state, _ = make(config, model, optimizer)
    parts = (model, optimizer, config, MEAN, STD, 3)
    step = step_lib.make_train_step(*parts, class_weights=class_weights)
    with jax.numpy_dtype_promotion("strict"):
        return state, *jax.jit(step)(state, (IMAGES, LABELS, np.arange(32)), jax.random.key(0))


def test_a_gradient_of_zero_leaves_the_weights_of_sharpness_aware_minimization():
    model = registry.create("mlp", 10, hidden_sizes=())
    state, new, _ = take_sam_step(model, class_weights=np.zeros(10, np.float32))
    jax.tree.map(np.testing.assert_array_equal, state.params, new.params)


def test_other_gradients_have_the_bits_of_optax():
    random = np.random.default_rng(0)
    for scale in (1e-15, 1e-3, 1.0, 1e15):
        tree = {"a": random.normal(size=(7, 5)) * scale, "b": random.normal(size=3) * scale}
        tree = jax.tree.map(jnp.float32, tree)
        ours = jax.jit(lambda x: build._normalize(x, None))(tree)
        theirs, _ = jax.jit(optax.contrib.normalize().update)(tree, optax.EmptyState())
        jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_sharpness_aware_minimization_keeps_the_statistics_of_the_first_pass():
    model = small_bn_net()
    state, new, metrics = take_sam_step(model)
    _, plain, first = take_step(model, optimizer__learning_rate=0.1)
    jax.tree.map(np.testing.assert_array_equal, new.batch_stats, plain.batch_stats)
    np.testing.assert_array_equal(metrics, first)
    assert any(jax.tree.leaves(jax.tree.map(lambda a, b: (a != b).any(), new.params, plain.params)))
    before = state.batch_stats
    assert any(jax.tree.leaves(jax.tree.map(lambda a, b: (a != b).any(), before, new.batch_stats)))


def test_frozen_parameters_are_no_part_of_the_worst_weights():
    model = registry.create("mlp", 10, hidden_sizes=(6,), activation="relu")

    def freeze(config):
        with config.unlocked():
            config.optimizer.groups.hidden = default.get_group("(?!head/).*")
        config.optimizer.groups.hidden.name = "frozen"

    state, new, _ = take_sam_step(model, change=freeze)
    images = augment.normalize(jnp.asarray(IMAGES), MEAN, STD, jnp.float32)

    def loss(head):
        logits = model.apply({"params": {**state.params, "head": head}}, images, train=True)
        return optax.softmax_cross_entropy_with_integer_labels(logits, LABELS).mean()

    head = state.params["head"]
    gradient = jax.grad(loss)(head)
    norm = np.sqrt(sum((leaf**2).sum() for leaf in jax.tree.leaves(gradient)))
    worst = jax.grad(loss)(jax.tree.map(lambda x, g: x + 0.5 * g / norm, head, gradient))
    expected = {**state.params, "head": jax.tree.map(lambda x, g: x - 0.1 * g, head, worst)}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), new.params, expected)


@pytest.mark.parametrize("mixup", [0.0, 1.0])
def test_each_class_has_its_own_factor_in_smoothed_and_mixed_labels(mixup):
    factors = np.linspace(0.5, 3, 10, dtype=np.float32)
    model = registry.create("mlp", 10, hidden_sizes=())
    config = tiny.config(loss__label_smoothing=0.2, augment__mixup_alpha=mixup)
    state, _ = make(config, model, optax.sgd(0.1))
    parts = (model, optax.sgd(0.1), config, MEAN, STD, 3)
    step = jax.jit(step_lib.make_train_step(*parts, class_weights=factors))
    new, metrics = step(state, (IMAGES, LABELS, np.arange(32)), jax.random.key(0))
    pixels = (IMAGES / 255 - np.array(MEAN)) / np.array(STD)
    targets = 0.02 + 0.8 * np.eye(10)[LABELS]
    mix_key = jax.random.split(jax.random.fold_in(jax.random.key(0), 0), 3)[1]
    pixels, targets = mixing.mix(mix_key, jnp.float32(pixels), jnp.float32(targets), config.augment)
    assert (np.abs(targets - 0.02 - 0.8 * np.eye(10)[LABELS]).max() > 0.1) == bool(mixup)
    pixels, targets = np.float64(pixels).reshape(32, -1), np.float64(targets)
    logits = pixels @ np.float64(state.params["head"]["kernel"])
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    losses = -(factors * targets * np.log(shares)).sum(axis=1)
    np.testing.assert_allclose(metrics[0], losses.sum(), rtol=1e-4)
    # The derivative of -sum w t log p by the logits is p sum(w t) - w t.
    residuals = shares * (factors * targets).sum(axis=1, keepdims=True) - factors * targets
    expected = state.params["head"]["kernel"] - 0.1 * pixels.T @ residuals / 32
    np.testing.assert_allclose(new.params["head"]["kernel"], expected, atol=1e-5)


def test_accumulated_parts_equal_the_whole_batch():
    _, whole, metrics = softmax_regression()
    _, parts, more = softmax_regression(optimizer__accumulation_steps=4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-7), whole, parts)
    np.testing.assert_allclose(metrics, more, rtol=1e-6)


@pytest.mark.parametrize(("number", "decay"), [(0, 0.1), (5, 6 / 15), (26, 0.75), (90, 0.75)])
def test_moving_averages(number, decay):
    state, new, _ = take_step(small_bn_net(), number=number, ema_decay=0.75)
    for name in ("params", "batch_stats"):
        old, fresh = getattr(state, name), getattr(new, name)
        expected = jax.tree.map(lambda a, b: decay * a + (1 - decay) * b, old, fresh)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), expected, new.ema[name]
        )
        moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), old, fresh)
        assert max(jax.tree.leaves(moved)) > 1e-2
    assert new.variables() is new.ema


def test_the_network_trains_with_statistics_of_the_batch():
    state, new, metrics = take_step(small_bn_net())
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), state.params)
    pixels = ((IMAGES / 255 - np.array(MEAN)) / np.array(STD)).reshape(32, -1)
    hidden = np.maximum(pixels @ params["Dense_0"]["kernel"], 0)
    mean, variance = hidden.mean(axis=0), hidden.var(axis=0)
    stats = new.batch_stats["BatchNorm_0"]
    np.testing.assert_allclose(stats["mean"], 0.1 * mean, rtol=1e-4)
    np.testing.assert_allclose(stats["var"], 0.9 + 0.1 * variance, rtol=1e-4)
    logits = (hidden - mean) / np.sqrt(variance + 1e-5) @ params["head"]["kernel"]
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    loss = -np.log(probabilities[np.arange(32), LABELS]).sum()
    np.testing.assert_allclose(metrics[0], loss, rtol=1e-4)


def test_the_network_trains_with_dropout_drawn_for_each_step():
    def loss(dropout_rate, number):
        metrics = take_step(small_bn_net(dropout_rate), number=number)[2]
        return round(float(metrics[0]) / 32, 3)

    assert loss(0.5, 0) == loss(0.5, 0)
    assert len({loss(0.0, 0), loss(0.5, 0), loss(0.5, 1)}) == 3


def test_alternating_flip_mirrors_each_image_in_every_other_epoch():
    """Epochs have 3 steps here; which images are mirrored in the first, the run's key decides."""
    first = augment.alternating_flip(jax.random.key(0), IMAGES, np.arange(32), 0)
    assert 0 < (first != IMAGES).any(axis=(1, 2, 3)).sum() < 32
    for number, epoch in ((0, 0), (2, 0), (3, 1), (5, 1), (6, 0)):
        seen = first[:, :, ::-1] if epoch else first
        _, found, _ = softmax_regression(number=number, augment__alternating_flip=True)
        _, expected, _ = softmax_regression(seen)
        jax.tree.map(np.testing.assert_array_equal, found.params, expected.params)


@pytest.fixture(scope="module")
def bn_program():
    """Returns resident -> compiled program, the initial state and the rows of 12 batches."""
    config = tiny.bn_config(augment__mixup_alpha=0.3, model__conv_features=(8,))
    options = config.model.to_dict()
    model = registry.create(options.pop("name"), 10, **options)
    mesh = devices.make_mesh(8)
    rows = np.random.default_rng(2).integers(0, 32, (12, 8)).astype(np.int32)
    with jax.set_mesh(mesh):
        state, step = make(config, model, optax.sgd(0.1, momentum=0.9))
        state = devices.replicate(mesh, state)

        @functools.cache
        def program(resident):
            data = (IMAGES, LABELS) if resident else (IMAGES[rows], LABELS[rows])
            arguments = (state, data, rows, 12, jax.random.key(0))
            return program_lib.compile_train(step, mesh, resident).lower(*arguments).compile()

        yield program, state, rows


def run(bn_program, calls, resident=True):
    """Runs the program in calls of the given lengths; returns all its arrays."""
    program, state, rows = bn_program
    key = jax.random.key(0)
    state, metrics, first = jax.tree.map(jnp.copy, state), [], 0
    for length in calls:
        indices = np.zeros_like(rows)
        indices[:length] = rows[first : first + length]
        data = (IMAGES, LABELS) if resident else (IMAGES[indices], LABELS[indices])
        state, found = program(resident)(state, data, indices, length, key)
        metrics.append(found[:length])
        first += length
    return [np.asarray(leaf) for leaf in jax.tree.leaves((state, jnp.concatenate(metrics)))]


def test_the_calls_do_not_change_a_bit(bn_program):
    whole = run(bn_program, [12])
    for calls in ([1] * 12, [5, 1, 6]):
        for one, other in zip(whole, run(bn_program, calls), strict=True):
            np.testing.assert_array_equal(one, other)


def test_streamed_batches_are_the_resident_ones(bn_program):
    for one, other in zip(run(bn_program, [12]), run(bn_program, [7, 5], False), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_the_gradients_are_joined_into_one_all_reduce(bn_program):
    text = bn_program[0](True).as_text()
    # Two norms exchange their sums once forward and once backward; the gradients, loss and
    # accuracy of the step go together. Nothing is gathered.
    assert text.count(" all-reduce(") <= 2 * 2 + 2
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


@pytest.mark.slow
def test_a_step_of_convolutions_in_bfloat16_on_two_devices_is_near_float32():
    config, mesh = tiny.config(), devices.make_mesh(32)
    options = {"conv_features": (8,), "dense_features": (8,), "dense_dropout_rate": 0.2}
    losses, moves = [], []
    for dtype in (jnp.float32, jnp.bfloat16):
        with jax.set_mesh(mesh):
            model = registry.create("bn_cnn", 10, dtype=dtype, **options)
            state, step = make(config, model, optax.sgd(0.01))
            before = jax.device_get(state.params)
            program = program_lib.compile_train(step, mesh, resident=True)
            rows = np.arange(32, dtype=np.int32)[None]
            arguments = (devices.replicate(mesh, state), (IMAGES, LABELS), rows, 1)
            new, metrics = program(*arguments, jax.random.key(0))
        assert {leaf.dtype for leaf in jax.tree.leaves(new.params)} == {jnp.dtype("float32")}
        losses.append(metrics[0, 0])
        move = jax.tree.map(lambda a, b: np.asarray(a) - b, new.params, before)
        moves.append(np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(move)]))
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-2)
    distance = np.linalg.norm(moves[1] - moves[0]) / np.linalg.norm(moves[0])
    assert 0 < distance < 0.1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_all_finite(dtype):
    good = {"a": jnp.ones((2, 3), dtype), "b": jnp.array([1, 2])}
    assert state_lib.all_finite(good).tolist() == [True]
    for bad in (jnp.nan, jnp.inf):
        tree = good | {"c": jnp.array([1.0, bad], dtype)}
        assert state_lib.all_finite(tree).tolist() == [False]
        assert state_lib.all_finite(tree, 2).tolist() == [True, False]
