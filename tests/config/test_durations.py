"""Durations: epochs and steps."""

import pytest

from cifar_jax.config import durations
from cifar_jax.errors import UserError
from tests import tiny


def test_durations_are_resolved_once():
    config = tiny.config(num_epochs=1.5, schedule__warmup_epochs=0.4, eval_every_steps=3)
    result = durations.resolve_durations(config, 320)
    assert result.steps_per_epoch == 5
    assert (result.total, result.warmup, result.eval_every, result.checkpoint_every) == (8, 2, 3, 5)
    config = tiny.config(num_steps=7, eval_every_epochs=0.0, schedule__milestones=(0.4, 1))
    result = durations.resolve_durations(config, 383)
    assert (result.steps_per_epoch, result.total, result.eval_every) == (5, 7, 0)
    assert result.milestones == (2, 5)
    assert durations.resolve_durations(tiny.config(num_epochs=1e-9), 320).total == 1


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"batch_size": 321}, "batch_size 321 is larger than the 320 training images"),
        ({"schedule__warmup_steps": 10}, "warm-up of 10 steps leaves none of the 10 steps"),
        ({"num_epochs": 3e38}, "is too long"),
        ({"schedule__milestones": (0.01, 0.02)}, "two of them fall on the same step"),
    ],
)
def test_durations_that_do_not_fit(values, words):
    with pytest.raises(UserError, match=words) as caught:
        durations.resolve_durations(tiny.config(**values), 320)
    assert "\n" not in str(caught.value)
