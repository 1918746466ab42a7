"""The order of the training images: a pure function of seed and epoch, computed on the host."""

import numpy as np


def random_order(key: int | np.ndarray, count: int) -> np.ndarray:
    """Returns a uniform permutation of range(count), int64 [count].

    The raw output of Philox is specified, so the order is the same on every platform and with every
    version of NumPy; a stable sort of 64-bit numbers makes it a permutation.

    Args:
      key: a seed, or a key for Philox, uint64 [2].
      count: the number of elements.
    """
    named = {"key": key} if isinstance(key, np.ndarray) else {"seed": key}
    return np.argsort(np.random.Philox(**named).random_raw(count), kind="stable")


def epoch_order(seed: int, epoch: int, num_examples: int) -> np.ndarray:
    """Returns the order of an epoch, int32 [num_examples].

    Args:
      seed: the run's seed, 0 <= seed < 2**32.
      epoch: the number of the epoch, counted from 0.
      num_examples: the number of training images.
    """
    return random_order(np.array([seed, epoch], np.uint64), num_examples).astype(np.int32)


def batch_indices(
    seed: int, first_step: int, num_steps: int, batch_size: int, num_examples: int
) -> np.ndarray:
    """Returns the indices of the images of consecutive steps, int32 [num_steps, batch_size].

    Any step can be computed without the earlier ones. The last images of an epoch's order, which do
    not fill a batch, are left out of that epoch.
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


def partition(total: int, first: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Splits range(total) at random into `first` indices and the rest, each in ascending order."""
    order = random_order(seed, total)
    return np.sort(order[:first]), np.sort(order[first:])
