"""Checking a config: what is accepted, and the messages for what is not."""

import os
import random
import subprocess
import sys
from collections import Counter

import hypothesis
import jax
import pytest
from hypothesis import strategies as st
from ml_collections.config_flags import config_path
from PIL import Image

from cifar_jax.config import durations
from cifar_jax.errors import UserError
from cifar_jax.models import registry
from cifar_jax.training import check, state
from configs import default, speedrun
from tests import program, tiny
from tests.faults import stops, wrong_configs
from tests.few import slow

POSITIVE = [
    *("num_epochs", "num_steps", "num_seeds", "batch_size", "eval_batch_size", "num_cpu_devices"),
    *("steps_per_call", "optimizer.learning_rate", "optimizer.accumulation_steps"),
    *("optimizer.base_batch_size", "optimizer.eps", "schedule.factor"),
    "test_time.confidence_threshold",
]
NOT_NEGATIVE = [
    *("seed", "data.seed", "data.validation_examples", "data.validation_fold"),
    *("augment.crop_padding", "augment.cutout"),
    *("augment.brightness", "augment.contrast", "augment.saturation", "augment.hue"),
    *("augment.rand_augment_ops", "augment.rand_augment_magnitude", "augment.mixup_alpha"),
    *("augment.cutmix_alpha", "optimizer.weight_decay", "optimizer.clip_norm"),
    "optimizer.sam_radius",
    *("schedule.warmup_epochs", "schedule.warmup_steps", "schedule.final_fraction"),
    *("eval_every_epochs", "eval_every_steps", "checkpoint.every_epochs"),
    *("checkpoint.every_steps", "log.profile_steps", "log.profile_start"),
]
FRACTIONS = [
    *("data.label_noise", "loss.label_smoothing", "ema_decay"),
    *("optimizer.momentum", "optimizer.b1", "optimizer.b2", "optimizer.b3"),
]
# Optimizers that take an option which adam does not.
TAKERS = {"optimizer.momentum": "sgd", "optimizer.b3": "adan"}
AT_MOST = {
    "schedule.final_fraction": 1,
    "test_time.confidence_threshold": 1,
    "augment.hue": 0.5,
    "augment.rand_augment_magnitude": 30,
    "augment.rand_augment_ops": 16,
    "num_cpu_devices": 256,
    "num_seeds": 1024,
    "seed": 2**32 - 1,
    "data.seed": 2**32 - 1,
}


def changed(**values):
    """Returns the small config with fields given by dotted names."""
    config = tiny.config()
    config.test_time.views = (
        "mirror_shift" if "test_time.confidence_threshold" in values else "plain"
    )
    for name in TAKERS.keys() & values.keys():
        config.optimizer.name = TAKERS[name]
    config.update_from_flattened_dict(values)
    return config


def problems(**values):
    """Returns a line for each problem with a config."""
    try:
        check.check_config(changed(**values))
    except UserError as error:
        return str(error).splitlines()
    return []


def kind(name):
    """Returns int or float, the type of a field."""
    return config_path.get_type(name, default.get_config())


def test_every_config_file_passes_the_check(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        for shade in range(20):
            Image.new("L", (4, 4), shade).save(tmp_path / name / f"{shade}.png")
    for path in sorted((program.ROOT / "configs").glob("[!_]*.py")):
        flag = f"--config={path}" + (f":{tmp_path}" if path.stem == "folder" else "")
        assert wrong_configs.try_config(flag, []) == (0, stops.SURVIVED)


@pytest.mark.parametrize(
    ("variant", "expected"), [("94", 1_971_640), ("95", 4_604_728), ("96", 12_717_752)]
)
def test_variants_of_the_speedrun(variant, expected):
    config = speedrun.get_config(variant)
    assert check.check_config(config) is None
    model = registry.create_model(config, 10)
    create = state.make_init(
        config, durations.resolve_durations(config, 50_000), model, (32, 32, 3)
    )
    params = jax.eval_shape(create, jax.random.key(0)).params
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == expected


def test_a_confidence_threshold_needs_shifted_views():
    (line,) = problems(**{"test_time.confidence_threshold": 0.5, "test_time.views": "mirror"})
    assert line.startswith(
        "test_time.confidence_threshold is set but test_time.views is 'mirror': only 'mirr"
    )


@pytest.mark.parametrize("name", POSITIVE)
def test_fields_that_must_be_greater_than_0(name):
    for value in (0, -1):
        value = kind(name)(value)
        assert f"{name} is {value} but must be greater than 0" in problems(**{name: value})
    assert problems(**{name: kind(name)(1)}) == []


@pytest.mark.parametrize("name", NOT_NEGATIVE)
def test_fields_that_must_not_be_negative(name):
    value = kind(name)(-1)
    assert problems(**{name: value}) == [f"{name} is {value} but must not be negative"]
    assert problems(**{name: kind(name)(0)}) == []


@pytest.mark.parametrize("name", FRACTIONS)
def test_fields_that_must_be_less_than_1(name):
    for value in (1.0, -0.1):
        words = f"{name} is {value} but must be at least 0 and less than 1"
        assert problems(**{name: value}) == [words]
    assert problems(**{name: 0.999}) == []


@pytest.mark.parametrize("name", AT_MOST)
def test_fields_with_a_largest_value(name):
    most = AT_MOST[name]
    others = {"batch_size": 2 * 256} if name == "num_cpu_devices" else {}
    others |= {"data.validation_examples": 0}
    assert problems(**others, **{name: most}) == []
    more = kind(name)(most + 1)
    (line,) = problems(**others | {"batch_size": 257 * 2, name: more})
    assert line.startswith(f"{name} is {more} but must be ")


@pytest.mark.parametrize("name", [*POSITIVE, *NOT_NEGATIVE, *FRACTIONS])
def test_values_that_are_not_finite_or_too_large(name):
    if kind(name) is int:
        values = {10**400: "not within 2**31", -(10**400): "not within 2**31"}
        if name in ("seed", "data.seed"):
            values = {10**400: "must be less than 2**32"}
    else:
        values = {float(x): f"{x}, not a finite number" for x in ("nan", "inf", "-inf")}
        values[1e39] = "1e+39, more than a float32 can hold"
    for value, words in values.items():
        (line,) = problems(**{name: value})
        assert line.startswith(f"{name} is ")
        assert words in line


@pytest.mark.parametrize(
    ("values", "line"),
    [
        (
            {"loss.class_weights": "even"},
            "loss.class_weights is 'even' but must be 'balanced' or a",
        ),
        ({"loss.class_weights": (1, -1)}, "loss.class_weights is (1, -1) but must be 'balanced'"),
        ({"loss.class_weights": (0, 0.0)}, "loss.class_weights is (0, 0.0) but must be"),
        ({"loss.class_weights": (True,)}, "loss.class_weights is (True,) but must be"),
        ({"loss.class_weights": 2}, "loss.class_weights is 2 but must be"),
        ({"loss.class_weights": ()}, "loss.class_weights is () but must be"),
        (
            {"loss.class_weights": (1, 2, 3)},
            "loss.class_weights has 3 numbers, but the data have 10 classes: give one for each",
        ),
        ({"dtype": "float16"}, "dtype is 'float16', none of float32, bfloat16; did you mean"),
        ({"data.placement": "disk"}, "data.placement is 'disk', none of auto, device, host"),
        ({"schedule.name": "cosin"}, "schedule.name is 'cosin', none of constant, step, cosine"),
        ({"schedule.milestones": (2, 1)}, "schedule.milestones is (2, 1) but must be ascending"),
        ({"schedule.milestones": (0, 1)}, "schedule.milestones is (0, 1) but must be ascending"),
        ({"schedule.milestones": ("a",)}, "schedule.milestones is ('a',) but must hold epochs"),
        ({"optimizer.name": "adamW"}, "optimizer.name is 'adamW', none of muon, frozen, adabelief"),
        ({"ema_decay": 0.99999999}, "ema_decay is 0.99999999 but must be at least 0 and less th"),
        ({"optimizer.name": "sdg"}, "optimizer.name is 'sdg', none of muon, frozen, adabelief"),
        ({"optimizer.name": "__name__"}, "optimizer.name is '__name__', none of"),
        ({"optimizer.name": "sm3"}, "optimizer.name is 'sm3', which cannot train like this"),
        ({"optimizer.name": "sgd", "optimizer.b1": 0.9}, "optimizer.b1 is set but sgd does not"),
        ({"test_time.views": "shift"}, "test_time.views is 'shift', none of plain, mirror, mirror"),
        (
            {"augment.flip": True, "augment.alternating_flip": True},
            "augment.flip and augment.alternating_flip are both on: choose one",
        ),
        ({"num_cpu_devices": 3}, "batch_size 64 is not a multiple of num_cpu_devices 3"),
        ({"data.name": "cifar1O"}, "unknown dataset 'cifar1O': did you mean cifar10"),
        ({"data.name": ""}, "unknown dataset ''"),
        ({"data.name": "folder:1.0.0"}, "unknown dataset 'folder:1.0.0': folder has no"),
        ({"data.name": "digits/small"}, "unknown dataset 'digits/small': digits has no"),
        ({"data.name": "cifar10/foo"}, "unknown dataset 'cifar10/foo': cifar10 takes no config"),
        ({"data.name": "emnist/leters"}, "unknown dataset 'emnist/leters': emnist takes one of"),
        ({"data.data_dir": "gs://x", "data.name": "cifar10"}, "the data directory gs://x"),
        ({"model.name": "mpl"}, "unknown model 'mpl', none of mlp"),
        ({"model.hidden_sizes": (0,)}, "model mlp: hidden_sizes must be a tuple of positive"),
    ],
)
def test_values_that_are_not_known_or_do_not_fit(values, line):
    lines = problems(**values)
    assert len(lines) == 1
    assert lines[0].startswith(line)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (
            {"learning_rate": 2e-38, "learning_rate_scaling": "linear", "base_batch_size": 128},
            "optimizer.learning_rate is 2e-38 and optimizer.learning_rate_scaling multiplies it by "
            "0.5: the result is 0 in float32: raise it",
        ),
        (
            {"learning_rate": 2e-38, "learning_rate_scaling": "sqrt", "base_batch_size": 2**20},
            "optimizer.learning_rate is 2e-38 and optimizer.learning_rate_scaling multiplies it by "
            "0.00781: the result is 0 in float32: raise it",
        ),
        (
            {"learning_rate": 3e38, "learning_rate_scaling": "linear", "base_batch_size": 1},
            "optimizer.learning_rate is 3e+38 and optimizer.learning_rate_scaling multiplies it by "
            "64: the result is more than a float32 can hold: lower it",
        ),
    ],
)
def test_a_rate_that_float32_cannot_hold_once_it_is_scaled(values, words):
    values = {f"optimizer.{name}": value for name, value in values.items()}
    assert problems(**values) == [words]
    assert problems(**{**values, "optimizer.learning_rate_scaling": "none"}) == []
    grouped = changed(**{**values, "optimizer.learning_rate": 0.1})
    with grouped.unlocked():
        grouped.optimizer.groups.head = default.get_group("head/.*")
    assert check.check_config(grouped) is None  # it takes the others' rate
    grouped.optimizer.groups.head.learning_rate = values["optimizer.learning_rate"]
    with pytest.raises(UserError) as caught:
        check.check_config(grouped)
    assert str(caught.value) == words.replace("optimizer.l", "optimizer.groups.head.l", 1)


def test_a_rate_that_milestones_make_zero():
    steps = {"schedule.name": "step", "schedule.milestones": (0.5, 1.0), "schedule.factor": 1e-20}
    (line,) = problems(**steps)
    assert line == (
        "optimizer.learning_rate is 0.001, which is 0 in float32 after 2 times schedule.factor "
        "1e-20: raise one of them"
    )
    assert problems(**{**steps, "schedule.factor": 1e-10}) == []


def test_the_nearest_name_may_have_other_capitals():
    (line,) = problems(**{"optimizer.name": "adamW"})
    assert line.endswith("; did you mean 'adamw'?")


def test_a_part_of_the_batch_must_be_divided_too():
    assert problems(**{"optimizer.accumulation_steps": 4, "num_cpu_devices": 16}) == []
    lines = problems(**{"optimizer.accumulation_steps": 8, "num_cpu_devices": 16})
    assert lines == ["batch_size 8 is not a multiple of num_cpu_devices 16"]


@pytest.mark.parametrize(
    ("optimizer", "patterns", "words"),
    [
        ("sgd", ["Dense_7/.*"], "params is 'Dense_7/.*', which matches none of Dense_0/bias, Den"),
        ("sgd", ["Dense_0/.*", ".*/bias"], "Dense_0/bias is in two of optimizer.groups, g0 and g1"),
        ("muon", [], "muon accepts only kernels: move Dense_0/bias to one of optimizer.groups"),
        ("muon", ["head/.*"], "muon accepts only kernels: move Dense_0/bias to"),
    ],
)
def test_groups_that_do_not_fit_the_model_are_refused_before_any_data(optimizer, patterns, words):
    config = tiny.config(optimizer__name=optimizer)
    with config.unlocked():
        for number, pattern in enumerate(patterns):
            config.optimizer.groups[f"g{number}"] = default.get_group(pattern)
            config.optimizer.groups[f"g{number}"].name = "sgd"
    with pytest.raises(UserError) as caught:
        check.check_config(config)
    (line,) = str(caught.value).splitlines()
    assert words in line


def test_every_mistake_has_its_line():
    values = {"seed": -1, "batch_size": 0, "dtype": "x", "data.name": "?", "model.name": "?"}
    assert len(problems(**values)) == 5


@pytest.fixture(scope="module")
def flag(tmp_path_factory):
    return program.write_config(tmp_path_factory.mktemp("config") / "short.py")


SETTINGS = hypothesis.settings(
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=list(hypothesis.HealthCheck),
)


@hypothesis.settings(SETTINGS, max_examples=150)
@hypothesis.given(rng=st.randoms(use_true_random=False))
def test_any_config_is_accepted_or_refused_with_a_message(flag, rng):
    assert wrong_configs.try_config(flag, wrong_configs.random_overrides(rng))[1] == stops.SURVIVED


@pytest.mark.slow
@hypothesis.settings(SETTINGS, max_examples=2000)
@hypothesis.given(rng=st.randoms(use_true_random=False))
def test_2000_configs(flag, rng):
    assert wrong_configs.try_config(flag, wrong_configs.random_overrides(rng))[1] == stops.SURVIVED


@pytest.mark.slow
def test_accepted_configs_train_a_step(flag, tmp_path):
    """A hundred of the configs that pass the check train, except those that do not fit the data."""
    seen = Counter()
    for number in range(300):
        rng = random.Random(number)
        outcome = wrong_configs.try_training(flag, tmp_path / "run", rng, seen)
        assert outcome == stops.SURVIVED
        if seen["trained a step"] == 100:
            return
    raise AssertionError(f"of 300 accepted configs {seen}")


@pytest.mark.parametrize("number", [slow(0), 1])
def test_an_accepted_config_trains_a_step(flag, tmp_path, number):
    rng, seen = random.Random(number), Counter()
    assert wrong_configs.try_training(flag, tmp_path / "run", rng, seen) == stops.SURVIVED
    assert seen.total() == 1


@pytest.mark.slow
@pytest.mark.parametrize("number", range(24))
def test_real_commands(flag, tmp_path, number):
    rng, seen = random.Random(number), Counter()
    assert wrong_configs.try_command(flag, tmp_path / "run", rng, seen) == stops.SURVIVED


def test_the_check_does_not_start_jaxs_devices():
    """Their number is set after it, for the batch of the config."""
    program_text = (
        "from jax._src import xla_bridge; from cifar_jax.training import check; "
        "from configs import resnet, speedrun; check.check_config(speedrun.get_config()); "
        "check.check_config(resnet.get_config('20')); "
        "print(xla_bridge.backends_are_initialized())"
    )
    environment = os.environ | {"PYTHONPATH": str(program.ROOT)}
    command = [sys.executable, "-c", program_text]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
