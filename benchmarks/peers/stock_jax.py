"""The worker of JAX and Flax as they come: XLA's own operations, one device, a jitted step.

Imports nothing of this project: the models are written again, and that both compute the same is
checked before anything is timed.
"""

import functools
import itertools
import os
import platform
import time
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from benchmarks.peers import protocol


class Net(nn.Module):
    """Any of the models, its layers named by the order of their calls."""

    architecture: str
    dropout: tuple[float, ...]

    @nn.compact
    def __call__(self, x, train: bool):
        count = itertools.count()

        def make(kind, *arguments, **options):
            # Numbered when called: in f(...)(g(...)(x)) f is made before g.
            return lambda x: kind(*arguments, **options, name=f"layer_{next(count):03d}")(x)

        norm = functools.partial(nn.BatchNorm, use_running_average=not train, momentum=0.9)
        drop = functools.partial(nn.Dropout, deterministic=not train)
        return globals()[self.architecture](make, norm, drop, self.dropout, x)


def halve(x):
    return nn.max_pool(x, (2, 2), strides=(2, 2))


def mlp(make, norm, drop, rates, x):
    x = x.reshape(len(x), -1)
    for size in (500, 50):
        x = nn.sigmoid(make(nn.Dense, size)(x))
    return make(nn.Dense, protocol.NUM_CLASSES)(x)


def simple_cnn(make, norm, drop, rates, x):
    for _ in range(2):
        x = nn.relu(make(nn.Conv, 32, (3, 3))(x))
    x = halve(x).reshape(len(x), -1)
    x = drop(rates[0])(nn.relu(make(nn.Dense, 512)(x)))
    return make(nn.Dense, protocol.NUM_CLASSES)(x)


def vgg_bn(make, norm, drop, rates, x):
    for features in (32, 64, 128):
        for _ in range(2):
            x = make(norm)(nn.relu(make(nn.Conv, features, (3, 3))(x)))
        x = drop(rates[0])(halve(x))
    x = make(norm)(nn.relu(make(nn.Dense, 1024)(x.reshape(len(x), -1))))
    x = make(norm)(nn.relu(make(nn.Dense, 100)(drop(rates[1])(x))))
    return make(nn.Dense, protocol.NUM_CLASSES)(x)


def resnet(make, norm, drop, rates, x):
    conv = functools.partial(nn.Conv, kernel_size=(3, 3), padding=1, use_bias=False)
    x = make(conv, 16)(x)
    x = nn.relu(make(norm)(x))
    for stage, block in itertools.product(range(3), range(3)):
        features = 16 * 2**stage
        strides = 2 if stage and not block else 1
        y = make(conv, features, strides=strides)(x)
        y = make(conv, features)(nn.relu(make(norm)(y)))
        y = make(norm)(y)
        x = x[:, ::strides, ::strides]
        x = nn.relu(y + jnp.pad(x, ((0, 0),) * 3 + ((0, features - x.shape[-1]),)))
    return make(nn.Dense, protocol.NUM_CLASSES)(x.mean(axis=(1, 2)))


def speedrun(make, norm, drop, rates, x):
    gelu = functools.partial(nn.gelu, approximate=False)
    norm = functools.partial(norm, momentum=0.6, epsilon=1e-12, use_scale=False)
    conv = functools.partial(nn.Conv, kernel_size=(3, 3), use_bias=False)
    x = gelu(make(nn.Conv, 24, (2, 2), padding="VALID")(x))
    for features in (64, 256, 256):
        x = gelu(make(norm)(halve(make(conv, features)(x))))
        x = gelu(make(norm)(make(conv, features)(x)))
    x = nn.max_pool(x, (3, 3), strides=(3, 3)).reshape(len(x), -1)
    return make(nn.Dense, protocol.NUM_CLASSES, use_bias=False)(x) / 256


optimizer = optax.sgd(protocol.LEARNING_RATE, momentum=protocol.MOMENTUM)


def create(model: str, dropout: tuple[float, ...]) -> tuple[Net, Any]:
    """Returns the network and its state (params, batch_stats, opt_state)."""
    net = Net(model, dropout)
    images = jnp.zeros((1, *protocol.image_shape(model)))
    variables = jax.jit(functools.partial(net.init, train=False))(jax.random.key(0), images)
    params = variables["params"]
    return net, (params, variables.get("batch_stats", {}), optimizer.init(params))


def compile_step(net: Net) -> Any:
    """Returns the jitted (state, images, labels, key) -> (state, loss, number of right answers)."""

    def step(state, images, labels, key):
        params, batch_stats, opt_state = state

        def compute_loss(params):
            logits, updates = net.apply(
                {"params": params, "batch_stats": batch_stats},
                images,
                train=True,
                mutable=["batch_stats"],
                rngs={"dropout": key},
            )
            each = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            correct = jnp.sum(logits.argmax(axis=1) == labels)
            return each.mean(), (updates.get("batch_stats", {}), correct)

        (loss, (batch_stats, correct)), gradient = jax.value_and_grad(compute_loss, has_aux=True)(
            params
        )
        updates, opt_state = optimizer.update(gradient, opt_state, params)
        return (optax.apply_updates(params, updates), batch_stats, opt_state), loss, correct

    return jax.jit(step, donate_argnums=0)


def prepare(model: str, batch_size: int) -> protocol.Runner:
    net, state = create(model, protocol.DROPOUT.get(model, ()))
    step = compile_step(net)
    images, labels = protocol.make_data(model)
    images = protocol.normalize(images)
    batches = protocol.index_batches(batch_size)
    keys = map(jax.random.key, itertools.count())
    logits_of = jax.jit(functools.partial(net.apply, train=False))

    def train(num_steps: int) -> float:
        nonlocal state
        begun = time.perf_counter()
        for _ in range(num_steps):
            rows = next(batches)
            state, loss, correct = step(state, images[rows], labels[rows], next(keys))
        jax.block_until_ready((state, loss, correct))
        return time.perf_counter() - begun

    def infer(num_batches: int) -> float:
        variables = {"params": state[0], "batch_stats": state[1]}
        begun = time.perf_counter()
        for _ in range(num_batches):
            np.asarray(logits_of(variables, images[:batch_size]))
        return time.perf_counter() - begun

    return protocol.Runner(train, infer)


def compute_losses(model: str, case: protocol.Case) -> dict[str, Any]:
    net, (params, batch_stats, _) = create(model, (0.0, 0.0))
    for collection in (params, batch_stats):
        for name, own in collection.items():
            layer = case.layers[int(name.removeprefix("layer_"))]
            collection[name] = {key: jnp.asarray(layer[key]) for key in own}
    state = (params, batch_stats, optimizer.init(params))
    sizes = [sum(leaf.size for leaf in jax.tree.leaves(tree)) for tree in state[:2]]
    step, images, losses = compile_step(net), protocol.normalize(case.images), []
    for _ in range(3):
        state, loss, _ = step(state, images, case.labels, jax.random.key(0))
        losses.append(float(loss))
    return {"parameters": sizes[0], "variables": sum(sizes), "losses": losses}


if __name__ == "__main__":
    os.environ.pop("XLA_FLAGS", None)
    jax.config.update("jax_num_cpu_devices", 1)
    protocol.serve(
        protocol.timing_handlers(prepare, compute_losses),
        {"python": platform.python_version(), "jax": jax.__version__, "flax": flax.__version__},
    )
