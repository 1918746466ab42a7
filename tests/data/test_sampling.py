"""The order of the training images."""

import numpy as np

from cifar_jax.data import sampling


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


def test_epoch_order_never_changes():
    # Resuming a run of an earlier version needs the same order.
    assert sampling.epoch_order(7, 3, 8).tolist() == [2, 5, 7, 3, 0, 6, 4, 1]


def test_epoch_order_is_uniform():
    firsts = [sampling.epoch_order(0, epoch, 10)[0] for epoch in range(2000)]
    assert np.all(np.abs(np.bincount(firsts, minlength=10) - 200) < 60)  # 4.5 deviations


def test_any_step_can_be_computed_without_the_earlier_ones():
    whole = sampling.batch_indices(0, 0, 9, batch_size=3, num_examples=10)
    np.testing.assert_array_equal(
        whole[4:7], sampling.batch_indices(0, 4, 3, batch_size=3, num_examples=10)
    )
    for epoch in range(3):
        images = whole[3 * epoch : 3 * epoch + 3].ravel()
        np.testing.assert_array_equal(images, sampling.epoch_order(0, epoch, 10)[:9])


def test_the_choice_of_validation_images_never_changes():
    held_out, kept = sampling.partition(10, 3, seed=0)
    assert (held_out.tolist(), kept.tolist()) == ([0, 8, 9], [1, 2, 3, 4, 5, 6, 7])
