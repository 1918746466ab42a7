"""Schedules at their corners; optimizers against NumPy."""

import jax.numpy as jnp
import numpy as np
import pytest

from cifar_jax.config.durations import Durations
from cifar_jax.optim import build as optim
from cifar_jax.optim import schedules
from configs import default

pytestmark = pytest.mark.usefixtures("_strict_shapes")
DURATIONS = Durations(
    10, total=100, warmup=20, eval_every=10, checkpoint_every=10, milestones=(50,)
)


def schedule(name, warmup=20, **fields):
    config = default.get_config().schedule
    config.update({"name": name, **fields})
    return schedules.shape_schedule(config, 0.4, DURATIONS._replace(warmup=warmup))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("constant", {20: 0.4, 99: 0.4}),
        ("step", {20: 0.4, 49: 0.4, 50: 0.04, 99: 0.04}),
        ("cosine", {20: 0.4, 60: 0.04 + 0.18, 100: 0.04}),
        ("linear", {20: 0.4, 60: 0.22, 100: 0.04}),
    ],
)
def test_schedules_with_warmup(name, expected):
    rate = schedule(name, final_fraction=0.1)
    assert rate(0) == 0
    np.testing.assert_allclose(rate(10), 0.2, rtol=1e-6)
    for step, value in expected.items():
        np.testing.assert_allclose(rate(step), value, rtol=1e-5, err_msg=f"step {step}")


def test_schedule_without_warmup_starts_at_the_peak():
    np.testing.assert_allclose(schedule("cosine", warmup=0)(0), 0.4)
    np.testing.assert_allclose(schedule("step", warmup=0)(50), 0.04, rtol=1e-6)


def test_one_cycle():
    rate = schedule("one_cycle", final_fraction=0.01)
    np.testing.assert_allclose(rate(0), 0.4 / 25, rtol=1e-5)
    np.testing.assert_allclose(rate(10), (0.4 + 0.4 / 25) / 2, rtol=1e-5)
    np.testing.assert_allclose(rate(20), 0.4, rtol=1e-5)
    np.testing.assert_allclose(rate(60), (0.4 + 0.004) / 2, rtol=1e-5)
    np.testing.assert_allclose(rate(100), 0.004, rtol=1e-4)


@pytest.mark.parametrize(("rule", "factor"), [("none", 1), ("linear", 4), ("sqrt", 2)])
def test_the_learning_rate_for_another_batch_size(rule, factor):
    config = default.get_config()
    config.batch_size = 1024
    config.optimizer.update(
        {"learning_rate": 0.1, "learning_rate_scaling": rule, "base_batch_size": 256}
    )
    assert schedules.batch_size_factor(config) == factor
    with config.unlocked():
        config.optimizer.groups.heads = default.get_group("head/.*")
    config.optimizer.groups.heads.learning_rate = 0.02
    durations = DURATIONS._replace(warmup=0)
    rate = schedules.create_schedule(config, durations)
    np.testing.assert_allclose(rate(5), 0.1 * factor, rtol=1e-6)
    rate = schedules.create_group_schedules(config, durations)["heads"]
    np.testing.assert_allclose(rate(5), 0.02 * factor, rtol=1e-6)
    config.batch_size = 256
    assert schedules.batch_size_factor(config) == 1


PARAMS = {"kernel": jnp.array([[1.0, -2.0]]), "bias": jnp.array([3.0])}
GRADIENT = {"kernel": jnp.array([[3.0, 0.0]]), "bias": jnp.array([4.0])}


def updates(**fields):
    config = default.get_config().optimizer
    config.update({"name": "sgd", "learning_rate": 0.1, **fields})
    optimizer = optim.combine_rules(config, lambda step: 0.1)
    state = optimizer.init(PARAMS)
    for _ in range(2):
        result, state = optimizer.update(GRADIENT, state, PARAMS)
    return result


def test_sgd_adds_the_decay_to_the_gradient_of_kernels_only():
    result = updates(weight_decay=0.5)
    np.testing.assert_allclose(result["kernel"], [[-0.1 * (3 + 0.5), -0.1 * (0 - 1)]], rtol=1e-6)
    np.testing.assert_allclose(result["bias"], [-0.4], rtol=1e-6)


def test_the_decay_reaches_biases_when_asked():
    result = updates(weight_decay=0.5, decay_norm_and_bias=True)
    np.testing.assert_allclose(result["bias"], [-0.1 * (4 + 1.5)], rtol=1e-6)


def test_nesterov_momentum():
    # Second step: m = g + 0.9 g, update = g + 0.9 m.
    result = updates(momentum=0.9, nesterov=True)
    np.testing.assert_allclose(result["bias"], [-0.1 * 4 * (1 + 0.9 * 1.9)], rtol=1e-6)


def test_clipping_by_the_global_norm():
    result = updates(clip_norm=1.0)  # the gradient's norm is 5
    np.testing.assert_allclose(result["kernel"], [[-0.1 * 3 / 5, 0]], rtol=1e-6)


def test_adamw_decays_decoupled():
    plain, decayed = updates(name="adamw"), updates(name="adamw", weight_decay=0.5)
    np.testing.assert_allclose(
        decayed["kernel"] - plain["kernel"], -0.1 * 0.5 * PARAMS["kernel"], rtol=1e-5
    )
    np.testing.assert_allclose(decayed["bias"], plain["bias"])


# Second steps with the same gradient and the decay 0.01, which adam and rmsprop take as L2.
LAMB = np.array([[1 + 0.01 * 1, 0 - 0.01 * 2]])


@pytest.mark.parametrize(
    ("name", "kernel", "bias"),
    [
        ("adam", [[-0.1, 0.1]], -0.1),
        ("lion", [[-0.1 * (1 + 0.01), 0.1 * 0.02]], -0.1),
        ("rmsprop", np.array([[-0.1, 0.1]]) / np.sqrt(1 - 0.9**2), -0.1 / np.sqrt(1 - 0.9**2)),
        ("lamb", -0.1 * np.sqrt(1**2 + 2**2) * LAMB / np.linalg.norm(LAMB), -0.1 * 3),
    ],
)
def test_other_rules_by_their_names(name, kernel, bias):
    result = updates(name=name, weight_decay=0.01)
    np.testing.assert_allclose(result["kernel"], kernel, rtol=2e-4)
    np.testing.assert_allclose(result["bias"], [bias], rtol=2e-4)


def test_a_decay_can_be_decoupled_where_the_rule_has_none_and_coupled_where_it_has():
    plain = updates(momentum=0.9)
    decayed = updates(momentum=0.9, weight_decay=0.5, decoupled_decay=True)
    change = decayed["kernel"] - plain["kernel"]
    np.testing.assert_allclose(change, -0.1 * 0.5 * PARAMS["kernel"], rtol=1e-5)
    np.testing.assert_allclose(decayed["bias"], plain["bias"])
    coupled = updates(name="adamw", weight_decay=0.5, decoupled_decay=False)
    plain = updates(name="adamw")
    np.testing.assert_allclose(plain["kernel"], [[-0.1, 0]], rtol=1e-4)
    np.testing.assert_allclose(coupled["kernel"], [[-0.1, 0.1]], rtol=1e-4)
