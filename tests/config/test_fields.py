"""The fields of a config, and the options that reach the optimizer."""

import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from cifar_jax.config import durations, fields
from cifar_jax.errors import UserError
from cifar_jax.optim import build
from configs import default
from tests import tiny


def test_only_the_default_fields_and_types_pass():
    known = default.get_config()
    fields.check_fields(tiny.config(), known)
    values = tiny.config().to_dict()
    values |= {"sede": 1, "batch_size": True, "num_epochs": "two"}
    values["data"]["name"] = 3
    del values["seed"]
    with pytest.raises(UserError) as caught:
        fields.check_fields(ConfigDict(values), known)
    assert str(caught.value).splitlines() == [
        "batch_size is True but must be of the type int",
        "data.name is 3 but must be of the type str",
        "num_epochs is 'two' but must be of the type float",
        "sede: there is no such field; did you mean seed?",
        "seed is missing: let get_config() change what configs/default.py returns",
    ]
    for other in (None, {}, "x"):
        with pytest.raises(UserError, match="the config is of the type"):
            fields.check_fields(other, known)


def test_the_optimizer_and_groups_have_a_field_for_each_option():
    assert {"eps", "b3"} <= fields.OPTIMIZER_OPTIONS.keys()
    for part in (default.get_config().optimizer, default.get_group(".*")):
        for name, kind in fields.OPTIMIZER_OPTIONS.items():
            assert part[name] is None
            assert part.get_type(name) is kind


def make_updates(optimizer):
    """Returns the updates of a kernel in four steps, float32 [4, 3, 2]."""
    rng = np.random.default_rng(0)
    params = {"kernel": rng.normal(size=(3, 2)).astype(np.float32)}
    state = optimizer.init(params)
    updates = []
    for _ in range(4):
        gradient = {"kernel": rng.normal(size=(3, 2)).astype(np.float32)}
        update, state = optimizer.update(gradient, state, params)
        updates.append(update["kernel"])
    return np.stack(updates)


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize(("name", "option", "value"), [("adam", "eps", 0.1), ("adan", "b3", 0.5)])
def test_an_option_reaches_optax(name, option, value, grouped):
    config = tiny.config(optimizer__name="sgd")
    chosen = config.optimizer
    if grouped:
        with config.unlocked():
            config.optimizer.groups.kernels = default.get_group("kernel")
        chosen = config.optimizer.groups.kernels
    chosen.name, chosen[option] = name, value
    ours = make_updates(build.create_optimizer(config, durations.resolve_durations(config, 320)))
    rate = config.optimizer.learning_rate
    np.testing.assert_array_equal(ours, make_updates(getattr(optax, name)(rate, **{option: value})))
    assert np.abs(ours - make_updates(getattr(optax, name)(rate))).max() > 0.01 * rate
