"""Several processes on this machine train what one does, stop together, and end together."""

import contextlib
import json
import os
import signal
import socket
import time

import numpy as np
import pytest

import cifar_jax
from cifar_jax.data import datasets
from cifar_jax.errors import UserError
from cifar_jax.parallel import processes
from tests import job, program
from tests.loopback import unanswered_port
from tests.runs.test_checkpoint import rewrite

# Some parts depend on the whole batch (BatchNorm, mixup), some on each image's place in it
# (dropout, flip).
FIELDS = {
    "num_steps": 10,
    "steps_per_call": 1,
    "eval_every_steps": 5,
    "checkpoint__every_steps": 4,
    "augment__flip": True,
    "augment__mixup_alpha": 0.5,
    "ema_decay": 0.9,
    "optimizer__name": "sgd",
    "optimizer__learning_rate": 0.01,
}


def write_config(path, kind="bn_config", **fields):
    return program.write_config(path, kind, **(FIELDS | fields))


def run_alone(num_devices, *arguments):
    environment = {"JAX_NUM_CPU_DEVICES": str(num_devices), "XLA_FLAGS": ""}
    code, _, err = program.run_apart(*arguments, environment=environment)
    assert code == 0, err


def newest(workdir):
    return max((int(p.name) for p in (workdir / "checkpoints").glob("[0-9]*")), default=0)


def wait_for_step(workdir, step, processes):
    while newest(workdir) < step:
        assert all(process.poll() is None for process in processes)
        time.sleep(0.05)


def counts(workdir):
    """Returns what the result counts: over all seeds, then for each of several."""
    result = json.loads((workdir / "result.json").read_text())
    names = ("step", "seed", "num_correct", "num_images")
    return [[row.get(name) for name in names] for row in (result, *result.get("seeds", ()))]


def assert_close(workdir, other, tolerance):
    """Compares the last checkpoints, the logs and the results."""
    for (name, ours), (_, theirs) in zip(
        program.last_state(workdir), program.last_state(other), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, atol=tolerance, rtol=0, err_msg=name)
    for line, expected in zip(
        program.exact_lines(workdir), program.exact_lines(other), strict=True
    ):
        for value, wanted in zip(line, expected, strict=True):  # None: no evaluation in this line
            assert value == (wanted and pytest.approx(wanted, rel=1e-5))
    assert counts(workdir) == counts(other)


def test_two_processes_train_what_one_does(tmp_path):
    # A plain network, which compiles fast; the slow tests have one with BatchNorm and dropout.
    flag = write_config(tmp_path / "small.py", "config", num_steps=4, checkpoint__every_steps=2)
    code, _, err = program.run_here(flag, f"--workdir={tmp_path / 'one'}")
    assert (code, err) == (0, "")
    first, second = job.run(2, 1, flag, f"--workdir={tmp_path / 'two'}")
    assert first[::2] == (0, "")
    assert "2 CPU devices in 2 processes" in first[1]
    assert second == (0, "", "")  # only the first process prints
    assert_close(tmp_path / "two", tmp_path / "one", 1e-6)
    images = datasets.load_dataset("digits").splits["test"].images[:9]
    answers = [cifar_jax.load(tmp_path / name).predict(images) for name in ("one", "two")]
    np.testing.assert_allclose(*answers, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("placement", ["device", "host"])
@pytest.mark.parametrize("num_processes", [2, 4])
def test_training_equals_one_process_with_as_many_devices(tmp_path, num_processes, placement):
    flag = write_config(tmp_path / "small.py", data__placement=placement)
    run_alone(2 * num_processes, flag, f"--workdir={tmp_path / 'one'}")
    for code, _, err in job.run(num_processes, 2, flag, f"--workdir={tmp_path / 'many'}"):
        assert (code, err) == (0, "")
    assert_close(tmp_path / "many", tmp_path / "one", 1e-6)


# With several processes the seeds share every batch. The speedrun recipe has parameters from the
# data, groups of parameters, and views at the end; Muon amplifies rounding errors.
RECIPES = {
    "seeds": ("bn_config", FIELDS | {"num_seeds": 2, "data__validation_examples": 0}, 1e-6),
    "speedrun": ("speedrun_config", {"num_steps": 3}, 1e-4),
}


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_two_processes_train_other_kinds_of_configs(tmp_path, recipe):
    kind, fields, tolerance = RECIPES[recipe]
    flag = program.write_config(tmp_path / "small.py", kind, **fields)
    run_alone(4, flag, f"--workdir={tmp_path / 'one'}")
    for code, _, err in job.run(2, 2, flag, f"--workdir={tmp_path / 'two'}"):
        assert (code, err) == (0, "")
    assert_close(tmp_path / "two", tmp_path / "one", tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1])
def test_a_signal_to_one_process_saves_all_at_one_step(tmp_path, number):
    flag = write_config(tmp_path / "small.py", num_steps=60, checkpoint__every_steps=1000)
    workdir, other = tmp_path / "two", tmp_path / "undisturbed"
    run_alone(4, flag, f"--workdir={other}")
    with job.started(2, 2, flag, f"--workdir={workdir}") as processes:
        while not (workdir / "metrics.jsonl").exists():
            assert all(process.poll() is None for process in processes)
            time.sleep(0.05)
        processes[number].send_signal(signal.SIGTERM)
        found = job.ends(processes)
    assert [code for code, _, _ in found] == [143, 143]
    assert "SIGTERM: saving, then stopping" in found[number][2]
    step = newest(workdir)
    assert 0 < step < 60
    assert f"saved at step {step}" in found[0][1]
    run_alone(1, flag, f"--workdir={workdir}")  # saved by 2 x 2 devices, restored on one
    assert_close(workdir, other, 2e-5)


@pytest.mark.slow
def test_a_job_waits_together_for_a_lease_and_ends_together_when_it_is_lost(tmp_path):
    flag = write_config(tmp_path / "small.py", num_steps=10**6, checkpoint__every_steps=1000)
    (workdir := tmp_path / "two").mkdir()
    lease = workdir / "lock.json"
    lease.write_text(json.dumps({"host": "elsewhere", "pid": 7}))  # for a minute it may be alive
    with job.started(2, 1, flag, f"--workdir={workdir}") as processes:
        while not (workdir / "metrics.jsonl").exists():
            assert all(process.poll() is None for process in processes)
            time.sleep(0.05)
        lease.write_text(json.dumps({"host": "elsewhere", "pid": 7, "token": "theirs"}))
        first, second = job.ends(processes)
    assert first[0] == second[0] == 1
    assert f"taking over {workdir} from process 7 on elsewhere" in first[2]
    assert first[2].endswith("taken over by another process: this one stops without writing\n")
    assert second[1:] == ("", "")


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1])
def test_a_killed_process_ends_the_others_and_the_job_can_be_resumed(tmp_path, number):
    flag = write_config(tmp_path / "small.py", num_steps=40)
    workdir, other = tmp_path / "two", tmp_path / "undisturbed"
    for code, _, err in job.run(2, 2, flag, f"--workdir={other}"):
        assert code == 0, err
    with job.started(2, 2, flag, f"--workdir={workdir}") as processes:
        wait_for_step(workdir, 8, processes)
        os.kill(processes[number].pid, signal.SIGKILL)
        found = job.ends(processes)
    code, _, err = found[1 - number]
    assert code != 0
    assert "error: another process of the job has ended" in err or "another task died" in err
    assert newest(workdir) < 40
    for code, _, err in job.run(2, 2, flag, f"--workdir={workdir}"):
        assert code == 0, err
    assert program.difference(workdir, other) == ""


@pytest.mark.slow
def test_an_error_in_the_first_process_ends_all(tmp_path):
    flag = write_config(tmp_path / "small.py", num_steps=2)
    workdir = tmp_path / "two"
    run_alone(2, flag, f"--workdir={workdir}")
    changed = write_config(tmp_path / "changed.py", num_steps=2, seed=5)
    first, second = job.run(2, 1, changed, f"--workdir={workdir}")
    assert first[0] == second[0] == 2
    assert "seed was 0 and is now 5" in first[2]
    assert second[1:] == ("", "")
    rewrite(workdir / "checkpoints" / "2", format=2, cifar_jax="9.1")
    first, second = job.run(2, 1, flag, f"--workdir={workdir}")
    assert first[0] == second[0] == 2
    assert "has format 2" in first[2]
    assert second[1:] == ("", "")


def test_flags_of_a_job_need_distributed(tmp_path):
    flag = write_config(tmp_path / "small.py")
    code, _, err = program.run_here(flag, f"--workdir={tmp_path / 'run'}", "--process_id=1")
    assert (code, err) == (2, "error: --process_id is only for --distributed\n")
    code, _, err = program.run_here("--mode=evaluate", "--distributed")
    assert code == 2
    assert "--mode=evaluate does not take --distributed, which belongs to --mode=train" in err


def test_without_a_job_one_process_is_the_first():
    assert processes.is_first()
    assert processes.run_on_first(lambda: 3) == 3
    assert processes.first_then_others(lambda: 4) == 4
    assert processes.broadcast(lambda: "state", None) == "state"
    assert processes.agree_to_stop(None, 0.1) == (None, 0.1)


def test_a_long_message_goes_in_parts(monkeypatch):
    monkeypatch.setattr(processes, "_PART", 3)
    assert processes._broadcast_bytes(b"0123456789") == b"0123456789"


def test_a_value_that_only_one_process_has_is_named(monkeypatch):
    monkeypatch.setattr(
        processes, "run_on_first", lambda ask: {"seed": 0, "optimizer.groups.a.name": "sgd"}
    )
    with pytest.raises(UserError, match=r"groups\.a\.name is None here and 'sgd' in the first"):
        processes.check_same({"seed": 0})


@pytest.mark.slow
def test_ctrl_c_ends_a_process_that_waits_for_the_others(tmp_path):
    flag = write_config(tmp_path / "small.py")
    waiting = ["--distributed", "--num_processes=2", "--process_id=0"]
    address = f"127.0.0.1:{unanswered_port()}"
    arguments = (flag, f"--workdir={tmp_path / 'run'}", f"--coordinator={address}", *waiting)
    with program.start(*arguments) as process:
        host, port = address.split(":")
        while process.poll() is None:
            with contextlib.suppress(OSError), socket.create_connection((host, int(port))):
                break
            time.sleep(0.1)
        time.sleep(1)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=program.SECONDS)
    assert (process.returncode, err) == (-signal.SIGINT, "")
