"""Intervals and tests over runs, against SciPy's and textbook numbers."""

import csv
import json

import pytest

from cifar_jax.config import stored
from cifar_jax.reports import compare, statistics
from tests import tiny

RIGHT = ([1] * 30 + [0] * 10, [1] * 25 + [0] * 5 + [1] * 2 + [0] * 8)


def write_run(folder, accuracies, right=(), truth="7", **fields):
    """Writes a finished run with these test accuracies by seed, and its report."""
    folder.mkdir(parents=True)
    config = stored.to_json(tiny.config(num_seeds=len(accuracies), **fields))
    (folder / "config.json").write_text(json.dumps(config))
    seeds = [{"seed": seed, "test_accuracy": x} for seed, x in accuracies.items()]
    scores = {"num_correct": sum(right), "num_images": len(right)}
    result = {"seeds": seeds} if len(seeds) > 1 else seeds[0] | scores
    (folder / "result.json").write_text(json.dumps({"test_accuracy": 0.5, **result}))
    (folder / "metrics.jsonl").touch()
    if right:
        (folder / "report").mkdir()
        with (folder / "report" / "predictions.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(("index", "truth", "predicted", "correct"))
            writer.writerows((index, truth, "x", x) for index, x in enumerate(right))
    return folder


def test_runs_of_one_config_are_a_group_and_each_seed_counts_once(tmp_path):
    runs = [
        write_run(tmp_path / "a", {0: 0.5, 1: 0.6}),
        write_run(tmp_path / "b", {2: 0.7}, seed=2, log__report=True, num_cpu_devices=1),
        write_run(tmp_path / "c", {0: 0.9}),
        write_run(tmp_path / "d", {0: 0.8}, test_time__views="mirror"),
        write_run(tmp_path / "e", {0: 0.8}, loss__class_weights="balanced"),
    ]
    (tmp_path / "unfinished").mkdir()
    groups = statistics.group_runs("abcdef", [*runs, tmp_path / "unfinished"])
    assert [group[:2] for group in groups] == [
        ("a, b, c", {0: 0.5, 1: 0.6, 2: 0.7}),
        ("d", {0: 0.8}),
        ("e", {0: 0.8}),
    ]
    (table,) = statistics.describe_groups(groups)
    # Student's t for two degrees of freedom is 4.302653; the deviation is 10 %.
    row = next(line for line in table.splitlines() if line.startswith("a, b, c"))
    assert row.split()[3:] == ["3", "60.00%", "10.00%", "35.16%", "to", "84.84%"]
    assert list(statistics.describe_groups(groups[1:])) == []


def test_a_set_under_two_spellings_is_one_if_the_same_was_read(tmp_path):
    runs = []
    for name, version, mean in (("a", "", 0.1), ("b", ":3.0.1", 0.1), ("c", ":1.0.0", 0.2)):
        runs.append(write_run(tmp_path / name, {0: 0.5}, data__name=f"mnist{version}"))
        (runs[-1] / "checkpoints" / "5").mkdir(parents=True)
        data = {"class_names": ["0", "1"], "image_shape": [28, 28, 1], "mean": [mean], "std": [1]}
        (runs[-1] / "checkpoints" / "5" / "meta.json").write_text(json.dumps({"data": data}))
    runs.append(write_run(tmp_path / "d", {1: 0.6}, seed=1, data__name="mnist"))
    names = [group.name for group in statistics.group_runs("abcd", runs)]
    assert names == ["a, b, d", "c"]


def test_runs_with_other_code_of_ones_own_are_another_group(tmp_path):
    runs = []
    for name, text in (("a", "1"), ("b", "1"), ("c", "2")):
        folder = f"/home/{name}" if name == "b" else "."
        fields = {"augment__custom": f"{folder}/own.py:invert"}
        run = write_run(tmp_path / name, {0: 0.5, 1: 0.6}, **fields)
        (run / "code").mkdir()
        record = {"augment.custom": {"path": "own.py", "sha256": text * 64}}
        (run / "code" / "sources.json").write_text(json.dumps(record))
        runs.append(run)
    assert [group.name for group in statistics.group_runs("abc", runs)] == ["a, b", "c"]
    found = compare.compare_runs(runs[1:], tmp_path / "out")
    assert found["c"].config["augment.custom (SHA-256)"] == "2" * 12


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"data__name": "mnist"}, "data.name: digits, mnist"),
        ({"data__test_split": "test[:50%]"}, "data.test_split: test, test[:50%]"),
        ({}, None),
        ({"data__test_split": "test"}, None),
    ],
)
def test_accuracies_on_different_images_are_not_compared(tmp_path, fields, words):
    runs = [
        write_run(tmp_path / "a", {0: 0.5, 1: 0.6}),
        write_run(tmp_path / "b", {0: 0.7, 1: 0.8}, batch_size=32, **fields),
    ]
    _, last = statistics.describe_groups(statistics.group_runs("ab", runs))
    if words:
        line = f"these configs were tested on different images ({words}), so their accuracies"
        assert last == f"{line} are not compared"
    else:
        assert last.startswith("difference of the means -20.00%")


def test_the_difference_is_welchs():
    # 50 / 17 degrees of freedom by Welch and Satterthwaite, for which Student's t is 3.218759.
    one, other = [0.80, 0.82, 0.84], [0.70, 0.71, 0.72]
    words = statistics.describe_difference(one, other)
    assert words == (
        "difference of the means +11.00% (95% interval +6.84% to +15.16% by Welch, p = 0.0037): "
        "these seeds suffice to tell the configs apart"
    )


def test_too_few_seeds_say_how_many_it_would_take():
    words = statistics.describe_difference([0.80, 0.82, 0.84], [0.79, 0.81, 0.83])
    # (1.959964 + 0.841621)^2 * (0.02^2 + 0.02^2) / 0.01^2 = 62.8
    assert "these seeds do not suffice to tell the configs apart" in words
    assert words.endswith("; if the difference is real, about 63 seeds of each would")
    same = statistics.describe_difference([0.5, 0.5], [0.6, 0.6])
    assert same.endswith("-10.00%: the seeds of each config agree, so there is nothing to test")


def test_two_runs_on_the_same_images_are_compared_by_mcnemar(tmp_path, capsys):
    runs = [write_run(tmp_path / str(n), {0: 0.7}, RIGHT[n], seed=n) for n in range(2)]
    compare.compare_runs(runs, tmp_path / "out")
    # 2 * (C(7,0) + C(7,1) + C(7,2)) / 2^7
    words = "of 40 images, only 0 is right on 5 and only 1 on 2: p = 0.45 by McNemar's exact test"
    assert words in capsys.readouterr().out
    other = write_run(tmp_path / "2", {0: 0.7}, RIGHT[1], truth="8")
    words = "McNemar's test needs the same test images: these runs have different ones"
    assert statistics.describe_pair("ab", [runs[0], other]) == words
    (runs[0] / "report" / "predictions.csv").unlink()
    words = "McNemar's test needs the reports of both runs on the test split: --mode=report"
    assert statistics.describe_pair("ab", runs) == words


def test_a_report_of_other_predictions_is_not_used(tmp_path):
    runs = [write_run(tmp_path / str(n), {0: 0.7}, RIGHT[n], seed=n) for n in range(2)]
    path = runs[1] / "report" / "predictions.csv"
    path.write_text(path.read_text().replace("0,7,x,1", "0,7,x,0", 1))
    assert "needs the reports of both" in statistics.describe_pair("ab", runs)
