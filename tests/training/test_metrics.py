"""Metrics, measured in each step and added up on the host."""

import jax.numpy as jnp
import numpy as np

from cifar_jax.training import metrics


def test_the_loss_and_the_correct_images_of_a_batch():
    logits = jnp.array([[2.0, 1.0], [0.0, 1.0], [3.0, 0.0]])
    measured = metrics.measure(jnp.array([0.5, 1.5, 4.0]), logits, jnp.array([0, 0, 0]))
    assert measured.dtype == jnp.float32
    assert measured.tolist() == [6.0, 2.0]


def test_steps_are_added_in_any_division_into_calls():
    steps = np.random.default_rng(0).random((7, 2)).astype(np.float32)
    whole = metrics.add_steps({}, steps, 4)
    parts = metrics.add_steps(metrics.add_steps({}, steps[:3], 4), steps[3:], 4)
    assert parts == whole
    assert whole["loss"] == (sum(map(float, steps[:, 0])), 28)
    assert metrics.means(whole)["accuracy"] == sum(map(float, steps[:, 1])) / 28
    assert metrics.add_steps(whole, steps[:0], 4) == whole


def test_each_seed_has_its_own_sums():
    steps = np.array([[[1, 2], [3, 4]], [[5, 0], [5, 1]]], np.float32)
    sums = metrics.add_steps({"loss": ([1.0, 2.0], [2.0, 2.0]), "accuracy": (0.0, 2.0)}, steps, 2)
    assert sums == {"loss": ([5, 12], [6, 6]), "accuracy": ([6, 1], [6, 6])}
    assert metrics.by_seed(sums)[1] == {"loss": (12, 6), "accuracy": (1, 6)}
    assert metrics.means(sums) == {"loss": 17 / 12, "accuracy": 7 / 12}
