"""Runs that are stopped, run out of disk or diverge; `python -m tests.faults` has many trials."""

import errno
import random
import signal
from collections import Counter

import jax
import numpy as np
import pytest

import cifar_jax
from cifar_jax.reports import report
from cifar_jax.runs import manifest
from cifar_jax.runs.checkpoint import Checkpoints
from cifar_jax.training import loop
from cifar_jax.training import run as run_lib
from tests import program
from tests.faults import damages, stops
from tests.few import slow


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A finished run and the flag of its config."""
    return stops.reference(
        tmp_path_factory.mktemp("undisturbed"), **(stops.SAVING | {"num_steps": 12})
    )


@pytest.fixture(scope="module")
def disturbed(undisturbed, tmp_path_factory):
    """Disturbs runs of that config."""
    return stops.Disturbed(tmp_path_factory.mktemp("disturbed"), *undisturbed, Counter())


def during(monkeypatch, step, do):
    """Calls `do` with the run once the given step is made."""
    original = run_lib.update_bar

    def update_bar(run, progress):
        if progress.step == step:
            do(run)
        original(run, progress)

    monkeypatch.setattr(run_lib, "update_bar", update_bar)


@pytest.mark.parametrize(
    ("number", "code", "overrides"),
    [
        (signal.SIGINT, 130, ()),
        (signal.SIGTERM, 143, ("--config.checkpoint.every_steps=5",)),
        slow(signal.SIGINT, 130, ("--config.checkpoint.every_steps=5",)),
        slow(signal.SIGTERM, 143, ()),
    ],
)
def test_stopped_by_a_signal_and_resumed(
    undisturbed, monkeypatch, tmp_path, number, code, overrides
):
    workdir, flag = undisturbed
    arguments = (flag, f"--workdir={tmp_path / 'run'}", *overrides)
    with monkeypatch.context() as patch:
        during(patch, 7, lambda run: signal.raise_signal(number))
        stopped = program.run_here(*arguments)
    assert stopped[0] == code
    assert stopped[1].endswith("saved at step 7; the same command resumes from there\n")
    code, out, err = program.run_here(*arguments)
    assert (code, err) == (0, "")
    assert "resuming from the checkpoint of step 7" in out
    assert program.difference(tmp_path / "run", workdir) == ""


@pytest.mark.parametrize("late", [False, slow(True)])
def test_a_signal_while_the_report_is_made_stops_it(monkeypatch, tmp_path, late):
    flag = program.write_config(tmp_path / "short.py", num_steps=1, log__report=True)
    with monkeypatch.context() as patch:
        if late:

            def raise_signal(*_):
                signal.raise_signal(signal.SIGTERM)
                pytest.fail("still runs")

            patch.setattr(report, "make_report", raise_signal)
        else:  # while the last step is made
            during(patch, 1, lambda run: signal.raise_signal(signal.SIGTERM))
            patch.setattr(report, "make_report", lambda *_: pytest.fail("still runs"))
        stopped = program.run_here(flag, f"--workdir={tmp_path / 'run'}")
    assert stopped[0] == 143
    assert (tmp_path / "run" / "result.json").exists()
    assert program.run_here(flag, f"--workdir={tmp_path / 'run'}")[0] == 0
    assert (tmp_path / "run" / "report" / "report.html").exists()


def test_killed_and_resumed(undisturbed, tmp_path):
    workdir, flag = undisturbed
    with program.start(flag, f"--workdir={tmp_path / 'run'}") as process:
        while not (tmp_path / "run" / "checkpoints" / "2").exists():
            assert process.poll() is None, process.stderr.read()
        process.kill()
        process.communicate()
    # What a kill during a write leaves.
    (tmp_path / "run" / "checkpoints" / ".saving-9").mkdir()
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "train_lo')
    code, out, err = program.run_here(flag, f"--workdir={tmp_path / 'run'}")
    assert code == 0
    assert err.count("\n") == 1
    assert err.endswith("metrics.jsonl is incomplete and skipped\n")
    assert "resuming from the checkpoint of step" in out
    assert program.difference(tmp_path / "run", workdir) == ""


def test_the_newest_checkpoint_damaged_at_rest(undisturbed, monkeypatch, tmp_path):
    workdir, flag = undisturbed
    arguments = (flag, f"--workdir={tmp_path / 'run'}")
    with monkeypatch.context() as patch:
        during(patch, 7, lambda run: signal.raise_signal(signal.SIGTERM))
        program.run_here(*arguments)
    (tmp_path / "run" / "checkpoints" / "7" / "meta.json").write_text("{}")
    code, out, err = program.run_here(*arguments)
    assert code == 0
    assert err.count("\n") == 1
    assert "moved the damaged checkpoint" in err
    assert "resuming from the checkpoint of step 6" in out
    assert program.difference(tmp_path / "run", workdir) == ""


def test_the_same_command_twice_gives_the_same_bits(undisturbed, tmp_path):
    workdir, flag = undisturbed
    program.run_here(flag, f"--workdir={tmp_path}")
    assert program.difference(tmp_path, workdir) == ""
    # A finished run is left as it is.
    code, _, err = program.run_here(flag, f"--workdir={tmp_path}")
    assert (code, err) == (0, "")
    assert program.difference(tmp_path, workdir) == ""


@pytest.mark.parametrize("step", [1, 6])
def test_a_loss_that_is_not_finite_ends_the_run(undisturbed, monkeypatch, tmp_path, step):
    _, flag = undisturbed
    original = loop._make_call

    def make_call(*arguments):
        call = original(*arguments)

        def spoil(state, first, num_steps):
            state, measured, seconds = call(state, first, num_steps)
            return state, measured * (np.nan if first + num_steps == step else 1), seconds

        return spoil

    monkeypatch.setattr(loop, "_make_call", make_call)
    code, _, err = program.run_here(flag, f"--workdir={tmp_path}")
    kept = (
        f"the checkpoint of step {step - 1} is kept" if step > 1 else "there is no checkpoint yet"
    )
    assert (code, err) == (
        1,
        f"error: the loss is not finite in steps {step} to {step}: {kept}; "
        "try a lower optimizer.learning_rate\n",
    )
    if step > 1:
        assert cifar_jax.load(tmp_path).step == step - 1


def test_a_far_too_high_learning_rate_leaves_no_bad_checkpoint(undisturbed, tmp_path):
    _, flag = undisturbed
    flags = ("--config.optimizer.learning_rate=1e38", "--config.optimizer.name=sgd")
    code, _, err = program.run_here(flag, f"--workdir={tmp_path}", *flags)
    assert code == 1
    assert "not finite" in err
    assert err.count("\n") == 1
    for step in Checkpoints(tmp_path, writable=False).steps():
        arrays = jax.tree.leaves(cifar_jax.load(tmp_path, str(step)).variables)
        assert all(np.isfinite(array).all() for array in arrays)
    log = tmp_path / "metrics.jsonl"
    assert not log.exists() or "NaN" not in log.read_text()


# Orbax's threads complain about a closed event loop if the disk fills up during a save.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("freed", [True, False])
def test_the_disk_fills_up_and_has_room_again(undisturbed, monkeypatch, tmp_path, freed):
    workdir, flag = undisturbed
    full = {}

    def fill(run):
        run.checkpoints.wait()
        full["file"] = damages.fill(disk, left=0)

    def free(run):
        run.checkpoints.wait()  # the save of step 8 must fail too
        full["file"].unlink()

    try:
        with damages.small_disk(tmp_path / "disk", "4m") as disk:
            arguments = (flag, f"--workdir={disk / 'run'}", "--config.log.tensorboard=True")
            with monkeypatch.context() as patch:
                during(patch, 5, fill)
                if freed:
                    during(patch, 9, free)
                code, out, err = program.run_here(*arguments)
            warnings = [line for line in err.splitlines() if "could not be saved" in line]
            assert "the checkpoint of step 5 could not be saved, that of step 4 is kept" in err
            assert "No space left on device" in err
            if freed:
                assert code == 0
                assert len(warnings) == 4
            else:
                assert code == 1
                assert "error: the last checkpoint could not be saved: make room" in warnings[-1]
                full["file"].unlink()
                assert cifar_jax.load(disk / "run").step == 4
                code, out, err = program.run_here(*arguments)
                assert (code, err) == (0, "")
                assert "resuming from the checkpoint of step 4" in out
            assert program.difference(disk / "run", workdir) == ""
            assert any((disk / "run" / "tensorboard").iterdir())
    except PermissionError as error:
        pytest.skip(str(error))


def test_a_save_that_fails_for_another_reason_asks_to_fix_it(undisturbed, monkeypatch, tmp_path):
    def refuse(*_):
        raise PermissionError(errno.EACCES, "")

    monkeypatch.setattr(manifest, "write_manifest", refuse)
    arguments = (undisturbed[1], f"--workdir={tmp_path}", "--config.num_steps=1")
    code, _, err = program.run_here(*arguments)
    assert code == 1
    words = "the last checkpoint could not be saved: fix this (Permission denied), then start the"
    assert words in err.splitlines()[-1]


@pytest.mark.slow
def test_a_truncated_cache_of_compiled_programs(undisturbed, tmp_path):
    workdir, flag = undisturbed
    cache = {"XDG_CACHE_HOME": str(tmp_path / "cache"), "JAX_COMPILATION_CACHE_DIR": None}
    arguments = (flag, "--config.num_steps=12")
    program.run_apart(*arguments, f"--workdir={tmp_path / 'a'}", environment=cache)
    entries = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert entries
    for path in entries:
        path.write_bytes(path.read_bytes()[:100])
    code, _, err = program.run_apart(*arguments, f"--workdir={tmp_path / 'b'}", environment=cache)
    assert code == 0, err
    assert program.difference(tmp_path / "b", workdir) == ""


@pytest.mark.slow
@pytest.mark.parametrize("number", range(5, 10))
def test_killed_at_random_moments(disturbed, number):
    assert disturbed.trial(number, random.Random(number), (signal.SIGKILL,)) == stops.SURVIVED


@pytest.mark.slow
def test_signals_at_random_moments(tmp_path):
    seen: Counter[str] = Counter()
    disturbed = stops.Disturbed(tmp_path, *stops.reference(tmp_path, **stops.LONG), seen)
    for number in range(5, 10):
        outcome = disturbed.trial(number, random.Random(number), (signal.SIGTERM, signal.SIGINT))
        assert outcome == stops.SURVIVED
    assert seen["saved"] > 0


@pytest.mark.slow
def test_a_kill_lands_in_saves_and_in_deletions(disturbed):
    disturbed.seen.clear()
    for number in range(10, 18):
        rng = random.Random(number)
        assert disturbed.trial(number, rng, (signal.SIGKILL,)) == stops.SURVIVED
    assert disturbed.seen["during a save"] > 0
    assert disturbed.seen["during a deletion"] > 0
