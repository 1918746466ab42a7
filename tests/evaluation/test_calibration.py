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


def test_what_a_model_was_trained_on_does_not_calibrate_it(run, tmp_path):
    folder, _ = run
    with pytest.raises(UserError, match="was trained on: calibrate on images that were not"):
        calibrate.calibrate_model(folder, "train")
    without = tmp_path / "without"
    without.mkdir()
    config = files.read_json(folder / "config.json")
    config["data"]["validation_examples"] = 0
    files.write_json(without / "config.json", config)
    with pytest.raises(UserError, match="held out no images to calibrate on: train with --config"):
        calibrate.calibrate_model(without)


def test_calibrating_on_the_test_split_says_so(run, tmp_path, capsys):
    folder, _ = run
    path = folder / calibration.FILE
    before = path.read_text()
    calibrate.calibrate_model(folder, "test")
    words = "fitted on the test split: scores on it are no longer those of unseen images"
    assert words in capsys.readouterr().out
    assert cifar_jax.load(folder).fitted_on == "test"
    path.write_text(before)
