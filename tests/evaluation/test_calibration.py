"""Calibration against scikit-learn and netcal, and the temperature from fitting to every use."""

import csv
import json

import numpy as np
import pytest
from scipy import special
from sklearn import metrics
from sklearn.calibration import calibration_curve

import cifar_jax
from cifar_jax import files
from cifar_jax.data.splits import SplitSize
from cifar_jax.errors import UserError
from cifar_jax.evaluation import calibrate, calibration, evaluate, scores
from cifar_jax.reports import report, style
from cifar_jax.runs import signals
from cifar_jax.training import loop
from tests import program, tiny


def draw(temperature=1.0, num_images=3000, seed=0):
    """Returns logits of 10 classes, and labels drawn from their softmax at this temperature."""
    random = np.random.default_rng(seed)
    logits = random.normal(scale=4, size=(num_images, 10))
    shares = special.softmax(logits / temperature, axis=1).cumsum(axis=1)
    return logits, (random.random((num_images, 1)) > shares).sum(axis=1)


def test_the_measures_are_those_of_scikit_learn():
    logits, labels = draw(temperature=2)
    probabilities = special.softmax(logits, axis=1)
    found = calibration.measure_calibration(probabilities, labels)
    brier = metrics.brier_score_loss(labels, probabilities, scale_by_half=False)
    assert found.brier == pytest.approx(brier, rel=1e-12)
    loss = metrics.log_loss(labels, probabilities)
    assert scores.score(logits, labels).loss == pytest.approx(loss, rel=1e-12)
    correct, confidence = probabilities.argmax(axis=1) == labels, probabilities.max(axis=1)
    # The images divide evenly among the bins, so that every bin has the same weight.
    pairs = calibration_curve(correct, confidence, n_bins=15, strategy="quantile")
    assert found.adaptive_error == pytest.approx(np.abs(np.subtract(*pairs)).mean(), rel=1e-9)
    assert 0.1 < found.adaptive_error <= found.error * 1.1


@pytest.mark.slow
def test_the_errors_are_those_of_netcal():
    netcal = pytest.importorskip("netcal.metrics")
    logits, labels = draw(temperature=2)
    probabilities = special.softmax(logits, axis=1)
    found = calibration.measure_calibration(probabilities, labels)
    assert found.error == pytest.approx(netcal.ECE(15).measure(probabilities, labels), rel=1e-6)
    adaptive = netcal.ECE(15, equal_intervals=False).measure(probabilities, labels)
    assert found.adaptive_error == pytest.approx(adaptive, rel=0.02)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_temperature_is_found_and_none_near_is_better(temperature):
    logits, labels = draw(temperature, num_images=20_000)
    found = calibration.fit_temperature(logits.astype(np.float32), labels)
    assert found == pytest.approx(temperature, rel=0.05)
    best = scores.score(logits / found, labels).loss
    for factor in (0.999, 1.001):
        assert scores.score(logits / (found * factor), labels).loss > best


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The workdir of a short run with a validation split, and what calibrating it printed."""
    folder = tmp_path_factory.mktemp("run") / "a"
    folder.mkdir()
    loop.train_model(tiny.config(num_steps=6), folder, signals.Signals())
    code, out, err = program.run_here("--mode=calibrate", f"--workdir={folder}")
    assert (code, err) == (0, "")
    return folder, out


def test_everything_uses_the_temperature(run, capsys):
    folder, out = run
    model = cifar_jax.load(folder)
    assert (model.temperature != 1, model.fitted_on) == (True, "validation")
    (found,) = evaluate.predict_split(folder, "validation")
    plain = scores.score(found.logits, found.labels)
    fitted = scores.score(found.logits / np.float64(model.temperature), found.labels)
    assert fitted.loss < plain.loss
    assert f"{plain.loss:.4f}" in out
    assert f"{fitted.loss:.4f}" in out
    assert evaluate.evaluate_model(folder, "validation") == fitted
    words = f"temperature {model.temperature:.3f} (fitted on the validation split)"
    assert words in capsys.readouterr().out
    expected = special.softmax(found.logits / np.float64(model.temperature), axis=1)
    np.testing.assert_allclose(model.predict(found.images), expected, atol=1e-6)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(style, "_DPI", 40)
        patch.setattr(report, "draw_curves", lambda *_: ())
        patch.setattr(report, "draw_images", lambda *_: ())
        page = report.make_report(folder, "validation").read_text()
    assert words in page
    text = (folder / "report_validation" / "predictions.csv").read_text()
    row = next(csv.DictReader(text.splitlines()))
    shares = [float(row[f"probability of {digit}"]) for digit in range(10)]
    np.testing.assert_allclose(shares, expected[0], rtol=1e-4, atol=1e-6)


def test_a_temperature_belongs_to_its_checkpoint(run, tmp_path):
    folder, _ = run
    path = folder / calibration.FILE
    values = files.read_json(path)
    try:
        files.write_json(path, {"0" * 64: next(iter(values.values()))})
        assert cifar_jax.load(folder).temperature == 1
        for wrong in ([], [0.0], ["x"], None, [float("nan")]):
            text = json.dumps(
                {key: dict(entry, temperatures=wrong) for key, entry in values.items()}
            )
            path.write_text(text)
            with pytest.raises(UserError, match="is damaged: delete it, and calibrate again"):
                cifar_jax.load(folder)
    finally:
        files.write_json(path, values)


@pytest.mark.parametrize("split", ["train", "train[99%:]", "all", "test+train", "test+train[:9]"])
def test_what_a_model_was_trained_on_does_not_calibrate_it(run, split):
    folder, _ = run
    before = (folder / calibration.FILE).read_bytes()
    code, out, err = program.run_here("--mode=calibrate", f"--workdir={folder}", f"--split={split}")
    assert (code, out) == (2, "")
    words = f"has images that {folder} was trained on: calibrate on images that were not"
    assert err == f"error: --split={split} {words}, --split=validation\n"
    assert (folder / calibration.FILE).read_bytes() == before


def test_images_that_the_training_left_out_calibrate(run):
    folder, _ = run
    sizes = {x: SplitSize(n, [n]) for x, n in (("train", 1437), ("test", 360))}
    config = tiny.config(data__train_split="train[:90%]", data__test_split="test[:50%]")

    def touches_test(split):
        return calibrate._check_split(folder, config, split, sizes)

    assert [touches_test(x) for x in ("train[90%:]", "test[50%:]", "validation")] == [False] * 3
    assert [touches_test(x) for x in ("test", "test[:1%]", "train[95%:]+test")] == [True] * 3
    with pytest.raises(UserError, match="has images that"):
        touches_test("train[89%:]")


def test_a_run_without_a_validation_split_is_refused(run, tmp_path):
    folder, _ = run
    without = tmp_path / "without"
    without.mkdir()
    config = files.read_json(folder / "config.json")
    config["data"]["validation_examples"] = 0
    files.write_json(without / "config.json", config)
    with pytest.raises(UserError, match="held out no images to calibrate on: train with --config"):
        calibrate.calibrate_model(without)


@pytest.mark.parametrize("split", ["test", "test[:50%]"])
def test_calibrating_on_the_test_split_says_so(run, split, capsys):
    folder, _ = run
    path = folder / calibration.FILE
    before = path.read_text()
    calibrate.calibrate_model(folder, split)
    words = "fitted on the test split: scores on it are no longer those of unseen images"
    assert words in capsys.readouterr().out
    assert cifar_jax.load(folder).fitted_on == split
    path.write_text(before)


def made_up(logits, labels):
    """Returns predictions with these logits."""
    return evaluate.Predictions(None, None, np.array(labels), np.array(logits), "3")


def test_no_temperature_is_best_where_all_images_are_right_or_none():
    random = np.random.default_rng(0)
    logits = random.normal(size=(200, 10)).astype(np.float32)
    right, wrong = logits.argmax(axis=1), logits.argmin(axis=1)
    for labels, count, bound in ((right, 200, 0.01), (wrong, 0, 100)):
        words = f"seed 3, which has {count} of 200 images of the validation split right: the loss"
        with pytest.raises(UserError, match=f"{words} falls on to the bound, {bound};"):
            calibrate._fit_temperatures([made_up(logits, labels)], "validation")
    # One that is wrong is enough.
    right[0] = (right[0] + 1) % 10
    (found,) = calibrate._fit_temperatures([made_up(logits, right)], "validation")
    assert 0.01 < found < 1


def test_few_images_get_a_warning(caplog):
    logits, labels = draw(num_images=100)
    calibrate._fit_temperatures([made_up(logits, labels)], "validation")
    assert caplog.text == ""
    calibrate._fit_temperatures([made_up(logits[:99], labels[:99])], "validation")
    (line,) = caplog.messages
    assert line.startswith("the validation split has only 99 images: a temperature fitted on fewer")
