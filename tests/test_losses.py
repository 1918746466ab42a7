"""Losses and metrics against NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np

from cifar_jax import losses, metrics


def test_cross_entropy_with_smoothing():
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(5, 4)) * 5
    labels = np.array([0, 3, 1, 1, 2])
    targets = np.full((5, 4), 0.2 / 4)
    targets[np.arange(5), labels] += 0.8
    log_probabilities = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    smoothed = losses.soft_targets(jnp.asarray(labels), 4, 0.2)
    np.testing.assert_allclose(smoothed, targets, rtol=1e-6)
    np.testing.assert_allclose(
        losses.cross_entropy(jnp.asarray(logits, jnp.float32), smoothed),
        -(targets * log_probabilities).sum(axis=1),
        rtol=1e-5,
    )


def test_metrics_merge_and_come_back_from_their_sums():
    logits = jnp.array([[2.0, 1.0], [0.0, 1.0], [3.0, 0.0]])
    labels, each = jnp.array([0, 0, 0]), jnp.array([0.5, 1.5, 4.0])
    first = metrics.Metrics.single_from_model_output(
        loss=each[:2], logits=logits[:2], labels=labels[:2]
    )
    second = metrics.Metrics.single_from_model_output(
        loss=each[2:], logits=logits[2:], labels=labels[2:]
    )
    sums = metrics.to_sums(jax.device_get(first.merge(second)))
    assert sums == {"loss": (6.0, 3.0), "accuracy": (2.0, 3.0)}
    assert metrics.means(sums) == {"loss": 2.0, "accuracy": 2 / 3}
    again = metrics.from_sums(metrics.to_sums(jax.device_get(first))).merge(second)
    assert metrics.to_sums(jax.device_get(again)) == sums
    assert metrics.to_sums(metrics.from_sums({})) == {"loss": (0.0, 0.0), "accuracy": (0.0, 0.0)}
