"""Which images form a step: a pure function of the seed and the epoch, made on the host.

The images themselves lie on the devices, whole, or are streamed from the host: the same batches.
"""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from cifar_jax import devices
from cifar_jax import seeds as seeds_lib

# Streamed images of one call.
_STREAM_BYTES = 16 * 2**20


def epoch_order(seed: int, epoch: int, num_examples: int) -> np.ndarray:
    """Returns the order of an epoch, int32 [num_examples].

    The raw output of Philox is specified, so the order is the same on every platform and with every
    version of NumPy; a stable sort of 64-bit numbers makes it a uniform permutation.

    Args:
      seed: of the run, 0 <= seed < 2**32.
      epoch: counted from 0.
      num_examples: how many images the training set has.
    """
    generator = np.random.Philox(key=np.array([seed, epoch], np.uint64))
    return np.argsort(generator.random_raw(num_examples), kind="stable").astype(np.int32)


def batch_indices(
    seed: int, first_step: int, num_steps: int, batch_size: int, num_examples: int
) -> np.ndarray:
    """Returns the images of consecutive steps, int32 [num_steps, batch_size].

    Any step is reached without going through those before it. The images at the end of an epoch's
    order that fill no batch are left out of that epoch.
    """
    steps_per_epoch = num_examples // batch_size
    rows = np.empty((num_steps, batch_size), np.int32)
    last_epoch, order = -1, np.empty(0, np.int32)
    for row, step in enumerate(range(first_step, first_step + num_steps)):
        epoch, place = divmod(step, steps_per_epoch)
        if epoch != last_epoch:
            last_epoch, order = epoch, epoch_order(seed, epoch, num_examples)
        rows[row] = order[place * batch_size : (place + 1) * batch_size]
    return rows


class Feed:
    """Gives each call of the train program its images, from one of two placements.

    Attributes:
      resident: whether the whole training set lies on every device.
      capacity: the most steps that one call can be given.
    """

    def __init__(
        self, split: Any, mesh: Mesh, seeds: Sequence[int], batch_size: int, resident: bool
    ):
        """Lays the set on the devices, or gets ready to stream it.

        Args:
          split: images uint8 [n, height, width, channels] and labels int32 [n].
          mesh: the devices.
          seeds: of the orders, one for each run.
          batch_size: images of a step.
          resident: which of the two.
        """
        self.resident = resident
        self._split, self._mesh, self._seeds, self._batch_size = split, mesh, seeds, batch_size
        self._rows_spec = seeds_lib.spec(len(seeds), None, "data")
        self._next: tuple[tuple[int, int], Future] | None = None
        self.capacity = len(split.labels) // batch_size
        if resident:
            self._data = devices.replicate(mesh, tuple(split))
        else:
            step_bytes = len(seeds) * batch_size * int(np.prod(split.images.shape[1:]))
            self.capacity = max(1, min(self.capacity, _STREAM_BYTES // step_bytes))
            self._thread = ThreadPoolExecutor(1, "feed")

    def __call__(self, first_step: int, num_steps: int) -> tuple[Any, Any]:
        """Returns (data, indices) for `steps.compile_train`, for at most `capacity` steps.

        A streamed call's images are made ready while the call before it runs.
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
        """The indices of the steps, padded to [capacity, batch]: one shape, one program.

        For several runs [runs, capacity, batch].
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
        return tuple(stream(array) for array in self._split), indices


def fits_on_device(split: Any) -> bool:
    """Whether a split takes at most a quarter of a device's memory (of the host's, on a CPU)."""
    size = sum(array.nbytes for array in split)
    device = jax.local_devices()[0]
    if device.platform == "cpu":
        memory = devices.host_memory() // jax.local_device_count()
    else:
        memory = (device.memory_stats() or {}).get("bytes_limit", 0)
    return size <= memory // 4
