"""`python -m tests.faults` makes the trials it is asked for, prints those, and resumes."""

import json

import pytest

from tests.faults import stops, trials


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Runs the command with made-up kills; returns the exit code and what each trial drew."""

    def run(outcomes, *flags):
        def make_trials(folder, seen):
            def trial(number, rng):
                seen["kill"]["stops"] += 1
                drawn.append((number, rng.random()))
                return outcomes[number]

            return {"kill": trial}

        drawn: list[tuple[int, float]] = []
        monkeypatch.setattr(trials, "make_trials", make_trials)
        return trials.main(["--only=kill", *flags]), drawn

    monkeypatch.setattr(trials, "RESULT", tmp_path / "bench_faults.json")
    monkeypatch.setattr(trials, "write_tables", lambda: pytest.fail("writes tables"))
    for name in ("JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"):
        monkeypatch.setenv(name, "")  # restores both at the end
    return run


def test_what_is_asked_for_is_run_and_printed_and_nothing_is_written(run, tmp_path, capsys):
    earlier = {"trials": 100, "survived": 100, "silent": 0, "seconds": 1.0, "bad": [], "seen": {}}
    text = json.dumps({"faults": {"kill": earlier, "disk": earlier}})
    (tmp_path / "bench_faults.json").write_text(text)
    code, drawn = run([stops.SURVIVED] * 3, "--trials=3")
    assert (code, len(drawn)) == (0, 3)
    (line,) = capsys.readouterr().out.splitlines()
    assert "kill      3 trials      3 survived   0 silent" in line
    assert (tmp_path / "bench_faults.json").read_text() == text


def test_trials_are_resumed_in_a_file(run, tmp_path, capsys):
    output = f"--output={tmp_path / 'mine.json'}"
    outcomes = [stops.SURVIVED, stops.SURVIVED, stops.SILENT + "an array", "exit code 5"]
    code, first = run(outcomes, "--trials=2", output)
    assert code == 0
    code, second = run(outcomes, "--trials=4", "--minutes=0", output)
    assert (code, second) == (3, [])
    code, second = run(outcomes, "--trials=4", output)
    assert code == 1
    assert "4 trials      2 survived   1 silent" in capsys.readouterr().out
    # Each trial has a number and a seed of its own, whichever command makes it.
    assert [number for number, _ in first + second] == [0, 1, 2, 3]
    assert len({draw for _, draw in first + second}) == 4
    record = json.loads((tmp_path / "mine.json").read_text())["faults"]["kill"]
    assert (record["trials"], record["survived"], record["silent"]) == (4, 2, 1)
    assert record["bad"] == ["trial 2: silent: an array", "trial 3: exit code 5"]
    assert record["seen"] == {"stops": 4}
    assert run(outcomes, "--trials=4", output) == (1, [])
    assert "all 4 trials were made before" in capsys.readouterr().out
    assert run(outcomes, "--trials=1", "--fresh", output) == (0, first[:1])


def test_results_and_tables_are_written_when_asked(run, monkeypatch, tmp_path):
    written = []
    monkeypatch.setattr(trials, "write_tables", lambda: written.append(True))
    assert run([stops.SURVIVED], "--trials=1", "--write")[0] == 0
    result = json.loads((tmp_path / "bench_faults.json").read_text())
    assert result["name"] == "bench_faults"
    assert written == [True]
