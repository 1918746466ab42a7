"""Many seeds in one program: each of them is what it is alone."""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import cifar_jax
from cifar_jax import files
from cifar_jax.errors import UserError
from cifar_jax.evaluation import evaluate, scores
from cifar_jax.parallel import devices, seeds
from cifar_jax.runs import history, workdir
from cifar_jax.runs import signals as signals_lib
from cifar_jax.training import check, loop, state
from tests import program, tiny
from tests.few import slow

ROOT = Path(__file__).parents[2]


def config(**fields):
    """Returns a config with everything that is random: order, augmentation, dropout."""
    options = {
        **{"data__validation_examples": 0, "num_steps": 4, "eval_every_steps": 2, "seed": 5},
        **{"augment__crop_padding": 2, "augment__cutmix_alpha": 1.0, "ema_decay": 0.5},
        **{"model__conv_features": (8,)},
        **{"optimizer__name": "sgd", "optimizer__learning_rate": 0.01},
    }
    return tiny.bn_config(**options | fields)


def start(folder, **fields):
    return train(folder, config(**fields))


def train(folder, wanted):
    check.check_config(wanted)
    folder.mkdir(exist_ok=True)
    assert loop.train_model(wanted, folder, signals_lib.Signals()) == 0
    return folder


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """The workdir of four seeds, two on each device, and what the console said."""
    return start(tmp_path_factory.mktemp("seeds") / "four", num_seeds=4)


def lines_of(folder, seed):
    """Returns a seed's lines of the log without what depends on the clock."""
    lines = history.read_lines(folder / workdir.METRICS)
    left_out = ("seed", "seconds", "images_per_second")
    return [
        {name: line[name] for name in line if name not in left_out}
        for line in lines
        if line.get("seed", seed) == seed
    ]


def assert_close(one, other, **tolerance):
    one, other = one.variables, other.variables
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), one, other)


@pytest.mark.parametrize("seed", [slow(5), 7])
def test_a_seed_is_what_it_is_alone(together, tmp_path, seed):
    alone = start(tmp_path / "alone", seed=seed)
    # Alone, the batch is divided among both devices, which add up in another order.
    assert_close(cifar_jax.load(together, seed=seed), cifar_jax.load(alone), atol=2e-6)
    for one, other in zip(lines_of(together, seed), lines_of(alone, seed), strict=True):
        assert one == pytest.approx(other, rel=1e-5)


@pytest.mark.slow
def test_a_seed_has_its_own_worst_weights(tmp_path):
    fields = {"data__validation_examples": 0, "num_steps": 3, "optimizer__name": "sgd"}

    def start(name, **more):
        return train(tmp_path / name, tiny.config(**fields | more))

    two = start("two", seed=5, num_seeds=2, optimizer__sam_radius=0.1)
    alone = start("alone", seed=6, optimizer__sam_radius=0.1)
    assert_close(cifar_jax.load(two, seed=6), cifar_jax.load(alone), atol=2e-6)
    without = start("without", seed=6)
    with pytest.raises(AssertionError):
        assert_close(cifar_jax.load(two, seed=6), cifar_jax.load(without), atol=2e-6)


@pytest.mark.slow
@pytest.mark.parametrize("at_once", [False, True])
def test_a_seed_of_the_speedrun_is_what_it_is_alone(tmp_path, at_once):
    fields = {"data__validation_examples": 0, "num_steps": 2, "seed": 5}
    for name, more in (("two", {"num_seeds": 2, "seeds_at_once": at_once}), ("alone", {})):
        (tmp_path / name).mkdir()
        wanted = tiny.speedrun_config(**fields | more)
        check.check_config(wanted)
        assert loop.train_model(wanted, tmp_path / name, signals_lib.Signals()) == 0
    # Muon divides by the gradient's norm, so rounding errors grow faster.
    two, alone = cifar_jax.load(tmp_path / "two", seed=5), cifar_jax.load(tmp_path / "alone")
    assert_close(two, alone, atol=1e-3)


def test_the_seeds_differ(together):
    kernels = [
        np.asarray(cifar_jax.load(together, seed=seed).variables["params"]["head"]["kernel"])
        for seed in (5, 6, 7, 8)
    ]
    assert all((a != b).mean() > 0.9 for a, b in itertools.pairwise(kernels))
    assert len({line["train_loss"] for line in history.read_lines(together / workdir.METRICS)}) == 8


PROGRAM = """
import sys
from pathlib import Path
import jax, numpy as np
import cifar_jax
from tests.parallel import test_seeds

folder = Path(sys.argv[1])
fields = dict(arg.split("=") for arg in sys.argv[2:])
test_seeds.start(folder, **{name: int(value) for name, value in fields.items()})
leaves = jax.tree.leaves([one.variables for one in cifar_jax.evaluation.trained.load_seeds(folder)])
np.savez(folder / "out.npz", *leaves)
print(jax.device_count(), "devices")
"""


def run_apart(folder, num_devices, **fields):
    """Trains in a process of its own; returns the arrays of all seeds and the lines of the log."""
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": str(num_devices), "PYTHONPATH": str(ROOT)}
    environment.pop("XLA_FLAGS", None)
    arguments = [f"{name}={value}" for name, value in fields.items()]
    command = [sys.executable, "-c", PROGRAM, str(folder), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    assert f"{num_devices} devices" in done.stdout
    with np.load(folder / "out.npz", allow_pickle=False) as arrays:
        return list(arrays.values()), history.read_lines(folder / workdir.METRICS)


@pytest.mark.slow
def test_1_2_and_8_devices_agree(together, tmp_path):
    """One device has all seeds, two have two each, eight share the batches of each."""
    every = cifar_jax.evaluation.trained.load_seeds(together)
    expected = jax.tree.leaves([one.variables for one in every])
    for num_devices in (1, 8):
        arrays, lines = run_apart(tmp_path / str(num_devices), num_devices, num_seeds=4)
        for one, other in zip(arrays, expected, strict=True):
            np.testing.assert_allclose(one, other, atol=2e-5)
        for line, other in zip(lines, history.read_lines(together / workdir.METRICS), strict=True):
            assert (line["seed"], line["step"]) == (other["seed"], other["step"])
            assert line["train_loss"] == pytest.approx(other["train_loss"], rel=1e-5)


@pytest.mark.slow
def test_a_device_of_its_own_gives_the_bits_of_the_run_alone(together, tmp_path):
    arrays, _ = run_apart(tmp_path / "alone", 1, seed=6)
    expected = jax.tree.leaves(cifar_jax.load(together, seed=6).variables)
    for one, other in zip(arrays, expected, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.slow
def test_at_once_or_one_after_another(together, tmp_path):
    start(tmp_path / "vmap", num_seeds=4, seeds_at_once=True)
    for seed in (5, 8):
        pair = [cifar_jax.load(folder, seed=seed) for folder in (together, tmp_path / "vmap")]
        assert_close(*pair, atol=2e-6)


@pytest.mark.slow
def test_seeds_that_the_devices_do_not_divide_and_streamed(together, tmp_path):
    start(tmp_path / "three", num_seeds=3, data__placement="host")
    pair = [cifar_jax.load(folder, seed=7) for folder in (together, tmp_path / "three")]
    assert_close(*pair, atol=2e-6)


def test_a_run_stopped_anywhere_ends_in_the_same_bits(together, tmp_path, monkeypatch):
    folder = tmp_path / "stopped"
    original, signals = loop.run_lib.update_bar, signals_lib.Signals()

    def update_bar(run, progress):
        signals.received = 15 if progress.step == 3 else 0
        original(run, progress)

    with monkeypatch.context() as patch:
        patch.setattr(loop.run_lib, "update_bar", update_bar)
        folder.mkdir()
        code = loop.train_model(config(num_seeds=4, steps_per_call=1), folder, signals)
    assert code == 143
    assert cifar_jax.load(folder).step == 3
    start(folder, num_seeds=4)
    states = [program.last_state(path) for path in (together, folder)]
    for (name, one), (other_name, other) in zip(*states, strict=True):
        assert name == other_name
        np.testing.assert_array_equal(one, other)
    assert lines_of(folder, 6) == lines_of(together, 6)


def test_the_result_has_every_seed_and_their_spread(together, capsys):
    result = files.read_json(together / workdir.RESULT)
    assert [row["seed"] for row in result["seeds"]] == [5, 6, 7, 8]
    accuracies = [row["test_accuracy"] for row in result["seeds"]]
    mean, half = np.mean(accuracies), 3.182446 * np.std(accuracies, ddof=1) / 2
    assert result["test_accuracy"] == pytest.approx(mean)
    assert result["test_accuracy_interval"] == pytest.approx([mean - half, mean + half])
    pooled = evaluate.evaluate_model(together)
    out = capsys.readouterr().out
    for row in result["seeds"]:
        assert f"{row['test_accuracy']:.2%}  {row['num_correct']:>7}" in out
        one = evaluate.evaluate_model(together, seed=row["seed"])
        assert (one.accuracy, one.loss) == (row["test_accuracy"], row["test_loss"])
    assert pooled.accuracy == pytest.approx(mean)
    assert f"{mean:.2%} +- " in out
    with pytest.raises(UserError, match="has no seed 9: --seed can be 5, 6, 7, 8"):
        evaluate.evaluate_model(together, seed=9)


def test_the_history_has_means_and_edges(together):
    lines, rows = history.read_lines(together / workdir.METRICS), history.read_history(together)
    assert [row["step"] for row in rows] == [2, 4]
    losses = [line["train_loss"] for line in lines if line["step"] == 4]
    assert rows[1]["train_loss"] == pytest.approx(np.mean(losses))
    assert (rows[1]["train_loss_low"], rows[1]["train_loss_high"]) == (min(losses), max(losses))
    assert "seed" not in rows[1]


def test_the_interval_is_students():
    summary = scores.summarize([0.2, 0.4, 0.9])
    assert summary.mean == pytest.approx(0.5)
    half = 4.302653 * np.std([0.2, 0.4, 0.9], ddof=1) / np.sqrt(3)
    assert summary.interval == pytest.approx((0.5 - half, 0.5 + half))
    assert scores.summarize([0.3]) == (0.3, None, None)


def test_a_seed_whose_loss_is_not_finite_is_named(tmp_path, monkeypatch):
    original = seeds.stack

    def stack(mesh, trees):
        """The third run begins with weights that overflow."""
        if hasattr(trees[0], "params"):
            trees[2] = trees[2].replace(params=jax.tree.map(lambda x: x + 1e38, trees[2].params))
        return original(mesh, trees)

    monkeypatch.setattr(seeds, "stack", stack)
    with pytest.raises(UserError, match=r"not finite in steps 1 to 1, seed 7: there is no") as stop:
        start(tmp_path / "run", num_seeds=4)
    assert stop.value.exit_code == 1


def test_a_seed_whose_weights_are_not_finite_is_found():
    mesh = devices.make_mesh(64, 4)
    assert mesh.shape["seed"] > 1
    trees = [{"kernel": np.ones((2, 3), "float32"), "count": np.int32(1)} for _ in range(4)]
    trees[2]["kernel"][1, 2] = np.inf
    assert state.all_finite(seeds.stack(mesh, trees), 4).tolist() == [True, True, False, True]


def test_impossible_seeds_are_refused():
    def refused(**fields):
        with pytest.raises(UserError) as refusal:
            check.check_config(config(**fields))
        return str(refusal.value)

    words = refused(num_seeds=2, data__validation_examples=10)
    advice = "set data.seed, by which all seeds choose the same images"
    assert words == f"num_seeds is 2 and data.validation_examples 10: {advice}"
    words = refused(num_seeds=2, data__validation_examples=0, data__label_noise=0.1)
    assert words == f"num_seeds is 2 and data.label_noise 0.1: {advice}"
    words = refused(num_seeds=2, seed=2**32 - 1)
    assert words == "seed is 4294967295 but the last of 2 must be less than 2**32"


@pytest.mark.parametrize(("num_seeds", "shape"), [(1, (1, 2)), (3, (1, 2)), (4, (2, 1))])
def test_devices_have_seeds_of_their_own_or_share_batches(num_seeds, shape):
    assert tuple(devices.make_mesh(64, num_seeds).shape.values()) == shape


def test_devices_with_seeds_of_their_own_exchange_nothing():
    def square(x, y):
        return (x * y).sum()

    mesh = devices.make_mesh(64, 4)
    for at_once in (False, True):
        run = jax.jit(seeds.map_seeds(square, mesh, (0, None), at_once))
        x = seeds.stack(mesh, [jax.numpy.full(3, i) for i in range(4)])
        compiled = run.lower(x, 2).compile()
        np.testing.assert_array_equal(compiled(x, 2), [0, 6, 12, 18])
        assert not any(word in compiled.as_text() for word in ("all-gather", "all-reduce"))


def test_a_run_from_before_there_were_seeds_resumes(tmp_path):
    folder = start(tmp_path / "old", num_steps=2)
    values = files.read_json(folder / workdir.CONFIG)
    for name in ("num_seeds", "seeds_at_once"):
        del values[name]
    (folder / workdir.CONFIG).write_text(json.dumps(values))
    start(folder, num_steps=4)
    assert cifar_jax.load(folder).step == 4
    with pytest.raises(UserError, match="num_seeds was 1 and is now 2"):
        start(folder, num_steps=4, num_seeds=2)
