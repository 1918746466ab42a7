"""Groups of parameters with optimizers of their own, against NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from cifar_jax.config import durations, fields
from cifar_jax.errors import UserError
from cifar_jax.optim import build, groups, schedules
from cifar_jax.training import check
from configs import default
from tests import tiny

pytestmark = pytest.mark.usefixtures("_strict_shapes")
PARAMS = {
    "stem": {"kernel": jnp.full((2, 2), 3.0), "bias": jnp.array([1.0, -1.0])},
    "body": {"kernel": jnp.full((2, 2), 2.0), "bias": jnp.array([0.5, 0.5])},
}
GRADIENT = jax.tree.map(lambda leaf: 0.1 * leaf + 1.0, PARAMS)


def config(**given):
    """Returns the small config, of 5 steps an epoch, with groups as {name: {field: value}}."""
    result = tiny.config(schedule__name="linear", optimizer__name="sgd")
    result.optimizer.learning_rate = 0.5
    with result.unlocked():
        for name, values in given.items():
            result.optimizer.groups[name] = default.get_group(values.get("params", ".*"))
            result.optimizer.groups[name].update(values)
    return result


GROUPS = {
    "still": {"params": "stem/kernel", "name": "frozen"},
    "early": {"params": "stem/bias", "learning_rate": 2.0, "num_epochs": 0.6},
    "biases": {
        "params": "body/bias",
        "name": "sgd",
        "learning_rate": 1.0,
        "momentum": 0.8,
        "nesterov": True,
        "weight_decay": 0.25,
        "decay_norm_and_bias": True,
    },
}


def test_each_group_follows_its_own_rule_rate_and_decay():
    settings = config(**GROUPS)
    fields.check_fields(settings, default.get_config())
    lengths = durations.resolve_durations(settings, 320)  # 10 steps, 3 for the group "early"
    optimizer = build.create_optimizer(settings, lengths)
    params, opt_state = PARAMS, jax.jit(optimizer.init)(PARAMS)
    expected = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), PARAMS)
    velocity = np.zeros(2)
    for step in range(5):
        updates, opt_state = jax.jit(optimizer.update)(GRADIENT, opt_state, params)
        params = jax.tree.map(jnp.add, params, updates)
        fall = 1 - step / 10
        expected["stem"]["bias"] -= (
            2.0 * max(0, 1 - step / 3) * np.asarray(GRADIENT["stem"]["bias"])
        )
        expected["body"]["kernel"] -= 0.5 * fall * np.asarray(GRADIENT["body"]["kernel"])
        decayed = np.asarray(GRADIENT["body"]["bias"]) + 0.25 * expected["body"]["bias"]
        velocity = 0.8 * velocity + decayed
        expected["body"]["bias"] -= fall * (decayed + 0.8 * velocity)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), params, expected)


def test_nothing_moves_what_is_frozen():
    settings = config(still={"params": "stem/.*", "name": "frozen"})
    settings.optimizer.update({"weight_decay": 0.1, "decoupled_decay": True})
    optimizer = build.create_optimizer(settings, durations.resolve_durations(settings, 320))
    updates, _ = optimizer.update(GRADIENT, optimizer.init(PARAMS), PARAMS)
    np.testing.assert_array_equal(updates["stem"]["kernel"], 0)
    np.testing.assert_allclose(updates["body"]["kernel"], -0.5 * (1.2 + 0.1 * 2), rtol=1e-6)


def test_the_rate_stays_0_after_the_end_of_a_group_whatever_the_schedule():
    settings = config(early={"num_epochs": 0.6})
    settings.schedule.name = "constant"
    lengths = durations.resolve_durations(settings, 320)
    (rate,) = schedules.create_group_schedules(settings, lengths).values()
    assert [float(rate(step)) for step in range(5)] == [0.5, 0.5, 0.5, 0, 0]
    settings.schedule.warmup_steps = 3
    with pytest.raises(UserError, match=r"early.num_epochs is 0.6, within the warm-up: raise"):
        build.create_optimizer(settings, durations.resolve_durations(settings, 320))


def test_options_that_a_group_inherits():
    settings = config(same={"learning_rate": 3.0}, other={"name": "adam"})
    settings.optimizer.update({"momentum": 0.9, "weight_decay": 0.1})
    resolved = groups.resolve_groups(settings.optimizer)
    same, other = resolved["same"], resolved["other"]
    assert (same.name, same.momentum, same.learning_rate, same.weight_decay) == ("sgd", 0.9, 3, 0.1)
    assert (other.name, other.momentum, other.learning_rate) == ("adam", None, 0.5)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (
            {"a": "head/.*"},
            r"groups.a.params is 'head/.\*', which matches none of body/bias, body/k",
        ),
        ({"a": ".*/bias", "b": "stem/.*"}, "parameter stem/bias is in two of .*, a and b: make"),
    ],
)
def test_patterns_that_match_nothing_or_the_same_parameter_are_named(given, words):
    settings = config(**{name: {"params": pattern} for name, pattern in given.items()})
    optimizer = build.create_optimizer(settings, durations.resolve_durations(settings, 320))
    with pytest.raises(UserError, match=words):
        optimizer.init(PARAMS)


@pytest.mark.parametrize(
    ("field", "value", "line"),
    [
        (
            "learning_rate",
            0.0,
            "optimizer.groups.a.learning_rate is 0.0 but must be greater than 0",
        ),
        ("momentum", 1.0, "optimizer.groups.a.momentum is 1.0 but must be at least 0 and less"),
        ("num_epochs", -1.0, "optimizer.groups.a.num_epochs is -1.0 but must be greater than 0"),
        ("name", "sdg", "optimizer.groups.a.name is 'sdg', none of muon, frozen, adabelief"),
        ("b1", 0.9, "optimizer.groups.a.b1 is set but sgd does not take it"),
        ("params", "(", "optimizer.groups.a.params is '(', not a regular expression: "),
    ],
)
def test_each_mistake_has_its_line(field, value, line):
    settings = config(a={})
    settings.optimizer.groups.a[field] = value
    with pytest.raises(UserError) as caught:
        check.check_config(settings)
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)


def test_a_group_has_the_fields_that_default_gives_it():
    group = default.get_group(".*")
    assert {name: group.get_type(name) for name in group} == fields.GROUP_FIELDS
    settings = config(a={})
    for broken, words in (
        (ConfigDict({"params": "x"}), "optimizer.groups.a must have the fields params, name"),
        (3, "optimizer.groups.a must have the fields params, name"),
    ):
        with settings.unlocked():
            settings.optimizer.groups = ConfigDict({"a": broken})
        with pytest.raises(UserError, match=words):
            fields.check_fields(settings, default.get_config())
    with settings.unlocked():
        settings.optimizer.groups = ConfigDict({"a": group})
        settings.optimizer.groups.a = ConfigDict(dict(group.items()) | {"learning_rate": "fast"})
    with pytest.raises(UserError, match=r"learning_rate is 'fast' but must be of the type float"):
        fields.check_fields(settings, default.get_config())


@pytest.mark.parametrize("name", ["rest", "two words"])
def test_a_groups_name_is_a_word_other_than_rest(name):
    with pytest.raises(UserError, match="must be called by a word other than rest"):
        check.check_config(config(**{name: {}}))
