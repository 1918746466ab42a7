"""The benchmarks' protocol and comparison, and a quick run of them."""

import importlib.util
import json
import os
import sys
import time

import numpy as np
import pytest

from benchmarks import seeds, startup, step_time, workers
from benchmarks.peers import protocol
from results import tables
from tests.rates import rate_row


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


@pytest.mark.slow
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


def test_the_first_step_is_seen_on_the_terminal(tmp_path):
    program = "import sys, time; assert sys.stderr.isatty(); time.sleep(0.2); "
    program += "sys.stderr.write(' 1/390 [00:00<?, ?step/s]'); sys.stderr.flush(); time.sleep(60); "
    program += f"open({str(tmp_path / 'ended')!r}, 'w')"
    seconds = startup.time_first_step([sys.executable, "-c", program], {})
    assert seconds > 0.2
    assert not (tmp_path / "ended").exists()  # it was stopped at its first step


@pytest.mark.slow
def test_the_phases_of_a_start_add_up(tmp_path):
    begun = time.time()
    env = workers.environment(os.environ) | {"XDG_CACHE_HOME": str(tmp_path)}
    phases = startup.time_phases(["--config=configs/digits.py", f"--workdir={tmp_path}/run"], env)
    assert list(phases) == ["python", "libraries", "package", "data", "compile", "trace"]
    assert min(phases.values()) > 0
    assert sum(phases.values()) < time.time() - begun


def test_a_command_that_fails_is_named():
    with pytest.raises(RuntimeError, match="no step was made: oh"):
        startup.time_first_step([sys.executable, "-c", "import sys; sys.exit('oh')"], {})


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
