"""The benchmark by the speed records' rules: its parts, and how it resumes."""

import json
import sys
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest

from benchmarks import collectives, racer, scaling, speedrun, workers
from cifar_jax.data import datasets
from cifar_jax.errors import UserError
from cifar_jax.runs import signals
from cifar_jax.training import check
from cifar_jax.training import loop as train
from configs import default
from results import scale
from tests import tiny
from tests.few import slow


@pytest.mark.slow
def test_the_speedrun_benchmark_resumes(tmp_path, capsys):
    command = ["--quick", "--num-seeds=2", "--minutes=0", f"--output={tmp_path / 'found.json'}"]
    codes = [speedrun.main(command) for _ in range(4)]
    # The rate of matrix products, two seeds, the throughput; then nothing is left.
    assert codes == [speedrun.UNFINISHED] * 4
    before = (tmp_path / "found.json").read_bytes()
    assert speedrun.main(command) == 0
    assert (tmp_path / "found.json").read_bytes() == before
    found = json.loads(before)
    row = found["runs"]["speedrun"]
    assert [one["seed"] for one in row["seeds"]] == [0, 1]
    assert row["flops"] > 0
    assert found["throughput"]["speedrun"]["images_per_second"][0] > 0
    assert "| `speedrun` | 2 | 2 |" in scale.speedrun(found)
    assert "seed 1:" in capsys.readouterr().out


class Racer:
    """Runs that are only counted."""

    config = default.get_config()
    durations = SimpleNamespace(total=8)

    def __init__(self):
        self.ran = []

    def run(self, seed, num_steps=None):
        self.ran.append((seed, num_steps))
        return {"seed": seed, "accuracy": 0.9 + seed / 100, "seconds": 2.0}

    def count_flops(self):
        return 3e15


def test_runs_alternate_with_the_record_and_resume(tmp_path):
    def open_results():
        return speedrun.Results(tmp_path / "found.json", fresh=False)

    runner, rival = Racer(), Racer()
    words = speedrun.race(open_results(), "speedrun", runner, 2, rival.run)
    assert next(words) == "speedrun, seed 0: 90.00% in 2.00 s"  # stopped here
    assert runner.ran == [(0, 2), (0, 2), (0, None)]
    runner = Racer()
    assert list(speedrun.race(open_results(), "speedrun", runner, 2, rival.run)) == [
        "the record, run 0: 90.00% in 2.00 s",
        "speedrun, seed 1: 91.00% in 2.00 s",
        "the record, run 1: 91.00% in 2.00 s",
    ]
    assert runner.ran == [(0, 2), (0, 2), (1, None)]
    runner = Racer()
    assert list(speedrun.race(open_results(), "speedrun", runner, 2, rival.run)) == []
    assert runner.ran == []
    found = open_results().found
    table = scale.speedrun(found | {"matrix_rate": 6e15})
    assert (
        "| `speedrun` | 10 | 2 | 90.50% ± 0.71% (84.15% to 96.85%) | 2.00 s | 3.00 | 25% |" in table
    )
    del found["runs"]["speedrun"]["compile_seconds"]
    assert "| 25% |  |" in scale.speedrun(found | {"matrix_rate": 6e15})
    found["commit"] = "another"
    (tmp_path / "found.json").write_text(json.dumps(found))
    with pytest.raises(SystemExit, match="has another commit, another: --fresh starts again"):
        open_results()


@pytest.mark.parametrize(
    ("name", "views"),
    [
        *(("simple_cnn", "plain"), ("simple_cnn", "mirror")),
        slow("resnet:20", "mirror"),
    ],
)
def test_a_runs_operations_are_those_of_its_multiplications(name, views):
    config = collectives.load_config(name)
    config.test_time.views = views
    config.data.name, config.num_epochs = "digits", 2.0
    dataset = speedrun.random_dataset(2 * config.batch_size)
    # One way through the net for each view of a test image, three for an image of training.
    ways = {"plain": 1, "mirror": 2}[views]
    images = (2 * 3 + ways) * len(dataset.splits["train"].labels)
    multiplications = images * scaling.forward_macs(name)
    assert racer.Racer(config, dataset).count_flops() == pytest.approx(2 * multiplications, rel=0.1)


def test_an_uncountable_run_is_reported_before_compiling(tmp_path, monkeypatch):
    def count_flops(self):
        raise UserError("no CPU")

    monkeypatch.setattr(Racer, "count_flops", count_flops)
    runner = Racer()
    results = speedrun.Results(tmp_path / "found.json", fresh=False)
    with pytest.raises(UserError, match="no CPU"):
        next(speedrun.race(results, "speedrun", runner, 1, None))
    assert runner.ran == []


def test_the_time_of_compiling_is_kept_when_the_first_run_fails(tmp_path, monkeypatch):
    def run(self, seed, num_steps=None):
        if num_steps is None:
            raise KeyboardInterrupt

    monkeypatch.setattr(Racer, "run", run)
    path = tmp_path / "found.json"
    with pytest.raises(KeyboardInterrupt):
        next(speedrun.race(speedrun.Results(path, fresh=False), "speedrun", Racer(), 1, None))
    assert "compile_seconds" in json.loads(path.read_text())["runs"]["speedrun"]


def test_counting_without_a_cpu_is_refused(monkeypatch):
    def local_devices(backend):
        raise RuntimeError(f"Unknown backend {backend}")

    own = racer.Racer(default.get_config(), speedrun.random_dataset(128))
    monkeypatch.setattr(racer.jax, "local_devices", local_devices)
    with pytest.raises(UserError, match="JAX_PLATFORMS=cuda,cpu: Unknown backend cpu"):
        own.count_flops()


def test_the_record_does_not_join_runs_made_without_it(tmp_path):
    results = speedrun.Results(tmp_path / "found.json", fresh=False)
    list(speedrun.race(results, "speedrun", Racer(), 2, None))
    with pytest.raises(SystemExit, match="that did not alternate with the record's: --fresh"):
        next(speedrun.race(results, "speedrun", Racer(), 2, Racer().run))


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--configs=speedrun,nothing", "no config 'nothing' in configs/: No module"),
        (
            "--configs=speedrun:97",
            "no config 'speedrun:97' in configs/: configs/speedrun.py has",
        ),
        ("--airbench=nowhere.py", "there is no file nowhere.py"),
        ("--output=setup.cfg/found.json", "--output: its folder cannot be made: "),
    ],
)
def test_wrong_flags_are_named_at_once(capsys, flags, words):
    with pytest.raises(SystemExit) as stop:
        speedrun.main([flags])
    assert stop.value.code == 2
    assert words in capsys.readouterr().err


@pytest.mark.slow
def test_the_first_run_compiles_all_that_a_whole_run_needs_before_its_clock_starts(monkeypatch):
    config = tiny.speedrun_config(data__validation_examples=0, num_steps=2)
    config.optimizer.groups.stem_bias.num_epochs = 0.05  # one step
    own = racer.Racer(config, datasets.load_dataset("digits"))
    compiled = []

    def compile_call(first_step, arguments):
        compiled.append((first_step, clock.called))
        return lambda *arguments: arguments[:2]

    clock = mock.Mock(side_effect=[1.0, 3.0, 5.0, 6.0])
    monkeypatch.setattr(own.programs, "compile", compile_call)
    monkeypatch.setattr(own, "predict", lambda *_: np.zeros((360, 10)))
    monkeypatch.setattr(racer.time, "perf_counter", clock)
    assert own.run(0, 1)["seconds"] == 2.0
    assert compiled == [(0, False), (1, False), (0, True)]
    assert own.run(0)["seconds"] == 1.0
    assert compiled[3:] == [(0, True), (1, True)]


@pytest.mark.slow
def test_a_timed_run_is_the_run_of_the_command(tmp_path):
    config = tiny.speedrun_config(seed=3, data__validation_examples=0, num_steps=3)
    check.check_config(config)
    train.train_model(config, tmp_path, signals.Signals())
    found = racer.Racer(config, datasets.load_dataset("digits")).run(3)
    result = json.loads((tmp_path / "result.json").read_text())
    assert found["accuracy"] == pytest.approx(result["test_accuracy"])


RECORD = """
import torch

class CifarNet(torch.nn.Module):
    def cuda(self):
        return self

    def compile(self, mode):
        self.mode = mode

def print_training_details(variables, is_final_entry):
    raise AssertionError

def main(run, model):
    data = torch.load("cifar10/test.pt")
    accuracy = (data["labels"] == 3).float().mean().item()
    time_seconds = 2.5 if run == "warmup" else 1.0 + run
    print_training_details(locals(), is_final_entry=True)
    return accuracy
"""


@pytest.mark.slow
def test_the_records_script_runs_unchanged(tmp_path):
    pytest.importorskip("torch")
    (tmp_path / "record.py").write_text(RECORD)
    speedrun.write_images(tmp_path, speedrun.random_dataset(64))
    arguments = ["airbench", str(tmp_path / "record.py"), str(tmp_path)]
    rival = workers.Worker("airbench", sys.executable, arguments)
    rival.ask("prepare")
    labels = speedrun.random_dataset(64).splits["test"].labels
    for number in (0, 3):
        found = rival.ask("run", number=number)
        assert found == {"accuracy": pytest.approx((labels == 3).mean()), "seconds": 1.0 + number}
    rival.close()
