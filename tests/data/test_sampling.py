"""The order of the images, and its two placements."""

import numpy as np
import pytest

from cifar_jax.data import sampling
from cifar_jax.data.datasets import Split
from cifar_jax.parallel import cpu, devices
from cifar_jax.training import program as program_lib


def test_epoch_order_is_a_permutation_that_depends_on_seed_and_epoch():
    orders = {
        (seed, epoch): sampling.epoch_order(seed, epoch, 1000)
        for seed, epoch in [(0, 0), (0, 1), (1, 0)]
    }
    for order in orders.values():
        np.testing.assert_array_equal(np.sort(order), np.arange(1000))
    assert not np.array_equal(orders[0, 0], orders[0, 1])
    assert not np.array_equal(orders[0, 0], orders[1, 0])
    np.testing.assert_array_equal(orders[0, 1], sampling.epoch_order(0, 1, 1000))


def test_epoch_order_stays_what_it_was():
    # Resuming a run of an older version needs the same numbers for ever.
    assert sampling.epoch_order(7, 3, 8).tolist() == [2, 5, 7, 3, 0, 6, 4, 1]


def test_epoch_order_is_uniform():
    firsts = [sampling.epoch_order(0, epoch, 10)[0] for epoch in range(2000)]
    assert np.all(np.abs(np.bincount(firsts, minlength=10) - 200) < 60)  # 4.5 deviations


def test_any_step_is_reached_without_those_before_it():
    whole = sampling.batch_indices(0, 0, 9, batch_size=3, num_examples=10)
    np.testing.assert_array_equal(
        whole[4:7], sampling.batch_indices(0, 4, 3, batch_size=3, num_examples=10)
    )
    for epoch in range(3):
        images = whole[3 * epoch : 3 * epoch + 3].ravel()
        np.testing.assert_array_equal(images, sampling.epoch_order(0, epoch, 10)[:9])


@pytest.mark.parametrize("resident", [True, False])
def test_feed_gives_the_batches_of_the_order(resident):
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (50, 4, 4, 3), dtype=np.uint8)
    labels = np.arange(50, dtype=np.int32)
    mesh = devices.make_mesh(4)
    feed = program_lib.Feed(Split(images, labels), mesh, seeds=[3], batch_size=4, resident=resident)
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


def test_a_set_lies_on_the_devices_where_they_have_the_memory(monkeypatch):
    split = Split(np.zeros((96, 4, 4, 3), np.uint8), np.zeros(96, np.int32))
    size = 2 * 4 * (96 * 4 * 4 * 3 + 4 * 96)  # two devices, a quarter of each one's memory
    for memory, expected in ((size, True), (size - 8, False)):
        monkeypatch.setattr(cpu, "host_memory", lambda memory=memory: memory)
        assert program_lib.fits_on_device(split) == expected


def test_a_streamed_batch_is_read_in_the_rows_of_each_device():
    """JAX asks for the rows of this process's devices, and no others are read."""
    read = []

    class Images:
        shape, nbytes = (50, 4, 4, 3), 50 * 48

        def __getitem__(self, rows):
            read.append(rows)
            return np.zeros((*rows.shape, 4, 4, 3), np.uint8)

    mesh = devices.make_mesh(4)
    split = Split(Images(), np.arange(50, dtype=np.int32))
    feed = program_lib.Feed(split, mesh, seeds=[3], batch_size=4, resident=False)
    feed(0, feed.capacity)
    feed.close()
    expected = sampling.batch_indices(3, 0, feed.capacity, 4, 50)
    first, second = sorted(read[:2], key=lambda rows: not np.array_equal(rows, expected[:, :2]))
    np.testing.assert_array_equal(np.concatenate([first, second], axis=1), expected)
