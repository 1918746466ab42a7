"""A checkpoint's description is read by a schema: its sums may be right and its content not."""

import copy
import json
import math
from pathlib import Path

import pytest

from cifar_jax.config import stored
from cifar_jax.runs import history, meta, workdir
from tests import tiny

EARLIER = Path(__file__).parents[1] / "data" / "format-1" / "checkpoints" / "3" / "meta.json"
HUGE = 10**400


def describe(num_seeds=1):
    """Returns what a run of this version writes."""
    total = [3.5] * num_seeds if num_seeds > 1 else 3.5
    count = [64.0] * num_seeds if num_seeds > 1 else 64.0
    sums = {"loss": [total, count], "accuracy": [total, count]}
    # Right after a line of the log, no step counts.
    recent = {"loss": [[0.0] * num_seeds, [0.0] * num_seeds] if num_seeds > 1 else [0.0, 0.0]}
    recent["accuracy"] = recent["loss"]
    return {
        "config": stored.to_json(tiny.config(num_seeds=num_seeds)),
        "progress": {"step": 5, "seconds": 1.5, "stepping": 1, "sums": sums, "recent": recent},
        "data": {
            "class_names": ["a", "b"],
            "mean": [0.5],
            "std": [0.25],
            "image_shape": [32, 32, 1],
            "num_images": {"train": 320, "test": 360},
            "labels_sha256": {"train": "12", "test": "34"},
        },
        "metrics": {},
    }


def change(values, name, value):
    changed = copy.deepcopy(values)
    *parts, field = name.split(".")
    place = changed
    for part in parts:
        place = place[part]
    place[field] = value
    return changed


def test_what_this_version_and_earlier_ones_write_is_sound():
    assert meta.find_meta_fault(json.loads(EARLIER.read_text()), 3) == ""
    for num_seeds in (1, 3):
        assert meta.find_meta_fault(describe(num_seeds), 5) == ""
    assert meta.find_meta_fault({}, 5) == ""
    assert meta.find_meta_fault(change(describe(), "data.labels_sha256", "12"), 5) == ""
    assert meta.find_meta_fault(change(describe(), "config.of_a_later_version", 3), 5) == ""


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        *(("config", value, "it has no config") for value in ([1], None, 5, {}, "x")),
        ("config.model", "mlp", "it has no config"),
        ("config.test_time", 5, "it has no config"),
        ("config.test_time.views", "bogus", "its config has test_time.views 'bogus'"),
        ("config.loss", 5, "it has no config"),
        ("config.dtype", "float8", "its config has dtype 'float8'"),
        ("config.batch_size", "64", "its config has batch_size '64'"),
        ("config.batch_size", HUGE, "its config has batch_size 1000"),
        ("config.ema_decay", float("nan"), "its config has ema_decay nan"),
        ("config.seed", None, "its config has seed None"),
        ("config.num_seeds", 0, "its config has no seeds"),
        ("data", [1], "its data have a wrong description"),
        *(
            ("data.class_names", value, "its data have a wrong class_names")
            for value in (5, None, [], [1], "ab")
        ),
        *(("data.mean", x, "its data have a wrong mean") for x in ([float("nan")], [], [0.5, 1])),
        *(("data.mean", x, "its data have a wrong mean") for x in (0.5, ["a"], [HUGE], [True])),
        *(("data.std", value, "its data have a wrong std") for value in ([0], [-1.0], None)),
        *(
            ("data.image_shape", value, "its data have a wrong image_shape")
            for value in ([32, 32], [32, 32, 0], [32, 32, 1.0], 5)
        ),
        ("data.num_images", [1], "its data have a wrong num_images"),
        ("data.labels_sha256", {"train": 5}, "its data have a wrong labels_sha256"),
        ("temperature", 0, "its temperature is 0"),
        ("temperature", float("nan"), "its temperature is nan"),
        *(
            (f"progress.{name}", value, "its progress cannot be read")
            for name, value in [
                *(("step", 5.0), ("step", "5"), ("step", -1), ("step", True)),
                *(("seconds", float("inf")), ("seconds", HUGE), ("seconds", None)),
                *(("stepping", float("nan")), ("sums", []), ("recent", {"loss": [1, 1]})),
                ("sums", {"loss": [1.0, 64.0], "accuracy": [[1.0, 2.0], 64.0]}),
                ("sums", {"loss": [HUGE, 64.0], "accuracy": [1.0, 64.0]}),
            ]
        ),
        ("progress", None, "its progress cannot be read"),
        ("progress.step", 6, "it is the checkpoint of step 6"),
    ],
)
def test_what_cannot_be_is_a_fault(name, value, words):
    fault = meta.find_meta_fault(change(describe(), name, value), 5)
    assert fault.startswith(words)
    assert "\n" not in fault


def test_the_sums_of_several_seeds_have_one_length():
    values = describe(3)
    values["progress"]["sums"]["loss"][0] = [1.0, 2.0]
    assert meta.find_meta_fault(values, 5) == "its progress cannot be read"


@pytest.mark.parametrize(
    "line",
    [
        f'{{"step": 2, "epoch": {HUGE}}}',
        '{"step": 2, "epoch": 1e308}',
        '{"step": 2, "epoch": NaN}',
        f'{{"step": {HUGE}, "epoch": 2}}',
        '{"step": 2.0, "epoch": 2}',
        '{"step": true, "epoch": 2}',
    ],
)
def test_a_line_of_the_log_with_a_number_that_cannot_be_is_skipped(tmp_path, caplog, line):
    path = tmp_path / workdir.METRICS
    path.write_text(f'{{"step": 1, "epoch": 1.0}}\n{line}\n{{"step": 3, "epoch": 3.0}}\n')
    assert [row["step"] for row in history.read_history(tmp_path)] == [1, 3]
    assert caplog.messages == [f"line 2 of {path} is damaged and skipped"]


def test_a_metric_that_cannot_be_is_left_out(tmp_path):
    for seed in (0, 1):
        with (tmp_path / workdir.METRICS).open("a") as file:
            file.write(f'{{"step": 1, "epoch": 1, "seed": {seed}, "train_loss": 1e308, ')
            file.write(f'"eval_loss": {HUGE}, "eval_accuracy": Infinity, "seconds": 2}}\n')
    infinite = dict.fromkeys(("eval_accuracy", "eval_accuracy_low", "eval_accuracy_high"), math.inf)
    kept = {"step": 1, "epoch": 1, "seconds": 2, **infinite}
    assert history.read_history(tmp_path) == [kept]
