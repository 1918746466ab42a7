"""Configs stored with runs: what may change when a run is resumed, and earlier versions."""

import copy

import pytest

from cifar_jax.config import rules, stored
from cifar_jax.training import check
from tests import tiny


def conflicts(old, new):
    return stored.conflicts(*(stored.to_json(tiny.config(**values)) for values in (old, new)))


@pytest.mark.parametrize(
    "values",
    [
        {"log__tensorboard": True},
        {"data__data_dir": "/elsewhere"},
        {"data__placement": "host"},
        {"num_cpu_devices": 1},
        {"deterministic": True},
        {"eval_batch_size": 7},
        {"eval_every_steps": 3},
        {"checkpoint__every_epochs": 0.5},
        {"test_time__views": "mirror"},
        {"num_epochs": 20.0},
        {"num_steps": 3},
    ],
)
def test_harmless_differences(values):
    assert conflicts({}, values) == []


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"optimizer__sam_radius": 0.1}, "optimizer.sam_radius was 0.0 and is now 0.1"),
        ({"loss__class_weights": "balanced"}, "loss.class_weights was None and is now 'balanced'"),
        ({"seed": 1}, "seed was 0 and is now 1"),
        ({"init_from": "runs/x"}, "init_from was '' and is now 'runs/x'"),
        ({"batch_size": 32}, "batch_size was 64 and is now 32"),
        ({"dtype": "bfloat16"}, "dtype was 'float32' and is now 'bfloat16'"),
        ({"augment__alternating_flip": True}, "augment.alternating_flip was False and is now True"),
        ({"optimizer__momentum": 0.5}, "optimizer.momentum was None and is now 0.5"),
        ({"model__hidden_sizes": (9,)}, "model.hidden_sizes was [16] and is now [9]"),
        ({"schedule__milestones": (1,)}, "schedule.milestones was [] and is now [1]"),
    ],
)
def test_harmful_differences_are_named(values, line):
    assert conflicts({}, values) == [line]


@pytest.mark.parametrize("name", rules.SCHEDULES)
def test_more_epochs_are_harmless_if_the_rates_stay(name):
    lines = conflicts({"schedule__name": name}, {"schedule__name": name, "num_epochs": 9.0})
    if name in ("constant", "step"):
        assert lines == []
    else:
        assert lines == ["num_epochs was 2.0 and is now 9.0"]


def test_a_field_that_only_one_config_has_is_named():
    old = stored.to_json(tiny.config())
    new = dict(old, more=1)
    assert stored.conflicts(old, new) == ["more was None and is now 1"]
    assert stored.conflicts(new, old) == ["more was 1 and is now None"]


def test_a_config_survives_json():
    config = tiny.config(schedule__milestones=(1, 2))
    again = stored.from_json(stored.to_json(config))
    assert again.is_locked
    assert stored.to_json(again) == stored.to_json(config)
    check.check_config(again)


def test_a_config_of_an_earlier_version_loads_and_its_run_can_be_resumed():
    now = stored.to_json(tiny.speedrun_config())
    before = copy.deepcopy(now)
    before["test_time"]["certainty"] = before["test_time"].pop("confidence_threshold")
    for options in (before["optimizer"], *before["optimizer"]["groups"].values()):
        del options["eps"], options["b3"]
    del before["data"]["train_split"], before["data"]["test_split"]
    unchanged = copy.deepcopy(before)
    loaded = stored.from_json(before)
    assert (loaded.optimizer.eps, loaded.optimizer.b3) == (None, None)
    assert (loaded.data.train_split, loaded.data.test_split) == ("train", None)
    assert loaded.test_time.confidence_threshold == 0.3
    assert "certainty" not in loaded.test_time
    assert stored.conflicts(before, now) == []
    now["optimizer"]["groups"]["head"]["eps"] = 1e-3
    words = "optimizer.groups.head.eps was None and is now 0.001"
    assert stored.conflicts(before, now) == [words]
    assert before == unchanged


def test_a_set_may_be_named_with_or_without_its_version():
    assert conflicts({"data__name": "mnist"}, {"data__name": "mnist:3.0.1"}) == []
    assert conflicts({"data__name": "emnist/letters:3.*.*"}, {"data__name": "emnist/letters"}) == []
    assert len(conflicts({"data__name": "mnist:3.0.1"}, {"data__name": "kmnist:3.0.1"})) == 1


def test_epochs_that_do_not_count_may_change():
    cosine = {"schedule__name": "cosine", "num_steps": 300}
    assert conflicts(cosine, {**cosine, "num_epochs": 1.0}) == []
    assert conflicts({**cosine, "schedule__warmup_steps": 3}, {**cosine, "num_steps": 200}) != []
    assert len(conflicts(cosine, {**cosine, "num_steps": None, "num_epochs": 1.0})) == 2
