"""The figures of docs/usage.md: what ordinary commands wrote is read right, and rows are kept."""

import json
import re
import subprocess
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import pictures, studies, study
from cifar_jax.data import datasets, folder, photos
from cifar_jax.errors import UserError
from cifar_jax.runs import provenance
from results import studies as studies_tables
from results import tables
from tests import program

MACHINE = {"cores": 2, "processor": "Abacus 3000", "commit": "abc", "versions": {"jax": "0.10.2"}}
PLACE = {"hardware": "2 cores of Abacus 3000", "commit": "abc", "versions": {"jax": "0.10.2"}}


@pytest.fixture
def short(monkeypatch, tmp_path):
    """Lets the commands train small networks in this process; returns their folder."""

    def run(words, cwd, check):
        code, _, errors = program.run_here(*words[2:])
        assert code == 0, errors

    config = program.write_config(tmp_path / "config.py", data__validation_examples=0)
    monkeypatch.setattr(study, "subprocess", SimpleNamespace(run=run))
    monkeypatch.setattr(studies, "DIGITS", (config,))
    monkeypatch.setattr(studies, "SEEDS", ("seeds", config, "--config.num_seeds=2"))
    monkeypatch.setattr(studies, "TRIALS", "--trials=2")
    monkeypatch.setattr(
        studies, "AUDITS", {"digits": ("audit", config, *studies.NOISE, "--folds=2")}
    )
    own = (config, "--config.data.name=folder", "--config.data.path=PATH")
    monkeypatch.setattr(
        studies, "PICTURES", {"digits": ("as_files", *own, "--config.data.channels=1")}
    )
    return tmp_path / "runs"


def make(part, runs):
    """Returns the row of the digits, and the table of the part."""
    found = dict(studies.PARTS[part](study.Runs(runs, long=False)))
    row = json.loads(json.dumps(found))["digits"]
    assert row["commit"] == provenance.commit()  # None outside of a checkout
    assert all(x.startswith("python main.py --") for x in row["commands"])
    assert str(runs) not in json.dumps(row)
    return row, studies_tables.studies(part, found)


@pytest.mark.slow
def test_an_ensemble(short):
    row, table = make("ensemble", short)
    assert len(row["accuracies"]) == len(row["losses"]) == 2
    assert row["disagreement"] == row["any_disagreement"] > 0  # of two members
    assert row["commands"][1] == "python main.py --mode=evaluate --workdir=runs/seeds --ensemble"
    result = json.loads((short / "seeds" / "result.json").read_text())
    assert row["accuracies"] == [one["test_accuracy"] for one in result["seeds"]]
    assert f"| **{100 * row['accuracy']:.2f} %** |" in table


@pytest.mark.slow
def test_corruptions(short):
    row, table = make("corruptions", short)
    result = json.loads((short / "seeds" / "result.json").read_text())
    assert row["clean"] == pytest.approx(result["test_accuracy"])
    assert np.mean(list(row["corruptions"].values())) == pytest.approx(np.mean(row["strengths"]))
    assert row["strengths"][0] > row["strengths"][-1]
    assert table.startswith("| model | without | mean | strength 1 | 2 |")


@pytest.mark.slow
def test_a_calibration(short):
    row, table = make("calibration", short)
    assert row["validation"]["num_images"] == 300
    assert row["validation"]["before"]["loss"] > row["validation"]["after"]["loss"]
    assert row["temperature"] != 1
    assert table.count("\n| digits | ") == 2


@pytest.mark.slow
def test_a_search(short):
    row, table = make("search", short)
    assert sum(row["trials"].values()) == 2
    assert set(row["best"]["values"]) == {
        *("optimizer.learning_rate", "augment.cutout", "optimizer.name")
    }
    for name in ("best", "shipped"):
        assert 0 < row[name]["validation_accuracy"] <= 1
        assert 0 < row[name]["test_accuracy"] <= 1
    assert "the best of 2 trials (2 complete): `optimizer.learning_rate=" in table


@pytest.mark.slow
def test_an_audit(short):
    row, table = make("audit", short)
    assert (row["folds"], row["num_images"], row["replaced"], row["top"]) == (2, 1437, 72, 86)
    assert 0 < row["found"] <= 72
    assert f"| 72 (5.01 %) | {row['found']}: **" in table


@pytest.mark.slow
def test_pictures_as_files(short):
    row, table = make("folder", short)
    assert (row["pictures"], row["classes"], row["broken"]) == (1797, 10, 0)
    assert row["num_images"] == 360
    assert "| digits | 1,797 | 10 | 0 |" in table


def test_replaced_labels_are_looked_for_among_the_first(tmp_path):
    rows = [f"{rank},{int(rank < 9)},{int(rank in (1, 6, 7))}" for rank in range(1, 101)]
    (tmp_path / "labels.csv").write_text("\n".join(["rank,flagged,replaced", *rows]))
    found = studies.count_labels(tmp_path / "labels.csv")
    assert found == {"num_images": 100, "flagged": 8, "replaced": 3, "top": 6, "found": 2}


def test_a_set_is_the_same_as_files(tmp_path):
    pictures.write_set("digits", tmp_path / "digits")
    pictures.write_set("digits", tmp_path / "digits")  # is there already
    splits = folder.open_folder(folder.Options(str(tmp_path / "digits"), 32, 1))[0]
    for name, own in datasets.load_dataset("digits").splits.items():
        np.testing.assert_array_equal(splits[name].images, own.images)
        np.testing.assert_array_equal(splits[name].labels, own.labels)


def test_tiles_of_photographs_one_of_which_is_broken(tmp_path, monkeypatch):
    pictures.write_set("photographs", tmp_path / "photographs")
    read, decoded = photos.read_in_thread, []
    monkeypatch.setattr(photos, "read_in_thread", lambda *x: (decoded.append(x[0]), read(*x))[1])
    found = pictures.time_loading(tmp_path / "photographs", 32, 3)
    assert (found["pictures"], found["classes"], found["broken"]) == (89, 3, 1)
    assert len(decoded) == len(set(decoded)) == 90  # the second time they come from the cache
    assert min(found["decode_seconds"], found["cached_seconds"]) > 0


def test_rows_that_are_not_made_again_are_kept(tmp_path, monkeypatch, capsys):
    row = {"folds": 2, "num_images": 9, "flagged": 1, "commands": []}

    def audit(runs):
        assert runs == study.Runs(tmp_path, long=True)
        yield "digits", row

    output = tmp_path / "found.json"
    before = {"audit": {"digits": {}, "mnist": {"a": 1}}, "folder": {"digits": {"b": 2}}}
    output.write_text(json.dumps({"name": "found", "parts": before}))
    monkeypatch.setitem(studies.PARTS, "audit", audit)
    assert studies.main(["audit", f"--folder={tmp_path}", "--long", f"--output={output}"]) == 0
    after = {"audit": {"digits": row, "mnist": {"a": 1}}, "folder": {"digits": {"b": 2}}}
    assert json.loads(output.read_text()) == {"name": "found", "parts": after}
    assert json.loads(capsys.readouterr().out.splitlines()[0]) == {"digits": row}
    with pytest.raises(SystemExit):
        studies.main(["nonsense"])
    assert "nonsense is not a part: choose from ensemble, cal" in capsys.readouterr().err


def test_a_command_that_fails_ends_the_benchmark(tmp_path, monkeypatch):
    def run(*_, **__):
        raise subprocess.CalledProcessError(3, "main.py")

    monkeypatch.setattr(study, "subprocess", SimpleNamespace(run=run))
    assert studies.main(["ensemble", f"--folder={tmp_path}"]) == 3


def test_what_takes_hours_is_left_out(tmp_path, capsys):
    assert study.Runs(tmp_path, long=True).may_make("cifar_audit")
    runs = study.Runs(tmp_path, long=False)
    assert not runs.may_make("cifar_audit")
    assert "cifar_audit is left out" in capsys.readouterr().out
    (tmp_path / "cifar_audit").mkdir()
    (tmp_path / "cifar_audit" / "audit.html").touch()
    assert runs.may_make("cifar_audit")


def test_a_row_has_the_commit_of_its_runs_and_commands_without_paths(tmp_path, monkeypatch):
    def run(words, cwd, check):
        for number in range(2):
            place = tmp_path / "runs" / "first" / f"fold_{number}"
            place.mkdir(parents=True)
            (place / "environment.json").write_text(json.dumps(MACHINE | {"host": "secret"}))

    monkeypatch.setattr(study, "subprocess", SimpleNamespace(run=run))
    made = study.Study(study.Runs(tmp_path / "runs", long=False))
    made.run("first", "--mode=search", flag="study", last=("--space", "a=int(0,1)"))
    command = "python main.py --mode=search --study=runs/first --space 'a=int(0,1)'"
    assert made.row(a=1) == {"a": 1, "commands": [command], **PLACE}
    other = tmp_path / "runs" / "first" / "fold_1" / "environment.json"
    other.write_text(json.dumps(MACHINE | {"commit": "def"}))
    with pytest.raises(UserError, match="fold_0, fold_1 were made by different commits"):
        made.row()


def test_a_finished_audit_is_not_made_again(tmp_path):
    folder = tmp_path / "digits_audit"
    (folder / "fold_0").mkdir(parents=True)
    (folder / "audit.html").touch()
    (folder / "labels.csv").write_text("rank,flagged,replaced\n1,1,1\n")
    (folder / "fold_0" / "environment.json").write_text(json.dumps(MACHINE))
    ((name, row),) = studies.audit(study.Runs(tmp_path, long=False))
    assert (name, row["folds"], row["commit"]) == ("digits, labels replaced", 1, "abc")


def test_rows_of_several_places_name_them():
    row = {"folds": 2, "num_images": 900, "flagged": 9, **PLACE}
    table = studies_tables.studies("audit", {"digits": row, "cifar10": row})
    assert table.endswith("|\n\nMeasured on 2 cores of Abacus 3000, commit abc.\n")
    table = studies_tables.studies("audit", {"digits": row, "cifar10": row | {"commit": "def"}})
    assert "| digits | 900 | 2 | 9 (1.00 %) |  |  |\n" in table
    assert "digits: Measured on 2 cores of Abacus 3000, commit abc. CIFAR-10: Meas" in table


def test_every_part_that_was_measured_is_shown_and_of_a_commit():
    found = json.loads((tables.FOLDER / "bench_studies.json").read_text())["parts"]
    pages = (tables.FOLDER.parent / "docs" / name for name in ("usage.md", "results.md"))
    page = "".join(page.read_text() for page in pages)
    assert set(re.findall("<!-- table: bench_studies_(.*) -->", page)) == set(found)
    for rows in found.values():
        for row in rows.values():
            assert re.fullmatch("[0-9a-f]{40}", row["commit"])
            assert all(x.startswith("python main.py --") for x in row["commands"])
