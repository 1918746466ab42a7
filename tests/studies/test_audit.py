"""`--mode=audit`: its folds, its table and page; and how many replaced labels it finds."""

import csv
from unittest import mock

import numpy as np
import pytest

import cifar_jax
from cifar_jax.data import datasets
from cifar_jax.data.sampling import partition
from cifar_jax.errors import UserError
from cifar_jax.reports import style
from cifar_jax.studies import audit, audit_page
from tests import program, tiny

FIELDS = {"num_steps": 20, "data__validation_examples": 0, "data__label_noise": 0.05}


@pytest.fixture(scope="module", autouse=True)
def _few_coarse_pictures():
    with mock.patch.object(style, "_DPI", 20), mock.patch.object(audit_page, "_NUM_PICTURES", 1):
        yield


@pytest.fixture(scope="module")
def audited(tmp_path_factory):
    """The folder of an audit in two folds, the flags of its command, and what that printed."""
    folder = tmp_path_factory.mktemp("audit")
    flag = program.write_config(folder / "short.py", **FIELDS)
    flags = (flag, "--mode=audit", "--folds=2", f"--workdir={folder / 'audit'}")
    code, out, err = program.run_here(*flags)
    assert (code, err) == (0, "")
    return folder / "audit", flags, out.splitlines()


def read_table(folder):
    with (folder / "labels.csv").open() as file:
        return list(csv.DictReader(file))


def test_each_image_is_judged_by_the_fold_that_has_not_seen_it(audited):
    folder, _, _ = audited
    rows = read_table(folder)
    assert sorted(int(row["index"]) for row in rows) == list(range(1437))
    assert [int(row["rank"]) for row in rows] == list(range(1, 1438))
    digits = datasets.load_dataset("digits")
    options = datasets.run_options(tiny.config(**FIELDS))
    labels = datasets.load_run_data("digits", **options).splits["train"].labels
    order = np.argsort(np.random.Philox(seed=0).random_raw(1437), kind="stable")
    by_index = {int(row["index"]): row for row in rows}
    for fold, chosen in enumerate((np.sort(order[:719]), np.sort(order[719:]))):
        model = cifar_jax.load(folder / f"fold_{fold}")
        expected = model.predict(digits.splits["train"].images[chosen])
        for index, share in zip(chosen, expected, strict=True):
            row, label = by_index[index], labels[index]
            assert row["label"] == str(label)
            assert float(row["probability of label"]) == pytest.approx(share[label], abs=1e-6)
            others = np.delete(share, label)
            margin = np.log(share[label] / others.max())
            assert float(row["margin"]) == pytest.approx(margin, rel=1e-4, abs=1e-4)
            assert row["replaced"] == str(int(label != digits.splits["train"].labels[index]))
    margins = [float(row["margin"]) for row in rows]
    assert margins == sorted(margins)


def test_the_page_names_what_is_found(audited):
    folder, _, out = audited
    rows = read_table(folder)
    flagged = sum(int(row["flagged"]) for row in rows)
    hits = sum(int(row["replaced"]) for row in rows[: round(1.2 * 72)])
    words = f"{flagged} of 1437 labels are probably wrong ({flagged / 1437:.1%}); {hits} of 72"
    assert out[-1].endswith(
        f"audit.html: {words} replaced labels are among the first 86; all images are in labels.csv"
    )
    text = (folder / "audit.html").read_text()
    assert f"<b>{hits} of 72</b>" in text
    assert f"<b>{flagged:,} ({flagged / 1437:.1%})</b>" in text
    assert text.count("<img") == len(list(folder.glob("suspicious_*.png"))) == 1


def test_the_same_command_again_trains_nothing(audited):
    folder, flags, _ = audited
    before = {path: path.stat().st_mtime_ns for path in folder.glob("fold_*/**/*")}
    table = (folder / "labels.csv").read_bytes()
    assert program.run_here(*flags)[0] == 0
    assert {path: path.stat().st_mtime_ns for path in folder.glob("fold_*/**/*")} == before
    assert (folder / "labels.csv").read_bytes() == table


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (("--folds=1",), "flag --folds=1: 1 is not integer >= 2"),
        (("--folds=1438",), "--folds is 1438: give a number from 2 to 1437 (images)"),
        (
            ("--folds=1000",),
            "--folds is 1000, but parts of 2 images leave none of 1437 for the last fold: give "
            "--folds=719",
        ),
        (("--folds=3",), "data.validation_examples was 719 and is now 479"),
        (("--workdir={}/fold_0",), "fold_0 holds a run: choose another folder for the audit"),
    ],
)
def test_mistakes(audited, flags, line):
    folder, given, _ = audited
    code, _, err = program.run_here(*given, *(flag.format(folder) for flag in flags))
    assert code == 2
    assert line in err.splitlines()[0]
    assert "Traceback" not in err


def test_every_number_of_folds_that_is_accepted_has_images_for_each():
    for total in range(2, 60):
        for folds in range(2, total + 1):
            try:
                size = audit.part_size(total, folds)
            except UserError as error:
                advised = int(str(error).rpartition("=")[2])
                assert 2 <= advised < folds
                assert audit.part_size(total, advised)
                continue
            parts = [partition(total, size, 0, number)[0] for number in range(folds)]
            assert all(map(len, parts))
            assert sum(map(len, parts)) == total


@pytest.mark.slow
def test_replaced_labels_of_the_digits_are_found(tmp_path):
    flags = ("--config=configs/digits.py", "--config.num_epochs=12")
    for seed in (1, 2):
        folder = tmp_path / f"audit_{seed}"
        noise = ("--config.data.label_noise=0.05", f"--config.data.seed={seed}")
        assert program.run_here("--mode=audit", *flags, *noise, f"--workdir={folder}")[0] == 0
        rows = read_table(folder)
        hits = sum(int(row["replaced"]) for row in rows[: round(0.06 * 1437)])
        assert hits >= 0.85 * 72, (seed, hits)
