"""The order of the training images: a pure function of seed and epoch, computed on the host."""

import numpy as np

from cifar_jax.errors import UserError

# The second halves of the keys for `replace_labels`; epochs are the smaller ones.
_WHICH, _NEW = 2**32, 2**32 + 1


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


def partition(total: int, size: int, seed: int, part: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Splits range(total) at random into a part and the rest, each in ascending order.

    Args:
      total: the number of elements.
      size: the number of elements of each part; the last one may be smaller.
      seed: a non-negative integer.
      part: the number of the part, counted from 0.
    """
    order = random_order(seed, total)
    chosen = slice(part * size, (part + 1) * size)
    return np.sort(order[chosen]), np.sort(np.delete(order, chosen))


def check_held_out(name: str, total: int, num_examples: int, fold: int = 0) -> None:
    """Raises UserError if so many training images cannot be held out, as by `partition`.

    Args:
      name: the set's name.
      total: the number of its training images, or the most that there can be.
      num_examples: how many to hold out.
      fold: which of the parts of that size.
    """
    if not 0 < num_examples < total:
        raise UserError(
            f"cannot hold out {num_examples} validation images of the {total} training "
            f"images of {name}: give a number from 1 to {total - 1}"
        )
    if fold >= (parts := -(-total // num_examples)):
        raise UserError(
            f"data.validation_fold is {fold} but the {total} training images have "
            f"{parts} parts of {num_examples}: give a number from 0 to {parts - 1}"
        )


def replace_labels(labels: np.ndarray, num_classes: int, share: float, seed: int) -> np.ndarray:
    """Returns labels of which a share are those of another class, drawn uniformly.

    Which ones and which classes is a fixed function of (seed, number of labels, number of classes).

    Args:
      labels: int32 [images].
      num_classes: at least two.
      share: at least 0 and less than 1.
      seed: a non-negative integer, less than 2**32.
    """
    chosen = random_order(np.array([seed, _WHICH], np.uint64), len(labels))
    chosen = chosen[: round(share * len(labels))]
    raw = np.random.Philox(key=np.array([seed, _NEW], np.uint64)).random_raw(len(chosen))
    replaced = labels.copy()
    steps = 1 + (raw % (num_classes - 1)).astype(np.int32)
    replaced[chosen] = (labels[chosen] + steps) % num_classes
    replaced.flags.writeable = False
    return replaced
