"""Losses: logits and targets in, one number for each image out."""

import jax
import jax.numpy as jnp


def soft_targets(labels: jax.Array, num_classes: int, smoothing: float = 0.0) -> jax.Array:
    """Returns target probabilities, float32 [batch, classes].

    Label smoothing (Szegedy et al., "Rethinking the Inception Architecture", 2016) spreads a share
    of each target evenly over all classes.

    Args:
      labels: int [batch].
      num_classes: number of classes.
      smoothing: the share, 0 <= smoothing < 1.
    """
    return jax.nn.one_hot(labels, num_classes) * (1 - smoothing) + smoothing / num_classes


def cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Returns the cross-entropy of each image in nats, float32 [batch].

    Args:
      logits: [batch, classes].
      targets: probabilities, [batch, classes].
    """
    return -jnp.sum(targets * jax.nn.log_softmax(logits.astype(jnp.float32)), axis=-1)
