"""Training, evaluating and comparing from Python: the same runs as those of the command line."""

import json
import os
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest

import cifar_jax
from cifar_jax import api
from cifar_jax.errors import UserError
from cifar_jax.parallel import devices
from cifar_jax.runs.signals import Interrupts
from cifar_jax.training import run as run_lib
from tests import program, tiny

FIELDS = {"schedule__name": "constant", "data__validation_examples": 0}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run by the command line alone, and one that was begun in Python and ended by it."""
    folder = tmp_path_factory.mktemp("api")
    flag = program.write_config(folder / "tiny_config.py", num_steps=4, **FIELDS)
    first = cifar_jax.get_config(folder / "tiny_config.py", num_steps=2)
    run = cifar_jax.train(first, folder / "mixed")
    assert [row["step"] for row in run.history] == [2]
    for name in ("alone", "mixed"):
        code, out, err = program.run_here(flag, f"--workdir={folder / name}")
        assert (code, err) == (0, "")
    assert "resuming from the checkpoint of step 2" in out
    return folder


def test_python_begins_a_run_that_the_command_ends_and_the_other_way_round(trained, capsys):
    states = [dict(program.last_state(trained / name)) for name in ("alone", "mixed")]
    assert states[0].keys() == states[1].keys()
    for name, array in states[0].items():
        np.testing.assert_array_equal(array, states[1][name], err_msg=name)
    again = cifar_jax.train(str(trained / "tiny_config.py"), trained / "alone")
    assert f"{trained / 'alone'} is finished: step 4" in capsys.readouterr().out
    assert again.result == json.loads((trained / "alone" / "result.json").read_text())
    assert (again.workdir / "config_file.py").exists()


def test_a_run_shows_what_it_has_learned(trained, capsys):
    run = api.TrainedRun(trained / "alone")
    assert repr(run) == f"TrainedRun({str(trained / 'alone')!r})"
    scores = cifar_jax.evaluate(run)
    again = cifar_jax.evaluate(str(run.workdir), split="test", batch_size=7)
    assert (again.num_correct, again.num_images) == (scores.num_correct, scores.num_images)
    assert f"{run.workdir}, checkpoint of step 4: test accuracy" in capsys.readouterr().out
    assert scores.accuracy == run.result["test_accuracy"]
    assert run.model.predict(np.zeros((2, 32, 32, 1), np.uint8)).shape == (2, 10)
    assert run.plot()._repr_png_().startswith(b"\x89PNG")
    assert run.report(output=trained / "page").read_text().startswith("<!DOCTYPE html>")
    rows = cifar_jax.compare([run, trained / "mixe*"], trained / "both")
    assert [(row["run"], row["finished"]) for row in rows] == [("alone", True), ("mixed", True)]
    assert rows[0]["test_accuracy"] == scores.accuracy
    assert (trained / "both" / "comparison.png").exists()


def test_an_interrupt_saves_and_the_next_call_resumes(trained, tmp_path, monkeypatch, capsys):
    config = tiny.config(num_steps=4, steps_per_call=1, **FIELDS)
    update = run_lib.update_bar
    interrupted = []

    def interrupt(run, progress):
        if not interrupted:
            interrupted.append(progress.step)
            os.kill(os.getpid(), signal.SIGINT)
        update(run, progress)

    monkeypatch.setattr(run_lib, "update_bar", interrupt)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        cifar_jax.train(config, tmp_path / "run")
    assert interrupted == [1]
    captured = capsys.readouterr()
    assert "saved at step 1" in captured.out
    assert captured.err == "interrupted: saving, then stopping\n"
    assert signal.getsignal(signal.SIGINT) is before
    assert cifar_jax.train(config, tmp_path / "run").result["step"] == 4
    alone, resumed = (dict(program.last_state(x)) for x in (trained / "alone", tmp_path / "run"))
    for name, array in alone.items():
        np.testing.assert_array_equal(array, resumed[name], err_msg=name)


def test_interrupts():
    with Interrupts() as interrupts:
        with pytest.raises(KeyboardInterrupt):  # nothing to save yet
            signal.raise_signal(signal.SIGINT)
        interrupts.defer()
        signal.raise_signal(signal.SIGINT)
        assert interrupts.received == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            interrupts.end()
    with Interrupts() as interrupts:
        interrupts.end()

    def enter():
        with Interrupts() as interrupts:
            found.append(interrupts.received)

    found = []
    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert found == [None]


def test_configs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = cifar_jax.get_config("resnet:20", num_epochs=5, **{"optimizer.learning_rate": 1})
    assert (config.num_epochs, config.optimizer.learning_rate, config.model.depth) == (5.0, 1.0, 20)
    other = cifar_jax.get_config(config, model={"name": "lenet"}, num_steps=3)
    assert (other.model.to_dict(), other.num_steps) == ({"name": "lenet"}, 3)
    assert (config.model.name, config.num_steps) == ("resnet", None)
    assert other.is_locked
    (tmp_path / "mine.py").write_text("def get_config(a): return 1 / int(a)")
    for given, fields, words in (
        ("digit", {}, "there is no config file 'digit'; the shipped ones are bn_cnn, "),
        ("no/where.py:3", {}, "there is no config file 'no/where.py'"),
        ("resnet:21", {}, "configs/resnet.py has no variant '21'; there are 18, 20"),
        ("folder:gone", {}, f"the folder of pictures {tmp_path}/gone does not exist"),
        ("mine.py:0", {}, "the config mine.py:0 fails in line 1: ZeroDivisionError: division by"),
        ("digits", {"learning_rate": 1.0}, "no such field; did you mean optimizer.learning_rate?"),
        ("digits", {"xyzzy": 1.0}, "xyzzy: there is no such field; see configs/default.py"),
        ("digits", {"num_epochs": "many"}, "num_epochs cannot be 'many': "),
    ):
        with pytest.raises(UserError) as caught:
            cifar_jax.get_config(given, **fields)
        assert words in str(caught.value)
        assert "UserError" not in str(caught.value)
    assert caught.value._render_traceback_()[0].startswith("error: num_epochs cannot be 'many'")


def test_a_wrong_call_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="workdir is missing: name the folder of the run"):
        cifar_jax.train(tiny.config())
    with pytest.raises(UserError, match="batch_size is 0 but must be greater than 0"):
        cifar_jax.train(tiny.config(batch_size=0), "run")
    with pytest.raises(UserError, match=r"config\.json does not exist"):
        cifar_jax.evaluate("run")
    with pytest.raises(AttributeError, match="has no attribute 'trian'"):
        cifar_jax.trian  # noqa: B018
    assert not list(tmp_path.iterdir())


def test_jax_that_was_started_otherwise_is_named_once(caplog):
    devices.jax.devices()
    devices._say_started.cache_clear()
    for wanted in (2, 1, 1):
        devices.configure_jax(None, wanted)
    (record,) = caplog.records
    assert record.getMessage() == (
        "JAX was already started with 2 CPU devices, so this runs on 2 and not on 1: to change "
        "that, start Python again, and use JAX only after cifar_jax or set JAX_NUM_CPU_DEVICES=1 "
        "before"
    )
    devices._say_started.cache_clear()


def test_the_package_itself_is_light():
    heavy = "{'jax', 'numpy', 'flax', 'matplotlib', 'absl'} & set(sys.modules)"
    text = f"import sys, cifar_jax; assert not {heavy}; dir(cifar_jax)"
    subprocess.run([sys.executable, "-c", text], check=True, cwd=program.ROOT)
