"""`--mode=search`: its trials are ordinary runs, are pruned, resumed and shared by processes."""

import contextlib
import json
import os
import shlex
import signal
import statistics
import sys
import time
from unittest import mock

import pytest

optuna = pytest.importorskip("optuna")

from cifar_jax import studies  # noqa: E402
from cifar_jax.errors import UserError  # noqa: E402
from cifar_jax.reports import style  # noqa: E402
from cifar_jax.runs import history, workdir  # noqa: E402
from cifar_jax.studies import search as search_lib  # noqa: E402, F401
from cifar_jax.studies import training, trials  # noqa: E402
from tests import program  # noqa: E402

RATE = "optimizer.learning_rate=log(1e-4,1e-1)"


class AlwaysPruner(optuna.pruners.BasePruner):
    def prune(self, study, trial):
        return trial.number >= 2


@pytest.fixture(scope="module", autouse=True)
def _coarse_pictures():
    with mock.patch.object(style, "_DPI", 20):
        yield


def search(flag, folder, trials, *space, more=()):
    flags = (f"--study={folder}", f"--trials={trials}", *more, "--space")
    return program.run_here("--mode=search", flag, *flags, *space)


def read_trials(folder, storage=None):
    storage = storage or f"sqlite:///{folder / 'study.db'}"
    study = optuna.load_study(study_name=folder.name, storage=storage)
    return study.trials


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """A search of two complete trials, of two seeds each: its folder, its flag, its last lines."""
    folder = tmp_path_factory.mktemp("search")
    fields = {"num_seeds": 2, "num_steps": 4, "data__validation_examples": 0, "seed": 3}
    flag = program.write_config(folder / "short.py", **fields)
    code, out, err = search(flag, folder / "study", 2, RATE)
    assert (code, err) == (0, "")
    return folder / "study", flag, out


def test_the_value_of_a_trial_is_the_mean_over_its_seeds_on_the_validation_split(searched):
    folder, _, _ = searched
    for trial in read_trials(folder):
        assert trial.state == optuna.trial.TrialState.COMPLETE
        own = folder / f"trial_{trial.number}"
        lines = [json.loads(line) for line in (own / "metrics.jsonl").read_text().splitlines()]
        last = [line["eval_accuracy"] for line in lines[-2:]]
        assert [line["seed"] for line in lines[-2:]] == [3, 4]
        assert trial.value == pytest.approx(sum(last) / 2, abs=1e-12)
        config = json.loads((own / "config.json").read_text())
        assert config["optimizer"]["learning_rate"] == trial.params["optimizer.learning_rate"]
        assert (config["data"]["validation_examples"], config["data"]["seed"]) == (1437 // 5, 3)
        assert trial.intermediate_values == {1: trial.value}


def test_the_config_as_it_is_comes_first(searched):
    first, second = read_trials(searched[0])
    assert first.params == {"optimizer.learning_rate": 1e-3}
    assert second.params != first.params


def test_the_page_and_the_command_of_the_best(searched):
    folder, flag, out = searched
    best = max(read_trials(folder), key=lambda trial: trial.value)
    text = (folder / "search.html").read_text()
    assert f"<b>{best.value:.4f}</b>" in text
    assert {"history.png", "curves.png", "slice_optimizer.learning_rate.png"} <= set(
        os.listdir(folder)
    )
    command = out.partition("to train the best on all training images:\n")[2]
    rate = best.params["optimizer.learning_rate"]
    # shlex does not join lines, as a shell does.
    words = shlex.split(command.partition(f"\n{folder}")[0].replace("\\\n", ""))
    assert words == [
        *("python", "main.py", flag, f"--config.optimizer.learning_rate={rate}"),
        f"--workdir={folder / 'best'}",
    ]
    words = f"the best is trial {best.number}, validation accuracy {best.value:.4f}"
    assert out.splitlines()[-1] == f"{folder / 'search.html'}: trials: 2 complete; {words}"


def test_an_abandoned_trial_is_taken_up_before_a_new_one(searched):
    folder, flag, _ = searched
    study = optuna.load_study(study_name="study", storage=f"sqlite:///{folder / 'study.db'}")
    params = {"optimizer.learning_rate": 0.01}
    study.enqueue_trial(params)
    lost = study.ask()  # by a process that ends before it trains
    before = (folder / "trial_0" / "result.json").stat().st_mtime_ns
    code, out, _ = search(flag, folder, 3, RATE)
    assert code == 0
    assert "trial 2 is complete" in out
    assert "trial 0:" not in out
    assert [trial.params for trial in read_trials(folder)][lost.number] == params
    assert len(read_trials(folder)) == 3
    assert (folder / "trial_0" / "result.json").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("flags", "space", "words"),
    [
        ((), "augment.cutout=int(0,4)", "study holds another search: its space was ['optimizer."),
        (("--config.seed=4",), RATE, "study holds another search: data.seed was 3 and is now 4;"),
        (("--objective=loss",), RATE, "holds another search: its objective was accuracy and is"),
        (("--study={}/trial_0",), RATE, "trial_0 holds a run: choose another folder for the sea"),
        (("--storage=nothing://x",), RATE, "the study cannot be opened: NoSuchModuleError"),
    ],
)
def test_mistakes(searched, flags, space, words):
    folder, flag, _ = searched
    flags = tuple(word.format(folder) for word in flags)
    code, _, err = search(flag, folder, 9, space, more=flags)
    assert code == 2
    (line,) = err.splitlines()
    assert words in line


def test_hopeless_trials_end_early_and_can_be_resumed(tmp_path):
    flag = program.write_config(tmp_path / "short.py", num_epochs=2.0)
    folder, journal = tmp_path / "study", tmp_path / "study.log"
    more = (f"--storage={journal}", "--objective=loss")
    space = "optimizer.learning_rate=choice(1e-3,1e30)"
    with mock.patch.dict(trials.PRUNERS, median=AlwaysPruner):
        code, _, err = search(flag, folder, 4, space, more=more)
    assert (code, err) == (0, "")
    backend = optuna.storages.journal.JournalFileBackend(str(journal))
    found = read_trials(folder, optuna.storages.JournalStorage(backend))
    wild = [trial for trial in found if trial.params["optimizer.learning_rate"] == 1e30]
    assert {trial.state for trial in wild} == {optuna.trial.TrialState.PRUNED}
    assert all("the loss is not finite" in trial.user_attrs["reason"] for trial in wild)
    assert found[0].state == optuna.trial.TrialState.COMPLETE
    assert found[0].value == history.read_history(folder / "trial_0")[-1]["eval_loss"]
    early = [x for x in found if x.number >= 2 and x not in wild]
    assert len(wild) * len(early) > 0
    assert {trial.state for trial in early} == {optuna.trial.TrialState.PRUNED}
    assert {len(trial.intermediate_values) for trial in early} == {1}
    assert workdir.list_steps(folder / f"trial_{early[0].number}") == [5]
    assert not (folder / "study.db").exists()


@pytest.mark.slow
def test_a_hopeless_curve_is_pruned_by_optunas_median(tmp_path):
    flag = program.write_config(tmp_path / "short.py", num_epochs=4.0, optimizer__name="sgd")
    folder = tmp_path / "study"
    assert search(flag, folder, 1, RATE)[0] == 0
    study = optuna.load_study(study_name="study", storage=f"sqlite:///{folder / 'study.db'}")
    rates = [0.002, 0.003, 0.004, 0.005, 1e-4, 0.02]
    for rate in rates:
        study.enqueue_trial({"optimizer.learning_rate": rate})
    code, out, err = search(flag, folder, 7, RATE)
    assert (code, err) == (0, "")
    found = read_trials(folder)
    assert [trial.params["optimizer.learning_rate"] for trial in found[1:]] == rates
    pruned, complete = optuna.trial.TrialState.PRUNED, optuna.trial.TrialState.COMPLETE
    # The one that learns nothing, at its second evaluation.
    assert [trial.state for trial in found] == [complete] * 5 + [pruned, complete]
    assert list(found[5].intermediate_values) == [1, 2]
    earlier = [trial.intermediate_values[2] for trial in found[:5]]
    assert max(found[5].intermediate_values.values()) < statistics.median(earlier)
    assert workdir.list_steps(folder / "trial_5") == [5, 10]
    assert "trial 5 is pruned" in out


@pytest.mark.slow
def test_a_trial_with_a_wrong_config_fails_and_the_others_go_on(tmp_path):
    flag = program.write_config(tmp_path / "short.py", num_steps=2)
    folder = tmp_path / "study"
    texts = ("batch_size=int(32,64)", "optimizer.accumulation_steps=choice(1,2)")
    assert search(flag, folder, 1, *texts)[0] == 0
    study = optuna.load_study(study_name="study", storage=f"sqlite:///{folder / 'study.db'}")
    for size in (33, 35, 37, 39, 36):
        study.enqueue_trial({"batch_size": size, "optimizer.accumulation_steps": 2})
    code, out, err = search(flag, folder, 6, *texts)
    assert (code, err) == (0, "")
    states = [trial.state.name for trial in read_trials(folder)]
    assert states == ["COMPLETE", "FAIL", "FAIL", "FAIL", "FAIL", "COMPLETE"]
    line = "batch_size 33 is not a multiple of optimizer.accumulation_steps 2"
    assert f"trial 1 has failed: {line}\n" in out
    assert line in (folder / "search.html").read_text()


def test_a_search_ends_if_none_of_its_trials_can_be_trained(tmp_path):
    flag = program.write_config(tmp_path / "short.py", num_steps=2)
    folder = tmp_path / "study"
    with mock.patch.object(training, "train_in", side_effect=UserError("there are no data")):
        code, out, err = search(flag, folder, 9, RATE)
    assert (code, err) == (2, "error: there are no data\n")
    assert [line for line in out.splitlines() if "failed" in line] == [
        f"trial {number} has failed: there are no data" for number in range(3)
    ]
    assert [trial.state.name for trial in read_trials(folder)] == ["FAIL"] * 3


@pytest.mark.slow
def test_the_same_space_in_another_order_goes_on(tmp_path):
    flag = program.write_config(tmp_path / "short.py", num_steps=2)
    texts = (RATE, "optimizer.name=choice(sgd,adam)")
    orders = (texts, ("optimizer.name=choice(adam,sgd)", RATE))
    found = []
    for name, second in zip("ab", orders, strict=True):
        for trials_in_all, given in ((1, texts), (3, second)):
            folder = tmp_path / name / "study"
            code, _, err = search(flag, folder, trials_in_all, *given)
            assert (code, err) == (0, "")
        found.append([trial.params for trial in read_trials(folder)])
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("storage", "words"),
    [
        ("nothing://x", "the study cannot be opened: NoSuchModuleError"),
        ("no_driver", "the database of --storage needs psycopg2: pip install psycopg2-binary"),
        ("{}/missing/x.log", "/missing/x.log: the folder {}/missing does not exist: create it, or"),
        ("{}", "is not a file: name one, or leave it out"),
        ("", "--storage= is not a file: name one, or leave it out"),
    ],
)
def test_a_storage_that_is_refused_leaves_no_folder(tmp_path, monkeypatch, storage, words):
    flag = program.write_config(tmp_path / "short.py")
    if storage == "no_driver":
        monkeypatch.setitem(sys.modules, "psycopg2", None)
        storage = "postgresql+psycopg2://localhost/x"
    more = (f"--storage={storage.format(tmp_path)}",)
    code, out, err = search(flag, tmp_path / "runs" / "study", 2, RATE, more=more)
    assert (code, out) == (2, "")
    (line,) = err.splitlines()
    assert words.format(tmp_path) in line
    assert not (tmp_path / "runs").exists()


def test_the_users_folder_in_a_storage_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    flag = program.write_config(tmp_path / "short.py", num_steps=2)
    more = ("--storage=~/x.log",)
    assert search(flag, tmp_path / "study", 1, RATE, more=more)[::2] == (0, "")
    assert (tmp_path / "x.log").stat().st_size > 0


def test_without_optuna_one_line_says_what_to_install(tmp_path, monkeypatch):
    flag = program.write_config(tmp_path / "short.py")
    monkeypatch.delattr(studies, "search")
    monkeypatch.delitem(sys.modules, "cifar_jax.studies.search")
    monkeypatch.setitem(sys.modules, "optuna", None)
    code, _, err = search(flag, tmp_path / "study", 2, RATE)
    assert code == 2
    advice = 'pip install -c constraints.txt -e ".[search]"'
    assert err == f"error: --mode=search needs optuna: {advice}\n"
    assert not (tmp_path / "study").exists()


@pytest.mark.slow
def test_two_processes_share_a_study_and_one_is_killed(tmp_path):
    flag = program.write_config(tmp_path / "long.py", num_epochs=12.0, steps_per_call=1)
    folder = tmp_path / "study"
    flags = ("--mode=search", flag, f"--study={folder}", "--trials=4", "--pruner=none")
    with contextlib.ExitStack() as stack:
        workers = [
            stack.enter_context(program.start(*flags, "--space", RATE, "augment.cutout=int(0,8)"))
            for _ in range(2)
        ]
        end = time.monotonic() + program.SECONDS
        while True:  # until the first one is in the middle of a trial
            held = list(folder.glob("trial_*/lock.json"))
            mine = [
                x for x in held if json.loads(x.read_text() or "{}").get("pid") == workers[0].pid
            ]
            if mine and workdir.list_steps(mine[0].parent):
                break
            assert time.monotonic() < end
            time.sleep(0.05)
        workers[0].send_signal(signal.SIGKILL)
        killed = mine[0].parent
        ends = [worker.communicate(timeout=program.SECONDS) for worker in workers]
    assert workers[0].returncode == -signal.SIGKILL
    assert (workers[1].returncode, ends[1][1]) == (0, "")
    found = read_trials(folder)
    assert [trial.number for trial in found] == list(range(4))
    assert {trial.state for trial in found} == {optuna.trial.TrialState.COMPLETE}
    starts = json.loads((killed / "starts.json").read_text())["starts"]
    assert len(starts) == 2
    assert starts[1]["step"] > 0
    number = int(killed.name.removeprefix("trial_"))
    assert len(found[number].intermediate_values) == 12
