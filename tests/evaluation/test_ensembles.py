"""Ensembles: the mean of the members' probabilities, wherever a model is used."""

import csv

import numpy as np
import pytest
from PIL import Image

import cifar_jax
from cifar_jax.data import datasets
from cifar_jax.errors import UserError
from cifar_jax.evaluation import evaluate, model
from cifar_jax.reports import report, style
from cifar_jax.runs import signals
from cifar_jax.training import loop
from tests import own_set, program, tiny


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The workdirs of two runs, one of which has two seeds."""
    folder = tmp_path_factory.mktemp("runs")
    for name, fields in (("a", {"seed": 1}), ("b", {"num_seeds": 2})):
        (folder / name).mkdir()
        config = tiny.config(num_steps=4, data__validation_examples=0, **fields)
        loop.train_model(config, folder / name, signals.Signals())
    return folder / "a", folder / "b"


@pytest.fixture(scope="module")
def members(runs):
    return [cifar_jax.load(runs[0]), *(cifar_jax.load(runs[1], seed=seed) for seed in (0, 1))]


@pytest.fixture(scope="module")
def test_split():
    return datasets.load_dataset("digits").splits["test"]


def test_the_probabilities_are_the_mean_of_the_members(runs, members, test_split):
    whole = cifar_jax.load(list(runs))
    assert [one.seed for one in whole.members] == [1, 0, 1]
    images = test_split.images[:50]
    expected = np.mean([one.predict(images) for one in members], axis=0)
    np.testing.assert_allclose(whole.predict(images), expected, rtol=1e-6)
    # A member's temperature counts before the mean is taken.
    warm = model.combine([members[0]._replace(temperature=3.0), members[1]])
    parts = [members[0].predict_logits(images, 50) / 3, members[1].predict_logits(images, 50)]
    shares = [np.exp(part) / np.exp(part).sum(axis=1, keepdims=True) for part in parts]
    np.testing.assert_allclose(warm.predict(images), np.mean(shares, axis=0), rtol=1e-5)


def test_evaluate_shows_every_member_and_the_whole(runs, members, test_split):
    code, out, err = program.run_here("--mode=evaluate", f"--workdirs={runs[0]},{runs[1]}")
    assert (code, err) == (0, "")
    shares = [one.predict(test_split.images) for one in members]
    labels, lines = test_split.labels, out.splitlines()
    assert lines[0] == "an ensemble of 3 models:"
    rows = {line.split("  ")[0].strip(): line.split() for line in lines[3:7]}
    assert list(rows) == ["a", "b seed 0", "b seed 1", "ensemble"]
    for row, share in zip(rows.values(), [*shares, np.mean(shares, axis=0)], strict=True):
        assert str((share.argmax(axis=1) == labels).sum()) in row
        assert f"{-np.log(share[np.arange(360), labels]).mean():.4f}" in row
    choices = [share.argmax(axis=1) for share in shares]
    apart = np.mean([(choices[i] != choices[j]).mean() for i, j in ((0, 1), (0, 2), (1, 2))])
    any_apart = ((choices[0] != choices[1]) | (choices[1] != choices[2])).mean()
    assert f"two members disagree on {apart:.2%} of the images on average" in lines[-1]
    assert f"on {any_apart:.2%} not all members agree" in lines[-1]


def test_disagreement_by_hand():
    assert evaluate.disagreement(np.array([[0, 1, 2, 3], [0, 1, 2, 0], [0, 1, 1, 1]])) == (
        pytest.approx((1 + 2 + 2) / 12),
        0.5,
    )


def test_the_seeds_of_a_run_are_an_ensemble_in_every_mode(runs, members, test_split, tmp_path):
    scores = evaluate.evaluate_model(runs[1], ensemble=True)
    shares = np.mean([one.predict(test_split.images) for one in members[1:]], axis=0)
    assert scores.num_correct == (shares.argmax(axis=1) == test_split.labels).sum()
    path = tmp_path / "digit.png"
    Image.fromarray(test_split.images[0, ..., 0]).save(path)
    flags = ("--mode=predict", f"--workdir={runs[1]}", "--ensemble", f"--images={path}")
    code, out, err = program.run_here(*flags, f"--output={tmp_path}")
    assert (code, err) == (0, "")
    assert "1 picture predicted by an ensemble of 2 models; " in out
    (row,) = csv.DictReader((tmp_path / "predictions.csv").read_text().splitlines())
    assert [float(row[str(digit)]) for digit in range(10)] == pytest.approx(list(shares[0]), 1e-5)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("draw_curves", "draw_errors", "draw_images"):
            patch.setattr(report, name, lambda *_: ())
        page = report.make_report(runs[1], ensemble=True)
    assert page.parent == runs[1] / "report_ensemble"
    text = page.read_text()
    assert f"{scores.accuracy:.2%}" in text
    assert "an ensemble of 2 models on digits: test split" in text


def test_a_run_that_is_named_twice_is_one_run(runs):
    code, out, err = program.run_here("--mode=evaluate", f"--workdirs={runs[0]},{runs[0]}")
    assert (code, err) == (0, "")
    assert out == program.run_here("--mode=evaluate", f"--workdir={runs[0]}")[1]
    assert out.startswith(f"{runs[0]}, checkpoint of step 4: test accuracy ")


def test_report_and_predict_take_several_runs(runs, members, test_split, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(style, "_DPI", 20)
    flag = f"--workdirs={runs[0]},{runs[1]}"
    shares = np.mean([one.predict(test_split.images) for one in members], axis=0)
    code, out, err = program.run_here("--mode=report", flag)
    assert (code, err) == (0, "")
    right = int((shares.argmax(axis=1) == test_split.labels).sum())
    page = tmp_path / "ensemble" / "report" / "report.html"
    words = f"an ensemble of 3 models, test accuracy {right / 360:.2%} ({right} of 360)"
    assert out.startswith(f"{page.relative_to(tmp_path)}: {words}")
    for name in ("b seed 0", "b seed 1", "an ensemble of 3 models on digits: test split"):
        assert name in page.read_text()
    with (page.parent / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    for row, share in zip(rows, shares, strict=True):
        found = [float(row[f"probability of {digit}"]) for digit in range(10)]
        assert found == pytest.approx(list(share), rel=1e-4, abs=1e-6)
    path = tmp_path / "digit.png"
    Image.fromarray(test_split.images[0, ..., 0]).save(path)
    code, out, err = program.run_here("--mode=predict", flag, f"--images={path}")
    assert (code, err) == (0, "")
    assert "1 picture predicted by an ensemble of 3 models; " in out
    text = (tmp_path / "ensemble" / "predictions" / "predictions.csv").read_text()
    (row,) = csv.DictReader(text.splitlines())
    assert [float(row[str(digit)]) for digit in range(10)] == pytest.approx(list(shares[0]), 1e-5)


def test_members_that_do_not_fit_are_named(runs, members):
    other = members[0]._replace(class_names=("x",) * 10)
    with pytest.raises(UserError, match="must fit each other; these have class names "):
        model.combine([members[1], other])
    with pytest.raises(UserError, match="needs at least two models"):
        evaluate.evaluate_model(runs[0], ensemble=True)
    code, _, err = program.run_here(
        "--mode=evaluate", f"--workdirs={runs[0]}", f"--workdir={runs[1]}"
    )
    assert (code, err) == (2, "error: --workdir and --workdirs are both given: leave one out\n")
    code, _, err = program.run_here(
        "--mode=predict", f"--workdir={runs[1]}", "--ensemble", "--explain", "--images=x.png"
    )
    assert (code, err.startswith("error: --explain is for one model: leave it out")) == (2, True)
    apart = {str(seed): members[0]._replace(config=tiny.config(seed=seed)) for seed in (1, 2)}
    with pytest.raises(UserError, match="the validation split of 2 is not that of 1: choose one"):
        evaluate.load_images(apart, "validation", None, None)


def test_members_are_compared_by_what_they_read_and_not_by_how_it_is_written(members, tmp_path):
    rows = [(number % 2, "L") for number in range(20)]
    folder = own_set.prepare(tmp_path, "greys", train=rows, test=rows[:6])
    shape, names = (4, 5, 1), ("dark", "light")
    fit = members[0]._replace(class_names=names, image_shape=shape)

    def load(split, dataset=None, given=str(tmp_path), **fields):
        usual = {"data__name": "greys", "data__validation_examples": 0, "seed": 1}
        configs = [tiny.config(**usual), tiny.config(**{**usual, **fields})]
        models = {x: fit._replace(config=y) for x, y in zip("ab", configs, strict=True)}
        return evaluate.load_images(models, split, dataset, given)

    assert folder.name == "1.0.0"
    for fields in (
        {"data__name": "greys:1.0.0"},
        {"data__name": "greys/1.0.0"},
        {"data__train_split": "train[:100%]"},
        {"data__train_split": "train[:50%]"},  # the test images are the same
        {"data__test_split": "test"},
        {"data__image_size": None, "data__channels": 1},
        {"seed": 2},
    ):
        assert len(load("test", **fields).labels) == 6
    assert len(load("test", dataset="greys:1.0.0", data__name="greys:1.*.*").labels) == 6
    assert len(load("train", data__train_split="train[:100%]").labels) == 20
    words = "the train split of b is not that of a: choose one that is the same for all"
    with pytest.raises(UserError, match=words):
        load("train", data__train_split="train[:50%]")
    with pytest.raises(UserError, match="the test split of b is not that of a"):
        load("test", data__test_split="test[:4]")


def test_runs_on_two_folders_have_two_test_splits(members, tmp_path):
    for place in ("one", "two"):
        for name, grey in (("dark", 10), ("light", 200)):
            (tmp_path / place / name).mkdir(parents=True)
            for number in range(10):
                level = grey + number + (20 if place == "two" else 0)
                Image.new("L", (8, 8), level).save(tmp_path / place / name / f"{number}.png")
    fit = members[0]._replace(class_names=("dark", "light"), image_shape=(8, 8, 1))

    def load(given=None, **fields):
        usual = {"data__name": "folder", "data__path": str(tmp_path / "one"), "data__channels": 1}
        usual |= {"data__image_size": 8, "data__validation_examples": 0}
        configs = [tiny.config(**usual), tiny.config(**{**usual, **fields})]
        models = {x: fit._replace(config=y) for x, y in zip("ab", configs, strict=True)}
        return evaluate.load_images(models, "test", None, given or configs[0].data.path)

    assert len(load().labels) == 4
    assert len(load(data__path=f"{tmp_path}/two/../one").labels) == 4
    assert len(load(given=f"{tmp_path}/two", data__path="elsewhere").labels) == 4  # --data_dir
    for fields in ({"data__path": f"{tmp_path}/two"}, {"seed": 5}, {"data__test_fraction": 0.4}):
        with pytest.raises(UserError, match="the test split of b is not that of a"):
            load(**fields)
    assert len(load(data__seed=0).labels) == 4  # the seed of the other one, written otherwise
