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
    ("warmup", "total", "expected"),
    [(29, 30, 29), (30, 30, 3), (31, 30, 3), (10**6, 35, 3), (9, 9, 0), (1, 1, 0), (0, 1, 0)],
)
def test_a_warmup_as_long_as_the_run_takes_a_tenth_of_it(warmup, total, expected):
    config = tiny.config(num_steps=total, schedule__warmup_steps=warmup)
    result = durations.resolve_durations(config, 320)
    assert (result.warmup, result.full_warmup) == (expected, warmup)


@pytest.mark.parametrize(
    ("batch_size", "given", "expected"),
    [(8, None, 4), (32, None, 1), (1, None, 32), (8, 7, 7), (8, 0, 0)],
)
def test_about_ten_lines_an_epoch(batch_size, given, expected):
    config = tiny.config(batch_size=batch_size, log__every_steps=given)
    assert durations.resolve_durations(config, 320).log_every == expected


def test_where_epochs_and_evaluations_end():
    result = durations.resolve_durations(tiny.config(num_steps=8, eval_every_steps=3), 320)
    assert [step for step in range(1, 9) if result.is_whole(step)] == [3, 5, 6, 8]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"batch_size": 321}, "batch_size 321 is larger than the 320 training images"),
        ({"num_epochs": 3e38}, "is too long"),
        ({"schedule__milestones": (0.01, 0.02)}, "two of them fall on the same step"),
    ],
)
def test_durations_that_do_not_fit(values, words):
    with pytest.raises(UserError, match=words) as caught:
        durations.resolve_durations(tiny.config(**values), 320)
    assert "\n" not in str(caught.value)
