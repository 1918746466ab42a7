"""The images that each call of the train program is given, from both placements."""

import numpy as np
import pytest

from cifar_jax import limits
from cifar_jax.data import sampling
from cifar_jax.data.datasets import Split
from cifar_jax.parallel import devices
from cifar_jax.training import program


@pytest.mark.parametrize("resident", [True, False])
def test_the_feed_gives_the_batches_of_the_order(resident):
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (50, 4, 4, 3), dtype=np.uint8)
    labels = np.arange(50, dtype=np.int32)
    mesh = devices.make_mesh(4)
    feed = program.Feed(Split(images, labels), mesh, seed_list=[3], batch_size=4, resident=resident)
    step = 0
    for num_steps in (2, 2, 1, feed.capacity, 3):
        (some_images, some_labels), indices = feed(step, num_steps)
        if resident:
            some_images, some_labels = some_images[indices], some_labels[indices]
        expected = sampling.batch_indices(3, step, num_steps, 4, 50)
        np.testing.assert_array_equal(np.asarray(some_labels)[:num_steps], expected)
        np.testing.assert_array_equal(np.asarray(some_images)[:num_steps], images[expected])
        step += num_steps
    feed.close()


def test_a_set_is_kept_on_the_devices_if_they_have_the_memory(monkeypatch):
    split = Split(np.zeros((96, 4, 4, 3), np.uint8), np.zeros(96, np.int32))
    size = 2 * 4 * (96 * 4 * 4 * 3 + 4 * 96)  # two devices, a quarter of each one's memory
    for memory, expected in ((size, True), (size - 8, False)):
        monkeypatch.setattr(limits, "host_memory", lambda memory=memory: memory)
        assert program.fits_on_device(split) == expected


def test_each_device_streams_only_its_own_rows():
    """JAX asks for the rows of this process's devices, and no others are read."""
    read = []

    class Images:
        shape, nbytes = (50, 4, 4, 3), 50 * 48

        def __getitem__(self, rows):
            read.append(rows)
            return np.zeros((*rows.shape, 4, 4, 3), np.uint8)

    mesh = devices.make_mesh(4)
    split = Split(Images(), np.arange(50, dtype=np.int32))
    feed = program.Feed(split, mesh, seed_list=[3], batch_size=4, resident=False)
    feed(0, feed.capacity)
    feed.close()
    expected = sampling.batch_indices(3, 0, feed.capacity, 4, 50)
    first, second = sorted(read[:2], key=lambda rows: not np.array_equal(rows, expected[:, :2]))
    np.testing.assert_array_equal(np.concatenate([first, second], axis=1), expected)
