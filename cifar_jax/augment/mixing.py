"""Augmentation by mixing two images of a batch: (key, images, targets) -> (images, targets)."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from cifar_jax.augment import batch as augment


def _draw_share(key: jax.Array, alpha: ArrayLike) -> jax.Array:
    """Draws from Beta(alpha, alpha); `jax.random.beta` takes twice as long to compile."""
    logs = jax.random.loggamma(key, alpha, (2,))
    return jax.nn.sigmoid(logs[0] - logs[1])


def _outside_rectangle(key: jax.Array, share: jax.Array, height: int, width: int) -> jax.Array:
    """Returns [1, h, w, 1] float32: 0 within a random rectangle of area 1 - share, 1 outside."""
    scale = jnp.sqrt(1 - share)
    sides = [(scale * length).astype(jnp.int32) for length in (height, width)]
    centre = jax.random.randint(key, (2,), 0, jnp.array([height, width]))
    return jnp.where(augment.rectangle(centre, sides, height, width), 0.0, 1.0)[None, ..., None]


def _blend(
    images: jax.Array, targets: jax.Array, weights: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Mixes a batch with its reverse; each image has the share `weights`, [] or [1, h, w, 1]."""

    def mix_reversed(array, weight):
        own, partner = array.astype(jnp.float32), array[::-1].astype(jnp.float32)
        return (weight * own + (1 - weight) * partner).astype(array.dtype)

    return mix_reversed(images, weights), mix_reversed(targets, weights.mean())


def mixup(
    key: jax.Array, images: jax.Array, targets: jax.Array, alpha: float
) -> tuple[jax.Array, jax.Array]:
    """Averages each image and its target with another image and its target.

    Zhang, Cisse, Dauphin and Lopez-Paz, "mixup: Beyond empirical risk minimization", 2018. As in
    the authors' experiments there is one weight for the whole batch. An image's partner is the one
    at the same place of the reversed batch; batches are shuffled, so this pairing is random.

    Args:
      key: a PRNG key.
      images: [batch, h, w, c], floating point.
      targets: [batch, classes], the probability of each class.
      alpha: above 0; the weight is drawn from Beta(alpha, alpha).

    Returns:
      Images and targets, in the same shapes and dtypes.
    """
    return _blend(images, targets, _draw_share(key, alpha))


def cutmix(
    key: jax.Array, images: jax.Array, targets: jax.Array, alpha: float
) -> tuple[jax.Array, jax.Array]:
    """Pastes a rectangle of another image into each image, and mixes the targets by area.

    Yun et al., "CutMix: Regularization strategy to train strong classifiers with localizable
    features", 2019. As in the paper there is one rectangle for the whole batch. It has the image's
    proportions, its share of the area is drawn from Beta(alpha, alpha), its centre can be any
    pixel, and it is cut off at the border; the targets' weights follow the area that remains.
    Arguments and results are those of `mixup`.
    """
    share_key, place_key = jax.random.split(key)
    share = _draw_share(share_key, alpha)
    return _blend(images, targets, _outside_rectangle(place_key, share, *images.shape[1:3]))


def mix(
    key: jax.Array, images: jax.Array, targets: jax.Array, options: Any
) -> tuple[jax.Array, jax.Array]:
    """Applies `mixup` or `cutmix`; with both on, one of the two, drawn evenly at each call.

    `options` has the fields mixup_alpha and cutmix_alpha, which are read while tracing; 0 turns one
    off. The other arguments and the results are those of `mixup`.
    """
    alphas = (options.mixup_alpha, options.cutmix_alpha)
    if not any(alphas):
        return images, targets
    if not all(alphas):
        function = mixup if alphas[0] else cutmix
        return function(key, images, targets, max(alphas))
    choice_key, share_key, place_key = jax.random.split(key, 3)
    averaged = jax.random.bernoulli(choice_key)
    share = _draw_share(share_key, jnp.where(averaged, *alphas))
    pasted = _outside_rectangle(place_key, share, *images.shape[1:3])
    return _blend(images, targets, jnp.where(averaged, share, pasted))
