"""Metrics, merged and restored from their sums."""

import jax
import jax.numpy as jnp

from cifar_jax.training import metrics


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
