"""The worker of this project: its own models, state, feed and programs, as `main.py` trains.

It uses the requested number of CPU devices, or the number that `devices.configure_jax` chooses. The
images are resident as uint8, the steps in one compiled loop; no augmentation.
"""

import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from benchmarks.peers import protocol
from cifar_jax.augment import batch as augment
from cifar_jax.config import durations as durations_lib
from cifar_jax.data import datasets
from cifar_jax.evaluation import views
from cifar_jax.models import layer_table, registry
from cifar_jax.optim import build
from cifar_jax.parallel import devices, seeds
from cifar_jax.runs import provenance
from cifar_jax.training import check, metrics, state
from cifar_jax.training import program as program_lib
from cifar_jax.training import step as step_lib
from configs import default

OPTIONS: dict[str, dict[str, Any]] = {"resnet": {"depth": 20}}
WITHOUT_DROPOUT = {
    "simple_cnn": {"dropout_rate": 0.0},
    "vgg_bn": {"dropout_rate": 0.0, "dense_dropout_rate": 0.0},
}


def make_config(model: str, batch_size: int, **options: Any) -> Any:
    config = default.get_config()
    config.batch_size = batch_size
    config.optimizer.name = "sgd"
    config.optimizer.learning_rate = protocol.LEARNING_RATE
    config.optimizer.momentum = protocol.MOMENTUM
    with config.unlocked():
        config.model = {"name": model} | OPTIONS.get(model, {}) | options
    check.check_config(config)
    return config


class Training:
    """A run without a workdir: the state on the devices and the program that trains it.

    Of several seeds, if the config says so.
    """

    def __init__(self, config: Any, images: np.ndarray, labels: np.ndarray):
        own = self.seeds = seeds.seed_list(config)
        self.split = datasets.Split(images, labels)
        channels = images.shape[-1]
        self.mean, self.std = (protocol.MEAN,) * channels, (protocol.STD,) * channels
        durations = durations_lib.resolve_durations(config, len(labels))
        self.mesh = devices.make_mesh(config.batch_size, len(own))
        self.model = registry.create_model(config, protocol.NUM_CLASSES)
        self.key = seeds.stack(self.mesh, [jax.random.key(seed) for seed in own])
        self.step, self.batch_size = 0, config.batch_size
        with jax.set_mesh(self.mesh):
            create = jax.jit(state.make_init(config, durations, self.model, images.shape[1:]))
            self.state = seeds.stack(self.mesh, [create(jax.random.key(seed)) for seed in own])
            self.feed = program_lib.Feed(
                self.split, self.mesh, own, config.batch_size, resident=True
            )
            optimizer = build.create_optimizer(config, durations)
            self.train_step = step_lib.make_train_step(
                self.model, optimizer, config, self.mean, self.std, durations.steps_per_epoch
            )
            self.program = program_lib.compile_train(
                self.train_step, self.mesh, True, len(own), seeds.at_once(config)
            )

    def train(self, num_steps: int, steps_per_call: int | None = None) -> dict[str, float]:
        """Makes steps in calls of an epoch at most; returns the mean loss and accuracy."""
        most = steps_per_call or self.feed.capacity
        with jax.set_mesh(self.mesh):
            sums: metrics.Sums = {}
            last = self.step + num_steps
            while self.step < last:
                number = min(most, self.feed.capacity, last - self.step)
                data, indices = self.feed(self.step, number)
                arguments = (self.state, data, indices, number, self.key)
                self.state, found = self.program(*arguments)
                measured = np.asarray(found)[..., :number, :]
                sums = metrics.add_steps(sums, measured, self.batch_size)
                self.step += number
            return metrics.means(sums)


def prepare(model: str, batch_size: int) -> protocol.Runner:
    config = make_config(model, batch_size)
    training = Training(config, *protocol.make_data(model))
    predict = views.make_predict(training.model, training.mesh, training.mean, training.std)
    # Evaluation goes in calls of one shape: about ten of these make a split.
    batches_per_call = max(1, protocol.NUM_EXAMPLES // batch_size // 10)
    images = training.split.images[: batches_per_call * batch_size]

    def train(num_steps: int) -> float:
        begun = time.perf_counter()
        training.train(num_steps)
        return time.perf_counter() - begun

    def infer(num_batches: int) -> float:
        num_calls = -(-num_batches // batches_per_call)
        begun = time.perf_counter()
        with jax.set_mesh(training.mesh):
            for _ in range(num_calls):
                predict(training.state.variables(), images, batch_size)
        seconds = time.perf_counter() - begun
        return seconds * num_batches / (num_calls * batches_per_call)

    return protocol.Runner(train, infer)


def time_input(model: str, batch_size: int, num_steps: int = 40) -> float:
    """Returns the seconds that input and augmentation of a batch take by themselves: taken from the
    resident images, mirrored, cropped, normalized. The sum, so that it is made, is counted too."""
    config = make_config(model, batch_size)
    config.augment.flip, config.augment.crop_padding = True, 4
    training = Training(config, *protocol.make_data(model))
    mean, std = training.mean, training.std

    def run(data, indices, key):
        def body(i, total):
            images = augment.apply(
                jax.random.fold_in(key, i), data[0][indices[i % len(indices)]], config.augment, (0,)
            )
            return total + augment.normalize(images, mean, std, jnp.float32).sum()

        return jax.lax.fori_loop(0, num_steps, body, jnp.zeros(()))

    with jax.set_mesh(training.mesh):
        program = jax.jit(run)
        arguments = (*training.feed(0, training.feed.capacity), training.key)
        program(*arguments).block_until_ready()
        begun = time.perf_counter()
        program(*arguments).block_until_ready()
    return (time.perf_counter() - begun) / num_steps


def get_layer(tree: Any, path: str) -> Any:
    for name in path.split("/"):
        tree = tree.get(name, {})
    return tree


def put_layers(model: nn.Module, tree: Any, layers: protocol.Variables, shape: Any) -> Any:
    """Returns the collection `tree` with the arrays of `layers`, matched in the order of calls."""
    tree = jax.tree.map(np.asarray, tree)
    rows = layer_table.layer_table(model, shape)
    for row, layer in zip(rows, layers, strict=True):
        own = get_layer(tree, row.path)
        own.update({name: array for name, array in layer.items() if name in own})
    return tree


def describe(model: str) -> list[dict[str, list[int]]]:
    """Returns for each layer, in the order of calls, name -> shape."""
    shape = protocol.image_shape(model)
    module = registry.create_model(make_config(model, 2), protocol.NUM_CLASSES)
    tree = jax.eval_shape(registry.make_variables(module, shape), jax.random.key(0))
    layers = []
    for row in layer_table.layer_table(module, shape):
        parts = [get_layer(tree[name], row.path) for name in tree]
        layers.append({name: list(leaf.shape) for part in parts for name, leaf in part.items()})
    return layers


def compute_losses(model: str, case: protocol.Case) -> dict[str, Any]:
    config = make_config(model, len(case.labels), **WITHOUT_DROPOUT.get(model, {}))
    training = Training(config, case.images, case.labels)
    shape = case.images.shape[1:]
    params, batch_stats = (
        put_layers(training.model, tree, case.layers, shape)
        for tree in (training.state.params, training.state.batch_stats)
    )
    fresh = training.state.replace(params=params, batch_stats=batch_stats)
    training.state = devices.replicate(training.mesh, fresh)
    trainable, moving = (
        sum(leaf.size for leaf in jax.tree.leaves(tree)) for tree in (params, batch_stats)
    )
    losses = [training.train(1)["loss"] for _ in range(3)]
    return {"parameters": trainable, "variables": trainable + moving, "losses": losses}


if __name__ == "__main__":
    devices.configure_jax(batch_size=32, num_cpu_devices=int(sys.argv[1]) if sys.argv[1:] else None)
    found = provenance.versions()
    versions = {name: found[name] for name in ("python", "jax", "jaxlib", "flax")}
    protocol.serve(
        protocol.timing_handlers(prepare, compute_losses)
        | {"describe": describe, "input": time_input},
        versions | {"devices": devices.describe_devices()},
    )
