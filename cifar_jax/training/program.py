"""Many steps in one compiled program, and the images for each of its calls."""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from cifar_jax import limits
from cifar_jax.config.durations import MOST_STEPS, Durations
from cifar_jax.data.sampling import batch_indices
from cifar_jax.optim.build import create_optimizer
from cifar_jax.optim.schedules import find_ends
from cifar_jax.parallel import devices, seeds
from cifar_jax.training.metrics import NAMES
from cifar_jax.training.step import Step, make_train_step

# Images of one call that are streamed from the host.
_STREAM_BYTES = 16 * 2**20


def compile_train(
    step: Step,
    mesh: Mesh,
    resident: bool,
    num_seeds: int = 1,
    at_once: bool = False,
    length: int | None = None,
) -> jax.stages.Wrapped:
    """Returns the compiled program
    (state, data, indices, num_steps, key) -> (state, metrics).

    The number of steps is an argument, not a shape: the same program makes any number of steps, so
    a run that is interrupted anywhere and resumed executes the same instructions. The metrics are
    those of each step, float32 [steps, 2], with zeros for steps that are not made. The state is
    donated. With several seeds, the first axis of state, metrics, indices, key and streamed images
    is that of the seeds.

    Args:
      step: the train step.
      mesh: the devices.
      resident: whether `data` is the whole training set, on every device, and `indices` int32
        [steps, batch] say which images form each step; otherwise `data` is the images of the call
        themselves, [steps, batch, ...].
      num_seeds: the number of seeds that the program trains.
      at_once: whether a device trains its seeds at once, as in `seeds.map_seeds`.
      length: if given, every call makes this many steps, whatever `num_steps` says: a GPU then gets
        all of them at once, where otherwise the host decides after each step whether to continue.
    """

    def run(state, data, indices, num_steps, key):
        def body(i, carry):
            state, metrics = carry
            images, labels = jax.tree.map(lambda x: x[indices[i]] if resident else x[i], data)
            state, measured = step(state, (images, labels, indices[i]), key)
            return state, jax.lax.dynamic_update_index_in_dim(metrics, measured, i, 0)

        metrics = jnp.zeros((len(indices), len(NAMES)), jnp.float32)
        return jax.lax.fori_loop(0, length or num_steps, body, (state, metrics))

    if num_seeds > 1:
        run = seeds.map_seeds(run, mesh, (0, None if resident else 0, 0, None, 0), at_once)
    whole, own, rows = (
        NamedSharding(mesh, spec)
        for spec in (PartitionSpec(), seeds.spec(num_seeds), seeds.spec(num_seeds, None, "data"))
    )
    return jax.jit(
        run,
        in_shardings=(own, whole if resident else rows, rows, whole, own),
        out_shardings=own,
        donate_argnums=0,
    )


class TrainPrograms:
    """The train programs that the calls of one run need, each compiled once.

    From the step at which a group of parameters is no longer trained, the steps are made by a
    program that does not compute its gradient; no call may pass such a step (see `most`).

    On a CPU, and in a deterministic run, each step executes the same instructions however the run
    is divided into calls. Otherwise a call that uses all rows of its indices, usually an epoch, has
    a program whose length XLA knows.
    """

    def __init__(
        self,
        config: ConfigDict,
        durations: Durations,
        model: nn.Module,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        mesh: Mesh,
        resident: bool,
        class_weights: np.ndarray | None = None,
    ):
        """Prepares the programs; compiles nothing yet.

        Args:
          config: a checked config.
          durations: of the run.
          model: the network.
          mean: of each channel, in units of pixel / 255.
          std: of each channel, in units of pixel / 255.
          mesh: the devices.
          resident: whether the whole training set is on every device.
          class_weights: as for `make_train_step`.
        """
        optimizer = create_optimizer(config, durations)
        per_epoch = durations.steps_per_epoch
        self._starts = sorted({0, *find_ends(config.optimizer, per_epoch).values()})
        on_cpu = mesh.devices.flat[0].platform == "cpu"
        self._any_length = on_cpu or config.deterministic
        self._compiled: dict[tuple[int, int | None], jax.stages.Compiled] = {}

        def lower(start: int, length: int | None, arguments: tuple[Any, ...]) -> jax.stages.Lowered:
            step = make_train_step(
                model, optimizer, config, mean, std, per_epoch, start, class_weights
            )
            at_once = seeds.at_once(config)
            jitted = compile_train(step, mesh, resident, config.num_seeds, at_once, length)
            return jitted.lower(*arguments)

        self._lower = lower

    def most(self, first_step: int) -> int:
        """Returns how many steps a call that begins at `first_step` may make."""
        later = (start for start in self._starts if start > first_step)
        return min(later, default=MOST_STEPS) - first_step

    def compile(self, first_step: int, arguments: tuple[Any, ...]) -> jax.stages.Compiled:
        """Returns the program for a call, compiled if necessary; runs nothing.

        Args:
          first_step: of the call.
          arguments: of the program, see `compile_train`.
        """
        indices, num_steps = arguments[2:4]
        start = max(start for start in self._starts if start <= first_step)
        is_full = num_steps == indices.shape[-2]
        form = start, num_steps if is_full and not self._any_length else None
        if form not in self._compiled:
            self._compiled[form] = self._lower(*form, arguments).compile()
        return self._compiled[form]


class Feed:
    """Gives each call of the train program its images, from one of two placements.

    Attributes:
      resident: whether the whole training set is on every device.
      capacity: the most steps of one call.
    """

    def __init__(
        self, split: Any, mesh: Mesh, seed_list: Sequence[int], batch_size: int, resident: bool
    ):
        """Puts the training set on the devices, or prepares to stream it.

        Args:
          split: images uint8 [n, height, width, channels] and labels int32 [n].
          mesh: the devices.
          seed_list: the seeds that are trained; each has its own order of the images.
          batch_size: images per step.
          resident: whether the whole set is put on the devices.
        """
        self.resident = resident
        self._split, self._mesh, self._seeds, self._batch_size = split, mesh, seed_list, batch_size
        self._rows_spec = seeds.spec(len(seed_list), None, "data")
        self._next: tuple[tuple[int, int], Future] | None = None
        self.capacity = len(split.labels) // batch_size
        if resident:
            self._data = devices.replicate(mesh, split.arrays)
        else:
            step_bytes = len(seed_list) * batch_size * int(np.prod(split.images.shape[1:]))
            self.capacity = max(1, min(self.capacity, _STREAM_BYTES // step_bytes))
            self._thread = ThreadPoolExecutor(1, "feed")

    def __call__(self, first_step: int, num_steps: int) -> tuple[Any, Any]:
        """Returns (data, indices) for `compile_train`, for at most `capacity` steps.

        Streamed images are prepared while the previous call runs.
        """
        if self.resident:
            rows = self._rows(first_step, num_steps)
            return self._data, devices.put(self._mesh, rows, self._rows_spec)
        wanted = (first_step, num_steps)
        if self._next and self._next[0] == wanted:
            result = self._next[1].result()
        else:
            result = self._gather(*wanted)
        following = (first_step + num_steps, num_steps)
        self._next = (following, self._thread.submit(self._gather, *following))
        return result

    def close(self) -> None:
        """Ends the thread."""
        if not self.resident:
            self._thread.shutdown(cancel_futures=True)

    def _rows(self, first_step: int, num_steps: int) -> np.ndarray:
        """Returns the steps' indices, int32 [capacity, batch] or [seeds, capacity, batch].

        They are padded to this shape, so that one program suffices for any number of steps.
        """
        rows = np.zeros((len(self._seeds), self.capacity, self._batch_size), np.int32)
        for own, seed in zip(rows, self._seeds, strict=True):
            own[:num_steps] = batch_indices(
                seed, first_step, num_steps, self._batch_size, len(self._split.labels)
            )
        return rows if len(self._seeds) > 1 else rows[0]

    def _gather(self, first_step: int, num_steps: int) -> tuple[Any, Any]:
        rows = self._rows(first_step, num_steps)
        sharding = NamedSharding(self._mesh, self._rows_spec)

        def stream(array: np.ndarray) -> jax.Array:
            def read(index: Any) -> np.ndarray:
                return array[rows[index[: rows.ndim]]]

            shape = (*rows.shape, *array.shape[1:])
            return jax.make_array_from_callback(shape, sharding, read)

        indices = devices.put(self._mesh, rows, self._rows_spec)
        return tuple(stream(array) for array in self._split.arrays), indices


def fits_on_device(split: Any) -> bool:
    """Whether a split takes up at most a quarter of a device's memory (of its share on a CPU)."""
    size = sum(array.nbytes for array in split.arrays)
    device = jax.local_devices()[0]
    if device.platform == "cpu":
        memory = limits.host_memory() // jax.local_device_count()
    else:
        memory = (device.memory_stats() or {}).get("bytes_limit", 0)
    return size <= memory // 4
