"""The trials of the speed record's recipe: their design, their configs, and what a table says."""

import ast
import contextlib
import itertools
import json
from types import SimpleNamespace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from scipy import special

from benchmarks import rare_norms, recipes, studies, study
from cifar_jax.config import fields
from cifar_jax.optim import muon
from cifar_jax.training import check
from configs import default, speedrun
from results import studies as studies_tables
from tests import program
from tests.few import some

RUNS = range(recipes.NUM_RUNS)
BATCH = "batches of 1536, not 2000"


def test_each_change_is_in_half_of_the_runs_and_each_two_in_a_quarter():
    changes = [recipes.list_changes(run) for run in RUNS]
    assert changes[0] == []
    for name in recipes.CHANGES:
        assert sum(name in own for own in changes) == len(RUNS) / 2
    for pair in itertools.combinations(recipes.CHANGES, 2):
        assert sum(set(pair) <= set(own) for own in changes) == len(RUNS) / 4


def test_no_two_runs_share_a_seed():
    words = [word for run in RUNS for word in recipes.list_flags(run)]
    seeds = [int(x.partition("=")[2]) for x in words if x.startswith("--config.seed=")]
    assert seeds == [recipes.NUM_SEEDS * run for run in RUNS]


@pytest.mark.parametrize("run", some([3, 6], RUNS))
def test_configs_fit_their_model_and_data(run, monkeypatch):
    monkeypatch.chdir(program.ROOT)
    file, *words = recipes.list_flags(run)
    assert file == "--config=configs/speedrun.py"
    config = speedrun.get_config()
    for word in words:
        name, value = word.removeprefix("--config.").split("=")
        with contextlib.suppress(ValueError, SyntaxError):
            value = ast.literal_eval(value)
        with config.unlocked():
            config.update_from_flattened_dict({name: value})
    check.check_config(config, default.get_config())


def test_the_smaller_batch_has_the_recipes_rates():
    """Those by SGD are proportional to the batch."""
    config = speedrun.get_config()
    flags = dict(x.removeprefix("--config.").split("=") for x in recipes.CHANGES[BATCH])
    smaller = int(flags.pop("batch_size"))
    assert len(flags) == sum(group.name == "sgd" for group in config.optimizer.groups.values())
    for name, rate in flags.items():
        own = dict(fields.flatten(config))[name]
        assert float(rate) / smaller == pytest.approx(own / config.batch_size)


def test_norms_are_restored_at_each_eighth_step_only():
    rng = np.random.default_rng(0)
    params = {"kernel": jnp.asarray(rng.normal(size=(3, 3, 4, 6)), jnp.float32)}
    rare, usual = rare_norms.muon(0.1), muon.muon(0.1)
    state, usual_state = rare.init(params), usual.init(params)
    update, usual_update = jax.jit(rare.update), jax.jit(usual.update)
    for step in range(10):
        gradient = {"kernel": jnp.asarray(rng.normal(size=(3, 3, 4, 6)), jnp.float32)}
        updates, state = update(gradient, state, params)
        others, usual_state = usual_update(gradient, usual_state, params)
        held = muon.hold_norms(jax.tree.map(jnp.zeros_like, params), params)
        expected = others["kernel"] - (0 if step % 8 == 0 else held["kernel"])
        np.testing.assert_allclose(updates["kernel"], expected, atol=1e-6, err_msg=f"step {step}")
        params = jax.tree.map(jnp.add, params, updates)


def test_a_table_compares_the_networks_with_and_without_a_change():
    runs = [
        {"changes": [], "check": False, "validation": [0.90, 0.92], "test": [0.8, 0.8]},
        {"changes": ["A"], "check": True, "validation": [0.93, 0.93], "test": [0.7, 0.7]},
        {"changes": ["B"], "check": True, "validation": [0.90, 0.92], "test": [0.8, 0.8]},
        {
            "changes": ["A", "B"],
            "check": False,
            "validation": [0.93, 0.97, 0.95],
            "test": [0.7, 0.7],
        },
    ]
    row = {"runs": runs, "hardware": "an abacus", "commit": "abc"}
    table = studies_tables.studies("recipe", {"speedrun": row})
    # The squares add up to 2e-4, 0, 2e-4 and 8e-4, with five degrees of freedom, of which 2.5706 is
    # the quantile; one side has four networks, the other five.
    half = 100 * 2.5706 * (12e-4 / 5 * (1 / 4 + 1 / 5)) ** 0.5
    assert f"| A | 91.00 % | 94.20 % | +3.20 ± {half:.2f} | -10.00 ± 0.00 |" in table
    assert f"| B | 92.00 % | 93.40 % | +1.40 ± {half:.2f} | +0.00 ± 0.00 |" in table
    assert f"| (a check) | 93.40 % | 92.00 % | -1.40 ± {half:.2f} | +0.00 ± 0.00 |" in table


def test_no_change_is_in_more_runs_of_the_check_than_of_the_others():
    for name in recipes.CHANGES:
        having = [run for run in RUNS if name in recipes.list_changes(run)]
        assert sum(run.bit_count() % 2 for run in having) == len(RUNS) / 4


def test_trainings_of_hours_are_left_out(tmp_path):
    for part in (studies.recipe, studies.views):
        assert list(part(study.Runs(tmp_path, long=False))) == []


@pytest.mark.slow
def test_runs_are_made_and_judged(monkeypatch, tmp_path):
    def run(words, cwd, check):
        code, _, errors = program.run_here(*words[2:])
        assert code == 0, errors

    config = program.write_config(tmp_path / "config.py", data__validation_examples=300)
    base = (config, "--config.num_seeds=2", "--config.data.seed=0")
    monkeypatch.setattr(study, "subprocess", SimpleNamespace(run=run))
    monkeypatch.setattr(recipes, "BASE", base)
    monkeypatch.setattr(recipes, "HELD_OUT", 300)
    smaller = {name: (f"--config.augment.cutout={i}",) for i, name in enumerate(recipes.CHANGES)}
    monkeypatch.setattr(recipes, "CHANGES", smaller)
    runs = study.Runs(tmp_path / "runs", long=True)
    ((name, row),) = studies.recipe(runs)
    assert name == "speedrun"
    assert len(row["commands"]) == len(row["runs"]) == recipes.NUM_RUNS
    for number, one in enumerate(row["runs"]):
        assert one["changes"] == recipes.list_changes(number)
        result = json.loads((tmp_path / "runs" / f"recipe_{number}" / "result.json").read_text())
        assert one["test"] == [x["test_accuracy"] for x in result["seeds"]]
        assert all(0 < x <= 1 and round(300 * x, 3) % 1 == 0 for x in one["validation"])
        assert one["check"] == (number in (1, 2, 4, 7))
    ((_, views),) = studies.views(runs)
    assert views["commands"] == row["commands"][:1]
    found = [network["plain"] for network in views["networks"]]
    assert found == row["runs"][0]["validation"]


PICTURES = {
    "images": np.arange(1, 9, dtype=np.uint8).reshape(8, 1, 1, 1),
    "labels": np.zeros(8, int),
}


class Brightness(NamedTuple):
    config: ConfigDict

    def predict_logits(self, images, batch_size):
        assert batch_size == 3
        kind, threshold = self.config.test_time.views, self.config.test_time.confidence_threshold
        level = images[:, 0, 0, 0].astype(np.float32)
        if kind == "plain":
            level = 20 - level
        elif kind == "mirror_shift":
            level = np.where(special.expit(level) < (threshold or 1), -level, level)
        return np.stack([level, 0 * level], axis=1)


def test_six_views_of_the_uncertain_quarter():
    """Two views of a picture of brightness n say n, the four others -n, one view 20 - n."""
    given = SimpleNamespace(trained=Brightness(ConfigDict({"eval_batch_size": 3})), **PICTURES)
    found = studies.compare_views(given)
    # Of the eight pictures those of brightness 1 and 2 are the uncertain quarter.
    assert found.pop("threshold") == pytest.approx(
        np.quantile(special.expit(np.arange(1, 9)), 0.25)
    )
    assert found == {"plain": 1, "mirror": 1, "uncertain": 6 / 8, "mirror_shift": 0}
