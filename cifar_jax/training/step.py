"""The train step: augmentation, loss, gradient and update.

It is written for the whole batch and compiled by one `jax.jit` over the mesh: the batch is divided
over the axis "data", and the compiler inserts the all-reduces. BatchNorm, dropout and mixup see the
whole batch, however many devices there are.
"""

from collections.abc import Callable, Collection
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from cifar_jax.augment import batch as augment
from cifar_jax.augment import mixing
from cifar_jax.augment.own import augment_by
from cifar_jax.errors import UserError
from cifar_jax.optim import groups
from cifar_jax.optim.schedules import find_ends
from cifar_jax.training.metrics import NAMES, measure
from cifar_jax.training.state import TrainState

# images uint8 [batch, height, width, channels], labels int32 [batch], and their indices in the
# training set, int32 [batch]
Batch = tuple[jax.Array, jax.Array, jax.Array]
Step = Callable[[TrainState, Batch, jax.Array], tuple[TrainState, jax.Array]]


def make_train_step(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    config: Any,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    steps_per_epoch: int,
    first_step: int = 0,
    class_weights: np.ndarray | None = None,
) -> Step:
    """Returns the pure function (state, batch, key) -> (state, metrics) of one step.

    The metrics are those of `metrics.measure`.

    Args:
      model: the network.
      optimizer: its optimizer.
      config: the whole config; read here, once.
      mean: of each channel, in units of pixel / 255.
      std: of each channel, in units of pixel / 255.
      steps_per_epoch: steps in an epoch.
      first_step: at which the function is used first: parameters that are frozen, or whose group's
        schedule has ended by then, get the gradient zero, and nothing is computed for it.
      class_weights: those of `resolve_class_weights`.
    """
    ends = find_ends(config.optimizer, steps_per_epoch)
    ended = {name for name, end in ends.items() if end <= first_step}
    compute_loss = _make_loss(model, config, mean, std, class_weights)
    if ended:
        compute_loss = _stop_gradients(compute_loss, config.optimizer, ended)
    compute_gradient = _accumulate(
        jax.grad(compute_loss, has_aux=True), config.optimizer.accumulation_steps
    )
    ema_decay, alternating_flip = config.ema_decay, config.augment.alternating_flip
    optimizer = optax.with_extra_args_support(optimizer)

    def train_step(state: TrainState, batch: Batch, key: jax.Array) -> tuple[TrainState, jax.Array]:
        images, labels, indices = batch
        if alternating_flip:
            epoch = state.step // steps_per_epoch
            images = augment.alternating_flip(key, images, indices, epoch)
        key = jax.random.fold_in(key, state.step)
        rest = (state.batch_stats, (images, labels), key)
        gradient, (batch_stats, metrics) = compute_gradient(state.params, *rest)
        # Only sharpness-aware minimization computes another gradient.
        again = {"grad_fn": lambda params, _: compute_gradient(params, *rest)[0]}
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params, **again)
        params = optax.apply_updates(state.params, updates)
        ema = state.ema
        if ema_decay:
            new = {"params": params, "batch_stats": batch_stats}
            # Otherwise the average of a short run would be mostly its initial weights.
            number = state.step.astype(jnp.float32)
            decay = jnp.minimum(ema_decay, (1 + number) / (10 + number))
            ema = optax.incremental_update(new, ema, 1 - decay)
        state = TrainState(state.step + 1, params, batch_stats, opt_state, ema)
        return state, metrics

    return train_step


def resolve_class_weights(given: Any, labels: np.ndarray, num_classes: int) -> np.ndarray | None:
    """Returns the factors of the classes in the loss, float32 [classes]; None if all are the same.

    Args:
      given: the config's `loss.class_weights`. "balanced" factors are inversely proportional to the
        number of images of a class; their mean over the images is 1.
      labels: int32 [images], of the training split.
      num_classes: the number of classes, some of which may have no images.

    Raises:
      UserError: the number of factors is not that of the classes.
    """
    if given is None:
        return None
    if given == "balanced":
        counts = np.bincount(labels, minlength=num_classes)
        weights = len(labels) / (np.count_nonzero(counts) * np.maximum(counts, 1))
        return np.where(counts, weights, 0).astype(np.float32)
    if len(given) != num_classes:
        raise UserError(
            f"loss.class_weights has {len(given)} numbers, but the data have {num_classes} classes:"
            " give one for each class"
        )
    return np.asarray(given, np.float32)


def _make_loss(
    model: nn.Module,
    config: Any,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    class_weights: np.ndarray | None,
) -> Callable[..., Any]:
    """Returns the function (params, batch_stats, batch, key) -> (loss, (batch_stats, metrics))."""
    options, smoothing = config.augment, config.loss.label_smoothing
    fill = tuple(round(255 * value) for value in mean)

    def compute_loss(params, batch_stats, batch, key):
        images, labels = batch
        augment_key, mix_key, dropout_key = jax.random.split(key, 3)
        images = augment.apply(augment_key, images, options, fill)
        if options.custom:
            images = augment_by(options.custom, augment_key, images)
        images = augment.normalize(images, mean, std, model.dtype)
        targets = optax.smooth_labels(jax.nn.one_hot(labels, model.num_classes), smoothing)
        images, targets = mixing.mix(mix_key, images, targets, options)
        if class_weights is not None:
            targets = targets * class_weights
        logits, updates = model.apply(
            {"params": params, "batch_stats": batch_stats},
            images,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": dropout_key},
        )
        losses = optax.softmax_cross_entropy(logits.astype(jnp.float32), targets)
        metrics = measure(losses, logits, labels)
        return jnp.mean(losses), (updates.get("batch_stats", batch_stats), metrics)

    return compute_loss


def _stop_gradients(
    compute_loss: Callable[..., Any], optimizer: Any, ended: Collection[str]
) -> Callable[..., Any]:
    """Returns the same function with a gradient of zero for the parameters of these groups."""
    patterns = {name: group.params for name, group in optimizer.groups.items()}

    def compute(params, *rest):
        params = jax.tree.map(
            lambda leaf, name: jax.lax.stop_gradient(leaf) if name in ended else leaf,
            params,
            groups.label(params, patterns),
        )
        return compute_loss(params, *rest)

    return compute


def _accumulate(compute_gradient: Callable[..., Any], parts: int) -> Callable[..., Any]:
    """Returns the mean gradient over equal parts of the batch, computed one after another.

    The running statistics pass from part to part.
    """
    if parts == 1:
        return compute_gradient

    def compute(params, batch_stats, batch, key):
        # Neighbours go into different parts, so that every device has a share of each part.
        split = jax.tree.map(lambda x: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1), batch)

        def add(carry, numbered):
            gradient, batch_stats, metrics = carry
            number, part = numbered
            more, (batch_stats, new) = compute_gradient(
                params, batch_stats, part, jax.random.fold_in(key, number)
            )
            return (optax.tree.add(gradient, more), batch_stats, metrics + new), None

        start = (optax.tree.zeros_like(params), batch_stats, jnp.zeros(len(NAMES), jnp.float32))
        (gradient, batch_stats, metrics), _ = jax.lax.scan(add, start, (jnp.arange(parts), split))
        return optax.tree.scale(1 / parts, gradient), (batch_stats, metrics)

    return compute
