"""The worker of `benchmarks.seeds`: runs of this project, by name, in one process."""

import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import PartitionSpec

from benchmarks.peers import ours, protocol
from cifar_jax.data import sampling
from cifar_jax.parallel import devices
from cifar_jax.runs import provenance

BATCH_SIZE = 128

RUNS: dict[str, ours.Training] = {}
STEPS: dict[str, Callable[[int], Any]] = {}


def prepare(name: str, model: str, num_seeds: int = 1, at_once: bool = False) -> float:
    """Compiles a run that `measure` and `advance` know by its name; returns the seconds."""
    begun = time.perf_counter()
    config = ours.make_config(model, BATCH_SIZE)
    config.num_seeds, config.seeds_at_once = num_seeds, at_once
    RUNS[name] = training = ours.Training(config, *protocol.make_data(model))
    STEPS[name] = training.train
    training.train(1)
    return time.perf_counter() - begun


def prepare_calls(model: str, steps_per_call: int) -> None:
    """Compiles three runs of the same seed, which have made no step yet.

    "scan" makes all requested steps in one call, "calls" at most `steps_per_call` in each, "steps"
    has no loop on the device: a compiled step is called for each.
    """
    for name in ("scan", "calls", "steps"):
        config = ours.make_config(model, BATCH_SIZE)
        RUNS[name] = ours.Training(config, *protocol.make_data(model))
    STEPS["scan"] = RUNS["scan"].train
    STEPS["calls"] = lambda number: RUNS["calls"].train(number, steps_per_call)
    STEPS["steps"] = step_by_step(RUNS["steps"])
    # Compiles; then all start again.
    for name in ("scan", "calls", "steps"):
        before = jax.tree.map(np.array, RUNS[name].state)
        STEPS[name](1)
        RUNS[name].state = devices.replicate(RUNS[name].mesh, before)
        RUNS[name].step = 0


def step_by_step(training: ours.Training) -> Callable[[int], None]:
    """Returns the function that makes steps of a run without a loop on the device."""

    def step(state: Any, data: Any, rows: jax.Array, key: jax.Array) -> Any:
        images, labels = jax.tree.map(lambda x: x[rows], data)
        return training.train_step(state, (images, labels, rows), key)

    compiled = jax.jit(step, donate_argnums=0)

    def train(num_steps: int) -> None:
        data = training.feed(0, 1)[0]
        with jax.set_mesh(training.mesh):
            for _ in range(num_steps):
                size = BATCH_SIZE, protocol.NUM_EXAMPLES
                rows = sampling.batch_indices(0, training.step, 1, *size)[0]
                rows = devices.put(training.mesh, rows, PartitionSpec("data"))
                training.state, metrics = compiled(training.state, data, rows, training.key)
                jax.device_get(metrics)
                training.step += 1

    return train


def measure(name: str, seconds: float) -> float:
    """Returns images per second, over all seeds, of about that many seconds."""
    advance(name, 1)
    number = max(1, round(seconds / max(advance(name, 1), 1e-4)))
    return len(RUNS[name].seeds) * number * BATCH_SIZE / advance(name, number)


def advance(name: str, num_steps: int) -> float:
    """Makes some steps; returns the seconds."""
    begun = time.perf_counter()
    STEPS[name](num_steps)
    jax.block_until_ready(RUNS[name].state)
    return time.perf_counter() - begun


def difference(name: str, other: str) -> float:
    """Returns the norm of the difference of two runs' parameters over the norm of the first's."""
    one, two = (
        np.concatenate([np.ravel(leaf).astype(np.float64) for leaf in jax.tree.leaves(params)])
        for params in (RUNS[name].state.params, RUNS[other].state.params)
    )
    return float(np.linalg.norm(one - two) / np.linalg.norm(one))


if __name__ == "__main__":
    devices.configure_jax(BATCH_SIZE, int(sys.argv[1]) if sys.argv[1:] else None)
    found = provenance.versions()
    versions = {name: found[name] for name in ("python", "jax", "jaxlib", "flax")}
    handlers = {
        function.__name__: function
        for function in (prepare, prepare_calls, measure, advance, difference)
    }
    protocol.serve(handlers, versions | {"devices": devices.describe_devices()})
