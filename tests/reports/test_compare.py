"""`--mode=compare`: the table, unfinished runs, workdirs that hold no run."""

import csv
import json
import os
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from PIL import Image

from cifar_jax.config import stored
from cifar_jax.reports import compare
from tests import program, tiny


@pytest.fixture
def here(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def line(epoch, **values):
    return {"step": int(5 * epoch), "epoch": epoch, "seconds": 60.0 * epoch, **values}


def write_run(folder, finished=True, epochs=3, **fields):
    """Writes the files of a run."""
    folder.mkdir(parents=True)
    config = stored.to_json(tiny.config(**fields))
    (folder / "config.json").write_text(json.dumps(config))
    scores = [{"train_loss": 2 / n, "train_accuracy": 1 - 0.5 / n} for n in range(1, epochs + 1)]
    lines = [
        line(number, **score, eval_loss=3 / number, eval_accuracy=1 - 0.7 / number)
        for number, score in enumerate(scores, 1)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    if finished:
        result = {"test_accuracy": 0.875, "test_loss": 0.4321, "wall_seconds": 3723.0}
        (folder / "result.json").write_text(json.dumps({"name": "x", "config": config, **result}))


def start(*arguments):
    return program.run_here("--mode=compare", "--output=out", *arguments)


def test_two_runs_side_by_side(here):
    write_run(here / "runs" / "a")
    write_run(here / "runs" / "b", finished=False, epochs=2, seed=7, optimizer__momentum=0.5)
    code, out, err = start("--workdirs=runs/a,runs/b")
    assert (code, err) == (0, "")
    with Path("out/comparison.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows == [
        ["", "a", "b"],
        ["state", "finished", "not finished"],
        ["epochs", "3", "2"],
        ["test accuracy", "87.50%", "-"],
        ["test loss", "0.4321", "-"],
        ["validation accuracy", "76.67%", "65.00%"],
        ["validation loss", "1.0000", "1.5000"],
        ["train accuracy", "83.33%", "75.00%"],
        ["train loss", "0.6667", "1.0000"],
        ["time", "1:02:03", "2:00"],
        ["optimizer.momentum", "unset", "0.5"],
        ["seed", "0", "7"],
    ]
    printed = [row.split() for row in out.splitlines()]
    assert all([cell for words in row for cell in words.split()] in printed for row in rows)
    with Image.open("out/comparison.png") as picture:
        assert np.asarray(picture.convert("L")).std() > 5


def test_a_field_that_one_run_lacks_counts_as_unset(here):
    write_run(here / "a")
    write_run(here / "b", optimizer__groups={"head": {"momentum": None, "name": "sgd"}})
    assert start("--workdirs=a,b")[0] == 0
    lines = Path("out/comparison.csv").read_text().splitlines()
    assert [line for line in lines if "head" in line] == ["optimizer.groups.head.name,-,sgd"]


@pytest.mark.parametrize(
    "workdirs",
    [
        ("--workdirs=runs/x/run,runs/y/run"),
        ("--workdirs runs/x/run runs/y/run runs/x/run/ runs/y/../x/run"),
        ("--workdirs=runs/*/run"),
        ("--workdirs=runs/x/run --workdirs=runs/y/run"),
        ("runs/x/run runs/y/run"),
    ],
)
def test_ways_to_name_runs_whose_folders_have_the_same_name(here, workdirs):
    write_run(here / "runs" / "x" / "run")
    write_run(here / "runs" / "y" / "run")
    code, out, err = start(*workdirs.split())
    assert (code, err) == (0, "")
    assert out.splitlines()[0].split() == ["x/run", "y/run"]


def test_unfinished_runs(here):
    write_run(here / "a", finished=False, data__validation_examples=0)
    with (here / "a" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 20, "epo')  # being written
    write_run(here / "b", finished=False)
    (here / "b" / "metrics.jsonl").unlink()
    code, out, err = start("--workdirs=a,b")
    assert (code, err) == (0, "line 4 of a/metrics.jsonl is incomplete and skipped\n")
    cells = {row.split("  ")[0]: row.split()[-2:] for row in out.splitlines()}
    assert cells["epochs"] == ["3", "-"]
    assert cells["test loss"] == ["1.0000", "-"]


def test_models_with_other_fields_and_infinite_losses(here):
    write_run(here / "a")
    write_run(here / "b", model={"name": "lenet"})
    with (here / "b" / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(line(4, eval_loss=float("nan"), train_loss=float("inf"))) + "\n")
    code, out, err = start("--workdirs=a,b")
    assert (code, err) == (0, "")
    rows = [row.split() for row in out.splitlines()]
    assert ["model.name", "mlp", "lenet"] in rows
    assert ["model.activation", "relu", "-"] in rows
    assert ["validation", "loss", "1.0000", "nan"] in rows


def test_each_workdir_that_cannot_be_used_is_named(here):
    write_run(here / "good")
    for name, file, text, part in (
        ("empty", "", "", "empty/config.json does not exist"),
        ("config", "config.json", "{", "config/config.json is damaged"),
        ("result", "result.json", "[]", "result/result.json is damaged"),
    ):
        if file:
            write_run(here / name)
            (here / name / file).write_text(text)
        else:
            (here / name).mkdir()
        code, out, err = start(f"--workdirs=good,{name},missing")
        assert (code, out) == (2, "")
        lines = err.splitlines()
        assert len(lines) == 2
        assert all(line.startswith("error: ") for line in lines)
        assert part in lines[0]
        assert "missing/config.json does not exist" in lines[1]
    (here / "result" / "result.json").unlink()
    (here / "result" / "metrics.jsonl").unlink()
    (here / "result" / "metrics.jsonl").mkdir()
    code, _, err = start("--workdirs=result")
    assert (code, err.count("\n")) == (2, 1)
    assert not (here / "out").exists()


@pytest.mark.parametrize("by", ["pattern", "shell"])
def test_what_is_no_run_among_the_matches_is_passed_over(here, by):
    write_run(here / "runs [1]" / "a")
    write_run(here / "runs [1]" / "b", seed=3)
    (here / "runs [1]" / "stray").mkdir()
    (here / "runs [1]" / "notes.txt").touch()
    (here / "runs [1]" / "latest").symlink_to("nowhere")
    matches = [f"runs [1]/{name}" for name in ("a", "b", "latest", "notes.txt", "stray")]
    given = ["--workdirs=runs [1]/*"] if by == "pattern" else ["--workdirs", *matches]
    code, out, err = start(*given)
    assert code == 0
    others = "runs [1]/latest, runs [1]/notes.txt, runs [1]/stray"
    words = f"not the folder of a run, and passed over: {others}"
    assert err == f"{words}\n"
    assert ["seed", "0", "3"] in [row.split() for row in out.splitlines()]
    code, _, err = start("--workdirs=runs [1]/s*")
    assert (code, err.count("\n")) == (2, 1)
    assert "error: not the folder of a run" in err


@pytest.mark.parametrize(
    ("file", "text", "words"),
    [
        ("config.json", "{", "is damaged: Expecting property name enclosed in double quotes"),
        ("config.json", "[1]", "is damaged: it does not hold a JSON object"),
        ("config.json", '{"architectures": ["Other"]}', "is not the config of a run"),
        ("config.json", '{"model": {"name": "mlp"}, "optimizer": "adam"}', "is not the config of"),
        ("result.json", "[]", "is damaged: it does not hold a JSON object"),
        ("result.json", "{}", "is damaged: it does not hold the test accuracy"),
        ("result.json", '{"test_accuracy": 0.5, "seeds": [1]}', "is damaged: it does not hold the"),
    ],
)
@pytest.mark.parametrize("by", ["pattern", "shell"])
def test_a_damaged_run_among_the_matches_is_passed_over(here, by, file, text, words):
    write_run(here / "runs" / "a")
    write_run(here / "runs" / "b", seed=3)
    write_run(here / "runs" / "bad")
    (here / "runs" / "bad" / file).write_text(text)
    matches = ["runs/a", "runs/b", "runs/bad"]
    given = ["--workdirs=runs/*"] if by == "pattern" else ["--workdirs", *matches]
    code, out, err = start(*given)
    (line,) = err.splitlines()
    assert code == 0
    assert line.startswith(f"runs/bad/{file} {words}")
    assert line.endswith(": passed over")
    assert ["seed", "0", "3"] in [row.split() for row in out.splitlines()]
    # One that is named explicitly is an error.
    code, _, err = start("--workdirs=runs/a,runs/bad")
    assert (code, len(err.splitlines())) == (2, 1)
    assert err.startswith(f"error: runs/bad/{file} {words}")


def test_an_ensemble_by_a_pattern_passes_over_a_damaged_run(here):
    (here / "runs" / "bad").mkdir(parents=True)
    (here / "runs" / "bad" / "config.json").write_text("{")
    code, _, err = program.run_here("--mode=evaluate", "--workdirs=runs/*")
    (line,) = err.splitlines()
    assert code == 2
    assert line.startswith("error: runs/bad/config.json is damaged: Expecting property name")
    assert line.endswith(": passed over")


def test_a_report_that_cannot_be_read_is_as_none(here):
    for name in "ab":
        write_run(here / name)
        (here / name / "report").mkdir()
        (here / name / "report" / "predictions.csv").write_bytes(b"\xff\xfe\x00")
    code, out, err = start("--workdirs=a,b")
    assert (code, err) == (0, "")
    assert "McNemar's test needs the reports of both runs" in out


def test_a_closed_pipe_costs_no_file(here, monkeypatch):
    write_run(here / "a")
    monkeypatch.setattr("builtins.print", mock.Mock(side_effect=BrokenPipeError))
    with pytest.raises(BrokenPipeError):
        compare.compare_runs([Path("a")], Path("out"))
    assert sorted(os.listdir("out")) == ["comparison.csv", "comparison.png"]


def test_a_name_that_could_upset_the_table(here):
    write_run(here / "a\nb$x$")
    write_run(here / ("long" * 12 + "1" + "end" * 8))
    write_run(here / ("long" * 12 + "2" + "end" * 8))
    found = compare.find_workdirs([Path("a\nb$x$"), *sorted(Path().glob("long*"))])
    compare.compare_runs(found, Path("out"))
    assert len(list(Path("out").iterdir())) == 2
