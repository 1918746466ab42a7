"""Runs of a config without a workdir, in programs that are compiled once, to be timed."""

import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType

from cifar_jax.augment import batch as augment
from cifar_jax.config import durations as durations_lib
from cifar_jax.data import datasets
from cifar_jax.errors import UserError
from cifar_jax.evaluation import views
from cifar_jax.models import registry
from cifar_jax.optim import build
from cifar_jax.parallel import devices
from cifar_jax.training import check, state
from cifar_jax.training import program as program_lib
from cifar_jax.training import step as step_lib

THROUGHPUT_ROUNDS = 3


class Racer:
    """Runs one config with any seed, in programs that are compiled once.

    It joins the package's parts as `training.loop.train_model` does, but logs, evaluates and saves
    nothing during a run.
    """

    def __init__(self, config: Any, dataset: datasets.Dataset):
        """Prepares the parts; compiles nothing yet."""
        config = config.copy_and_resolve_references()
        config.num_seeds = 1
        check.check_config(config)
        self.config, self.dataset = config, dataset
        train = dataset.splits["train"]
        self.durations = durations_lib.resolve_durations(config, len(train.labels))
        self.mesh = devices.make_mesh(config.batch_size // config.optimizer.accumulation_steps)
        self.model = registry.create_model(config, len(dataset.class_names))
        optimizer = build.create_optimizer(config, self.durations)
        mean, std = dataset.mean, dataset.std
        self.step = step_lib.make_train_step(
            self.model, optimizer, config, mean, std, self.durations.steps_per_epoch
        )
        self.programs = program_lib.TrainPrograms(
            config, self.durations, self.model, mean, std, self.mesh, resident=True
        )
        self.predict = views.make_predict(self.model, self.mesh, mean, std, config.test_time)
        self.shape = train.images.shape[1:]
        # As those of the training are, the images of the evaluation are on the devices already.
        self.images = devices.replicate(self.mesh, dataset.splits["test"].images)
        self._is_compiled = False

        def create(key: jax.Array, given: Any) -> state.TrainState:
            return state.make_init(config, self.durations, self.model, self.shape, given)(key)

        self.create = jax.jit(create)

    def lay(self, seed: int) -> tuple[jax.Array, program_lib.Feed]:
        """Returns the key of a run and the feed of its images, both on the devices."""
        train, size = self.dataset.splits["train"], self.config.batch_size
        key = devices.replicate(self.mesh, jax.random.key(seed))
        return key, program_lib.Feed(train, self.mesh, [seed], size, resident=True)

    def begin(self, key: jax.Array) -> state.TrainState:
        """Returns the state before the first step."""
        given = state.params_from_data(self.model, self.dataset)
        return devices.replicate(self.mesh, self.create(key, given))

    def calls(
        self, feed: program_lib.Feed, num_steps: int | None = None
    ) -> Iterator[tuple[int, int]]:
        """Yields the first step and the number of steps of each call of a run."""
        made, total = 0, num_steps or self.durations.total
        while made < total:
            number = min(feed.capacity, self.programs.most(made), total - made)
            yield made, number
            made += number

    def compile(self, key: jax.Array, feed: program_lib.Feed) -> None:
        """Compiles the programs of a whole run, the first time.

        On an accelerator each program is also run once, since its first run is slower.
        """
        if self._is_compiled:
            return
        current = self.begin(key)
        ran: list[jax.stages.Compiled] = []
        for made, number in self.calls(feed):
            arguments = (current, *feed(made, number), number, key)
            program = self.programs.compile(made, arguments)
            if jax.default_backend() != "cpu" and program not in ran:
                ran.append(program)
                current, _ = jax.block_until_ready(program(*arguments))
        self._is_compiled = True

    def run(self, seed: int, num_steps: int | None = None) -> dict[str, float]:
        """Makes one run; returns its seed, test accuracy and seconds.

        Args:
          seed: of the run.
          num_steps: fewer steps than the config has, to compile all that a whole run needs.
        """
        labels = self.dataset.splits["test"].labels
        with jax.set_mesh(self.mesh):
            key, feed = self.lay(seed)
            self.compile(key, feed)
            jax.block_until_ready(feed(0, 1))
            begun = time.perf_counter()
            current = self.begin(key)
            for made, number in self.calls(feed, num_steps):
                data, indices = feed(made, number)
                arguments = (current, data, indices, number, key)
                current, _ = self.programs.compile(made, arguments)(*arguments)
            logits = self.predict(current.variables(), self.images, self.config.eval_batch_size)
            seconds = time.perf_counter() - begun
        accuracy = float((logits.argmax(axis=-1) == labels).mean())
        return {"seed": seed, "accuracy": accuracy, "seconds": seconds}

    def count_flops(self) -> float:
        """Returns the floating-point operations of a run, as XLA counts those of its programs.

        The programs are lowered for a GPU, since loops in the programs for a CPU hide most
        operations, and counted by the CPU's client, since the GPU's gives no counts. The body of a
        loop (`accumulation_steps`) counts once; shifted views count for every image.

        Raises:
          UserError: JAX may not use the CPU.
        """
        size = self.config.batch_size
        try:
            cpu = jax.local_devices(backend="cpu")[:1]
        except RuntimeError as error:
            raise UserError(
                f"counting needs the CPU too, as in JAX_PLATFORMS=cuda,cpu: {error}"
            ) from None
        mesh = jax.make_mesh((1, 1), ("seed", "data"), (AxisType.Auto,) * 2, devices=cpu)
        create = state.make_init(self.config, self.durations, self.model, self.shape)

        def evaluate(variables: Any, images: jax.Array) -> Any:
            images = augment.normalize(images, self.dataset.mean, self.dataset.std, jnp.float32)
            return self.model.apply(variables, images, train=False)

        def count(function: Any, *shapes: Any) -> float:
            traced = jax.jit(function).trace(*devices.abstract_arrays(mesh, shapes))
            analysis: Any = traced.lower(lowering_platforms=("cuda",)).cost_analysis()
            return analysis["flops"]

        key = jax.eval_shape(lambda: jax.random.key(0))
        current = jax.eval_shape(create, key)
        images = jax.ShapeDtypeStruct((size, *self.shape), jnp.uint8)
        labels = jax.ShapeDtypeStruct((size,), jnp.int32)
        with jax.set_mesh(mesh):
            step = count(self.step, current, (images, labels, labels), key)
            forward = count(evaluate, current.variables(), images)
        num_views = {"plain": 1, "mirror": 2, "mirror_shift": 6}[self.config.test_time.views]
        num_images = num_views * len(self.dataset.splits["test"].labels)
        return step * self.durations.total + forward * num_images / size


def measure_throughput(racer: Racer, seconds: float) -> list[float]:
    """Returns images per second of training, for rounds of about `seconds` seconds each."""
    size, epoch = racer.config.batch_size, racer.durations.steps_per_epoch
    with jax.set_mesh(racer.mesh):
        key, feed = racer.lay(0)
        current = racer.begin(key)
        rates = []
        for number in range(THROUGHPUT_ROUNDS + 1):
            made, begun = 0, time.perf_counter()
            while made == 0 or time.perf_counter() - begun < seconds:
                data, indices = feed(0, epoch)
                arguments = (current, data, indices, epoch, key)
                current, metrics = racer.programs.compile(0, arguments)(*arguments)
                jax.block_until_ready(metrics)
                made += epoch
            if number:  # the first compiles
                rates.append(made * size / (time.perf_counter() - begun))
    return rates
