"""The benchmarks' protocol and comparison, a quick run of them, and what results are made into."""

import importlib.util
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import seeds, speedrun, startup, step_time, workers
from benchmarks.peers import protocol
from cifar_jax.errors import UserError
from configs import default
from results import collect, scale, systems, tables


def test_a_case_survives_the_file(tmp_path):
    layers = [
        {"kernel": np.ones((3, 3, 3, 2), np.float32), "bias": np.zeros(2, np.float32)},
        {"scale": np.arange(2, dtype=np.float32)},
    ]
    images = np.arange(48, dtype=np.uint8).reshape(1, 4, 4, 3)
    path = str(tmp_path / "case.npz")
    protocol.write_case(path, protocol.Case(layers, images, np.array([3], np.int32)))
    case = protocol.read_case(path)
    assert [list(layer) for layer in case.layers] == [["kernel", "bias"], ["scale"]]
    np.testing.assert_array_equal(case.layers[1]["scale"], [0, 1])
    np.testing.assert_array_equal(case.images, images)
    np.testing.assert_array_equal(case.labels, [3])


def test_a_turn_counts_the_images_of_its_steps():
    asked = []

    def run(number):
        asked.append(number)
        return 0.25 * number

    handlers = protocol.timing_handlers(lambda model, size: protocol.Runner(run, run), None)
    handlers["prepare"](model="mlp", batch_size=32)
    handlers["calibrate"]()
    asked.clear()
    assert handlers["measure"](what="train", seconds=1.0) == pytest.approx(128)
    assert handlers["measure"](what="infer", seconds=0.1) == pytest.approx(128)
    assert asked == [4, 1]


def test_drawn_weights_are_the_same_each_time():
    layers = [{"kernel": [3, 3, 3, 64]}, {"scale": [64], "var": [64], "mean": [64]}]
    case, again = (step_time.draw_case(layers, "simple_cnn") for _ in range(2))
    for layer, other in zip(case.layers, again.layers, strict=True):
        for name in layer:
            np.testing.assert_array_equal(layer[name], other[name])
            assert layer[name].dtype == np.float32
    assert case.layers[0]["kernel"].std() == pytest.approx(np.sqrt(2 / 27), rel=0.05)
    assert case.layers[1]["var"].min() > 0
    assert case.images.shape == (128, 32, 32, 3)


def found(**changes):
    ours = {"parameters": 10, "variables": 12, "losses": [2.0, 1.9, 1.8]}
    return {"ours": ours, "jax": ours | changes}


def test_equal_frameworks_can_be_compared():
    result = step_time.compare("mlp", found(losses=[2.0001, 1.901, 1.801]))
    assert result["variables"] == 12
    assert result["differences"] == pytest.approx([5e-5, 5.26e-4, 5.56e-4], rel=1e-2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"parameters": 11}, "numbers of parameters differ"),
        ({"variables": 10}, "numbers of variables differ"),
        ({"losses": [2.001, 1.9, 1.8]}, "losses from equal weights differ"),
        ({"losses": [2.0, 1.9, float("nan")]}, "losses from equal weights differ"),
    ],
)
def test_unequal_frameworks_cannot(changes, message):
    with pytest.raises(workers.WorkerError, match=message):
        step_time.compare("mlp", found(**changes))


def rate_row(framework, rate, **changes):
    row = {"model": "vgg_bn", "batch_size": 128, "what": "train", "framework": framework}
    return row | {"images_per_second": rate, "rounds": [rate - 10, rate, rate + 10]} | changes


def test_compiling_is_left_out_where_it_did_not_pay():
    eager, compiled = rate_row("pytorch", 100.0), rate_row("pytorch_compiled", 110.0)
    assert step_time.compiling_pays([], "vgg_bn")
    assert step_time.compiling_pays([eager, compiled], "vgg_bn")
    assert not step_time.compiling_pays([eager, rate_row("pytorch_compiled", 101.0)], "vgg_bn")
    assert step_time.compiling_pays([eager], "mlp")


@pytest.mark.parametrize("framework", ["keras", "pytorch", "pytorch_compiled"])
def test_a_framework_without_interpreter_is_skipped(framework):
    options = step_time.parse(["--jax-python=/nowhere/python"])
    assert getattr(options, step_time.FRAMEWORKS[framework].option) is None


def test_a_missing_framework_is_named():
    with pytest.raises(workers.WorkerError, match="No such file"):
        workers.Worker("jax", "/nowhere/python", ["stock_jax"])
    if importlib.util.find_spec("tensorflow") is None:
        with pytest.raises(workers.WorkerError, match="No module named"):
            workers.Worker("keras", sys.executable, ["keras_tf"])


def test_quick_run(tmp_path, capfd):
    path = tmp_path / "bench_step_time.json"
    assert step_time.main(["--quick", f"--output={path}"]) == 0
    assert "skipping keras: no --keras-python" in capfd.readouterr().out
    result = json.loads(path.read_text())
    assert result["checks"][0]["parameters"] == 418_060
    assert result["checks"][0]["losses"].keys() == {"ours", "jax"}
    assert max(result["checks"][0]["differences"]) < 1e-5
    rows = {(row["framework"], row["what"]) for row in result["measurements"]}
    assert rows == {(name, what) for name in ("ours", "jax") for what in ("train", "infer")}
    assert min(row["images_per_second"] for row in result["measurements"]) > 0
    table = tables.step_time(result)
    assert "| mlp | 32 |" in table
    assert str(tmp_path) not in path.read_text()


@pytest.mark.slow
@pytest.mark.parametrize("model", step_time.MODELS)
def test_stock_jax_computes_the_same(model):
    pair = {
        name: workers.Worker(name, sys.executable, step_time.FRAMEWORKS[name].arguments)
        for name in ("ours", "jax")
    }
    try:
        assert max(step_time.check(pair, model)["differences"]) < 1e-3
    finally:
        for worker in pair.values():
            worker.close()


def test_the_first_step_is_seen_on_the_terminal():
    program = "import sys, time; assert sys.stderr.isatty(); time.sleep(0.2); "
    program += "sys.stderr.write(' 1/390 [00:00<?, ?step/s]'); sys.stderr.flush(); time.sleep(60)"
    seconds = startup.time_first_step([sys.executable, "-c", program], {})
    assert 0.2 < seconds < 10


def test_a_command_that_fails_is_named():
    with pytest.raises(RuntimeError, match="no step was made: oh"):
        startup.time_first_step([sys.executable, "-c", "import sys; sys.exit('oh')"], {})


def write_run(folder, seed, changes=None):
    folder.mkdir()
    config = {"seed": seed, "num_epochs": 2.0, "data": {"name": "digits", "data_dir": f"/d{seed}"}}
    result = {
        "config": config,
        "seed": seed,
        "num_epochs": 2.0,
        "test_accuracy": 0.9 + seed / 100,
        "test_loss": 0.3,
        "num_correct": 324,
        "num_images": 360,
        "wall_seconds": 10.0 + seed,
        "devices": "2 CPU devices",
        "environment": {
            "commit": "abc",
            "versions": {"jax": "0.10.2"},
            "processor": "Abacus 3000",
            "cores": 2,
            "host": "secret-host",
            "command": ["/secret/main.py", "--config=/secret/configs/resnet.py:20"],
        },
    }
    (folder / "result.json").write_text(json.dumps(result | (changes or {})))
    lines = [{"step": 5, "train_loss": 1.23456789}, {"step": 10, "eval_loss": 0.5}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_seeds_are_collected_into_one_result(tmp_path, capsys):
    folders = [write_run(tmp_path / f"run{seed}", seed) for seed in (2, 0, 1)]
    assert collect.main(["digits", *map(str, folders), f"--folder={tmp_path}"]) == 0
    assert "3 seeds, 91.00% +- 1.00%" in capsys.readouterr().out
    text = (tmp_path / "digits.json").read_text()
    assert "secret" not in text
    result = json.loads(text)
    assert result["test_accuracy"] == pytest.approx(0.91)
    assert result["test_accuracy_std"] == pytest.approx(0.01)
    assert result["test_loss_std"] == 0
    assert result["wall_seconds"] == pytest.approx(11)
    assert [row["seed"] for row in result["seeds"]] == [0, 1, 2]
    curve = result["seeds"][0]["curve"]
    assert curve == {"step": [5, 10], "train_loss": [1.23457, None], "eval_loss": [None, 0.5]}
    assert result["hardware"] == "2 CPU devices, 2 cores of Abacus 3000"
    assert result["config"]["file"] == "configs/resnet.py:20"
    assert (result["commit"], result["versions"]) == ("abc", {"jax": "0.10.2"})


def test_one_seed_has_no_deviation(tmp_path):
    result = collect.collect("digits", [write_run(tmp_path / "run", 4)])
    assert result["test_accuracy_std"] is None
    assert result["test_accuracy"] == pytest.approx(0.94)


def test_overrides_are_what_the_file_does_not_say():
    from cifar_jax import config as config_lib
    from configs import resnet

    config = config_lib.to_json(resnet.get_config("20"))
    config |= {"seed": 7, "num_epochs": 5.0, "init_from": "/home/me/runs/first"}
    config["data"]["data_dir"] = "/home/me/data"
    described = collect.describe_config(config, ["main.py", "--config", "configs/resnet.py:20"])
    assert described == {
        "file": "configs/resnet.py:20",
        "overrides": {"num_epochs": 5.0, "init_from": "first"},
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"config": {"seed": 1, "num_epochs": 3.0}}, "data.name is None"),
        ({"environment": {"commit": "def", "versions": {}}}, "commit is def"),
        ({"seed": 0}, "the same seed"),
    ],
)
def test_runs_that_do_not_belong_together_are_refused(tmp_path, changes, message):
    folders = [write_run(tmp_path / "a", 0), write_run(tmp_path / "b", 1, changes)]
    with pytest.raises(UserError, match=message):
        collect.collect("digits", folders)


def test_seeds_that_were_trained_together_are_collected_too(tmp_path):
    each = [{"seed": seed, "test_accuracy": seed / 10, "test_loss": 1.0} for seed in (4, 5)]
    both = write_run(tmp_path / "both", 4, {"seeds": [{**x, "num_correct": 3} for x in each]})
    lines = [{"step": 5, "seed": seed, "train_loss": seed} for seed in (4, 5)]
    (both / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    result = collect.collect("digits", [both, write_run(tmp_path / "alone", 3)])
    assert [row["seed"] for row in result["seeds"]] == [3, 4, 5]
    assert [row["wall_seconds"] for row in result["seeds"]] == [13, 7, 7]
    assert result["seeds"][2]["curve"] == {"step": [5], "train_loss": [5]}
    values = [0.93, 0.4, 0.5]
    half = 4.302653 * np.std(values, ddof=1) / np.sqrt(3)
    mean = np.mean(values)
    assert result["test_accuracy_interval"] == pytest.approx([mean - half, mean + half])


def test_an_unfinished_run_is_named(tmp_path, capsys):
    assert collect.main(["digits", str(tmp_path), f"--folder={tmp_path}"]) == 2
    assert "result.json does not exist" in capsys.readouterr().err


README = """# A project
<!-- table: bench_step_time -->
<!-- end -->
between
<!-- table: training -->
old
<!-- end -->
<!-- table: bench_startup -->
kept
<!-- end -->
"""


def step_time_result(rows):
    return {
        "measurements": rows,
        "hardware": "2 cores",
        "versions": {"ours": {"jax": "0.10.2"}, "pytorch": {"torch": "2.13.0"}},
    }


def test_the_readme_gets_its_tables(tmp_path, capsys):
    rows = [rate_row("ours", 220.0), rate_row("pytorch", 200.0), rate_row("pytorch_compiled", 110)]
    (tmp_path / "bench_step_time.json").write_text(json.dumps(step_time_result(rows)))
    collect.main(["digits", str(write_run(tmp_path / "run", 0)), f"--folder={tmp_path}"])
    readme = tmp_path / "README.md"
    readme.write_text(README)
    arguments = [f"--readme={readme}", f"--folder={tmp_path}"]
    assert tables.main([*arguments, "--check"]) == 1
    assert readme.read_text() == README
    assert tables.main(arguments) == 0
    assert tables.main([*arguments, "--check"]) == 0
    text = readme.read_text()
    assert (
        "| vgg_bn | 128 | 220 (210 to 230) | not run | not run "
        "| 200 (190 to 210): **1.10x** |\n" in text
    )
    assert "|  |  |  | `configs/resnet.py:20 --config.num_epochs=2.0" in text
    assert "| **90.00 %** | 0.3000 | 2 | 1 | 0.2 min | 2 CPU devices, 2 cores of Abacus" in text
    assert "old" not in text
    assert "\nbetween\n" in text
    assert "<!-- table: bench_startup -->\nkept\n<!-- end -->\n" in text


def test_a_system_stands_beside_what_it_reported():
    names = ("unknown", "resnet_20", "numpy_mlp")
    config = {"file": "configs/resnet.py:20", "overrides": {"num_epochs": 5.0}}
    module = {"module": "cifar_jax.numpy_mlp", "dataset": "mnist"}
    seeds = [{"test_accuracy": a, "test_loss": 0.3} for a in (0.90, 0.91, 0.92)]
    rest = {"num_epochs": 5.0, "wall_seconds": 90, "hardware": "2 cores"}
    numpy_mlp, resnet, unknown = systems.rows(
        {
            **{"name": name, "seeds": seeds[:1] if name == "unknown" else seeds},
            **{"config": module if name == "numpy_mlp" else config, **rest},
        }
        for name in names
    )
    assert resnet == [
        *("ResNet (Keras)", "90.35 % (0.3836)", "130"),
        "`configs/resnet.py:20 --config.num_epochs=5.0`",
        *("**91.00 ± 1.00 %**", "0.3000 ± 0.0000", "5", "3", "1.5 min", "2 cores"),
    ]
    assert numpy_mlp[:4] == [
        "NumPy network",
        "",
        "",
        "`python -m cifar_jax.numpy_mlp --dataset=mnist`",
    ]
    assert unknown[:3] == ["", "", ""]
    assert unknown[4:6] == ["**90.00 %**", "0.3000"]


def test_compiled_pytorch_counts_where_it_is_the_best():
    rates = {"ours": 220.0, "pytorch": 200.0, "pytorch_compiled": 440.0}
    rows = [rate_row(name, rate) for name, rate in rates.items()]
    table = tables.step_time(step_time_result(rows))
    assert "440 (430 to 450), compiled: **0.50x**" in table


@pytest.mark.slow
def test_the_quick_run_of_the_seeds(tmp_path):
    path = tmp_path / "bench_seeds.json"
    options = ["--models=mlp", "--calls=mlp", "--num-seeds=2", "--rounds=1", "--seconds=0.01"]
    assert seeds.main([*options, "--steps=3", f"--output={path}"]) == 0
    result = json.loads(path.read_text())
    (row,), (call,) = result["seeds"], result["calls"]
    assert all(rate > 0 for rates in row["images_per_second"].values() for rate in rates)
    assert call["difference"]["calls"] == 0
    assert 0 <= call["difference"]["steps"] < 1e-5
    assert seeds.main(["--models=none", "--calls=none", f"--output={path}"]) == 0
    assert json.loads(path.read_text())["calls"] == [call]


def test_the_table_of_the_seeds():
    rates = {"alone, one device": [90.0], "alone, all devices": [100.0]}
    rates |= {"one after another": [160.0], "at once": [40.0]}
    calls = {"scan": [110.0], "calls": [100.0], "steps": [55.0]}
    result = {
        "seeds": [{"model": "mlp", "num_seeds": 8, "images_per_second": rates}],
        "calls": [
            {
                **{"model": "mlp", "steps": 78, "images_per_second": calls},
                "difference": {"calls": 0.0, "steps": 1.5e-7},
            }
        ],
        **{"devices": "2 CPU devices", "hardware": "2 cores"},
    }
    table = scale.seeds(result)
    assert "| mlp | 8 | 100 (100 to 100) | 160 (160 to 160): **5.00** |" in table
    assert "**1.10x**, 0.0e+00 | 55 (55 to 55): **2.00x**, 1.5e-07 |" in table


def test_start_up_table():
    result = {
        "cold_seconds": 9.61,
        "warm_seconds": 3.5,
        "resident_bytes": {"ours": 2**30, "keras": 2**31},
        "hardware": "2 cores",
    }
    table = tables.startup(result)
    assert "| first step, cold compilation cache | 9.6 s |" in table
    assert "| memory, Keras on TensorFlow | 2,048 MiB |" in table


def test_an_unknown_table_is_an_error(tmp_path, capsys):
    readme = tmp_path / "README.md"
    readme.write_text("<!-- table: nonsense -->\n<!-- end -->\n")
    assert tables.main([f"--readme={readme}", f"--folder={tmp_path}"]) == 2
    assert "wants the table 'nonsense'" in capsys.readouterr().err


def test_the_projects_readme_is_what_its_results_say():
    assert tables.main(["--check"]) == 0


def test_results_name_no_machine():
    for path in Path(tables.FOLDER).glob("*.json"):
        text = path.read_text()
        assert '"host"' not in text, path
        assert "/home/" not in text, path


@pytest.mark.slow
def test_the_speedrun_benchmark_goes_on_where_it_stopped(tmp_path, capsys):
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


def test_runs_alternate_with_the_record_and_go_on(tmp_path):
    def open_results():
        return speedrun.Results(tmp_path / "found.json", fresh=False)

    racer, rival = Racer(), Racer()
    words = speedrun.race(open_results(), "speedrun", racer, 2, rival.run)
    assert next(words) == "speedrun, seed 0: 90.00% in 2.00 s"  # stopped here
    assert racer.ran == [(0, 2), (0, None)]
    racer = Racer()
    assert list(speedrun.race(open_results(), "speedrun", racer, 2, rival.run)) == [
        "the record, run 0: 90.00% in 2.00 s",
        "speedrun, seed 1: 91.00% in 2.00 s",
        "the record, run 1: 91.00% in 2.00 s",
    ]
    assert racer.ran == [(0, 2), (1, None)]
    racer = Racer()
    assert list(speedrun.race(open_results(), "speedrun", racer, 2, rival.run)) == []
    assert racer.ran == []
    found = open_results().found
    table = scale.speedrun(found | {"matrix_rate": 6e15})
    assert (
        "| `speedrun` | 10 | 2 | 90.50% ± 0.71% (84.15% to 96.85%) | 2.00 s | 3.00 | 25% |" in table
    )
    found["commit"] = "another"
    (tmp_path / "found.json").write_text(json.dumps(found))
    with pytest.raises(SystemExit, match="has another commit, another: --fresh begins anew"):
        open_results()


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


def test_the_records_script_runs_as_it_stands(tmp_path):
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
