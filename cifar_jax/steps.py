"""The train step and the program that runs many of them; the pass that evaluates.

Each is written for the whole batch and compiled by one `jax.jit` over the mesh: the batch is
divided over the axis "data", and the compiler puts in the all-reduces. The meaning stays that of
the whole batch, so BatchNorm, dropout and mixup do not know how many devices there are.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from cifar_jax import augment, losses, mixing, seeds
from cifar_jax.metrics import Metrics
from cifar_jax.state import TrainState

# images uint8 [batch, height, width, channels], labels int32 [batch], and which of the training
# images these are, int32 [batch]
Batch = tuple[jax.Array, jax.Array, jax.Array]
Step = Callable[[TrainState, Batch, jax.Array], tuple[TrainState, Metrics]]


def make_train_step(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    config: Any,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    steps_per_epoch: int,
) -> Step:
    """Returns the pure function (state, batch, key) -> (state, metrics) of one step.

    Args:
      model: the network.
      optimizer: its optimizer.
      config: the whole config; read here, once.
      mean: of each channel in units of pixel / 255.
      std: likewise.
      steps_per_epoch: an epoch's steps.
    """
    compute_gradient = jax.grad(_make_loss(model, config, mean, std), has_aux=True)
    if config.optimizer.accumulation_steps > 1:
        compute_gradient = _in_parts(compute_gradient, config.optimizer.accumulation_steps)
    ema_decay, alternating_flip = config.ema_decay, config.augment.alternating_flip

    def train_step(state: TrainState, batch: Batch, key: jax.Array) -> tuple[TrainState, Metrics]:
        images, labels, indices = batch
        if alternating_flip:
            epoch = state.step // steps_per_epoch
            images = augment.alternating_flip(key, images, indices, epoch)
        key = jax.random.fold_in(key, state.step)
        gradient, (batch_stats, metrics) = compute_gradient(
            state.params, state.batch_stats, (images, labels), key
        )
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = state.ema
        if ema_decay:
            new = {"params": params, "batch_stats": batch_stats}
            ema = optax.incremental_update(new, ema, 1 - ema_decay)
        state = TrainState(state.step + 1, params, batch_stats, opt_state, ema)
        return state, metrics

    return train_step


def _make_loss(
    model: nn.Module, config: Any, mean: tuple[float, ...], std: tuple[float, ...]
) -> Callable[..., Any]:
    """The function (params, batch_stats, batch, key) -> (loss, (batch_stats, metrics))."""
    num_classes, dtype = model.num_classes, model.dtype
    options, smoothing = config.augment, config.loss.label_smoothing
    fill = tuple(round(255 * value) for value in mean)

    def compute_loss(params, batch_stats, batch, key):
        images, labels = batch
        augment_key, mix_key, dropout_key = jax.random.split(key, 3)
        images = augment.apply(augment_key, images, options, fill)
        images = augment.normalize(images, mean, std, dtype)
        targets = losses.soft_targets(labels, num_classes, smoothing)
        images, targets = mixing.mix(mix_key, images, targets, options)
        logits, updates = model.apply(
            {"params": params, "batch_stats": batch_stats},
            images,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": dropout_key},
        )
        each = losses.cross_entropy(logits, targets)
        metrics = Metrics.single_from_model_output(loss=each, logits=logits, labels=labels)
        return jnp.mean(each), (updates.get("batch_stats", batch_stats), metrics)

    return compute_loss


def _in_parts(compute_gradient: Callable[..., Any], parts: int) -> Callable[..., Any]:
    """The mean gradient over equal parts of the batch; the running statistics go through them."""

    def compute(params, batch_stats, batch, key):
        # Neighbours go into different parts: then every device has a share of each part.
        split = jax.tree.map(lambda x: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1), batch)

        def add(carry, numbered):
            gradient, batch_stats, metrics = carry
            number, part = numbered
            more, (batch_stats, new) = compute_gradient(
                params, batch_stats, part, jax.random.fold_in(key, number)
            )
            return (optax.tree.add(gradient, more), batch_stats, metrics.merge(new)), None

        start = (optax.tree.zeros_like(params), batch_stats, Metrics.empty())
        (gradient, batch_stats, metrics), _ = jax.lax.scan(add, start, (jnp.arange(parts), split))
        return optax.tree.scale(1 / parts, gradient), (batch_stats, metrics)

    return compute


def compile_train(
    step: Step, mesh: Mesh, resident: bool, num_seeds: int = 1, at_once: bool = False
) -> jax.stages.Wrapped:
    """Returns the compiled program
    (state, metrics, data, indices, num_steps, key) -> (state, metrics).

    The number of steps is an argument, not a shape: one program makes any number of them, so a run
    that was stopped anywhere goes through the same instructions. The metrics of the steps are added
    to those given. The state is donated.

    With `resident`, `data` holds the whole training set on every device and `indices` int32
    [steps, batch] says which images form each step. Without, `data` holds the very images of the
    call, [steps, batch, ...].

    With more than one of `num_seeds`, state, metrics, indices, key and the images of the call have
    one axis more, their first, along which the runs lie; `at_once` is that of `seeds.spread`.
    """

    def run(state, metrics, data, indices, num_steps, key):
        def body(i, carry):
            state, metrics = carry
            images, labels = jax.tree.map(lambda x: x[indices[i]] if resident else x[i], data)
            state, more = step(state, (images, labels, indices[i]), key)
            return state, metrics.merge(more)

        return jax.lax.fori_loop(0, num_steps, body, (state, metrics))

    if num_seeds > 1:
        run = seeds.spread(run, mesh, (0, 0, None if resident else 0, 0, None, 0), at_once)
    whole, own, rows = (
        NamedSharding(mesh, spec)
        for spec in (PartitionSpec(), seeds.spec(num_seeds), seeds.spec(num_seeds, None, "data"))
    )
    return jax.jit(
        run,
        in_shardings=(own, own, whole if resident else rows, rows, whole, own),
        out_shardings=own,
        donate_argnums=0,
    )


@functools.lru_cache(maxsize=8)
def compile_predict(
    model: nn.Module,
    mesh: Mesh,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    views: Sequence[Callable[[jax.Array], jax.Array]] = (lambda images: images,),
    num_seeds: int = 1,
    at_once: bool = False,
) -> Callable[..., jax.Array]:
    """Returns the compiled program (variables, images) -> logits.

    Images are uint8 [batches, batch, height, width, channels], logits float32 [batches, batch,
    classes]; each image's logits depend on that image alone. They are the mean over the `views`,
    functions from a batch of images to as many others. With more than one of `num_seeds`, variables
    and logits have the axis of the runs, as in `compile_train`.
    """

    def predict(variables, images):
        def one(batch):
            batch = augment.normalize(batch, mean, std, model.dtype)
            logits: Any = [model.apply(variables, view(batch), train=False) for view in views]
            return sum(logits) / len(views)

        return jax.lax.map(one, images)

    if num_seeds > 1:
        predict = seeds.spread(predict, mesh, (0, None), at_once)
    own, rows = (
        NamedSharding(mesh, spec) for spec in (seeds.spec(num_seeds), PartitionSpec(None, "data"))
    )
    return jax.jit(predict, in_shardings=(own, rows), out_shardings=own)
