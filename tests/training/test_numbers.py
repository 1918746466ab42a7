"""A weight that stops being finite at any step ends the run soon, with the last good checkpoint."""

import random
import re

import jax
import numpy as np
import pytest

import cifar_jax
from cifar_jax.errors import UserError
from cifar_jax.optim import build
from cifar_jax.runs import history, signals, workdir
from cifar_jax.runs.checkpoint import Checkpoints
from cifar_jax.training import check, loop
from tests import tiny
from tests.few import slow

STEPS_PER_EPOCH = 5  # of the small config; the log has a line per epoch


def inject(monkeypatch, step):
    """Makes the learning rate, and so every weight, NaN in that step, counted from 1."""
    create = build.create_schedule

    def schedule(config, durations):
        rate = create(config, durations)
        return lambda count: jax.numpy.where(count == step - 1, jax.numpy.nan, rate(count))

    monkeypatch.setattr(build, "create_schedule", schedule)


def stop(monkeypatch, folder, step, steps_per_call, every):
    """Trains until the NaN stops it; returns the step where it was seen and the one kept."""
    inject(monkeypatch, step)
    config = tiny.config(
        num_epochs=6.0, steps_per_call=steps_per_call, checkpoint__every_steps=every
    )
    check.check_config(config)
    with pytest.raises(UserError, match="not finite") as caught:
        loop.train_model(config, folder, signals.Signals())
    assert caught.value.exit_code == 1
    text = str(caught.value)
    assert "\n" not in text
    seen = int(re.search(r"(?:step|to) (\d+)", text)[1])
    kept = (step - 1) // every * every
    assert (f"checkpoint of step {kept} is kept" if kept else "no checkpoint yet") in text
    return seen, kept


@pytest.mark.parametrize("number", [0, 1, slow(2)])
def test_nan_at_a_random_step_stops_within_a_logging_interval(monkeypatch, tmp_path, number):
    rng = random.Random(number)
    step, steps_per_call = rng.randint(1, 5 * STEPS_PER_EPOCH), rng.choice((1, 3, 5))
    seen, kept = stop(monkeypatch, tmp_path, step, steps_per_call, every=rng.randint(1, 4))
    assert step <= seen <= step + STEPS_PER_EPOCH
    steps = Checkpoints(tmp_path, writable=False).steps()
    assert max(steps, default=0) == kept
    for one in steps:
        arrays = jax.tree.leaves(cifar_jax.load(tmp_path, str(one)).variables)
        assert all(np.isfinite(array).all() for array in arrays)
    if (tmp_path / workdir.METRICS).exists():
        for line in history.read_lines(tmp_path / workdir.METRICS):
            # The loss of this step is measured before its update.
            assert line["step"] <= step
            assert np.isfinite(line["train_loss"])
