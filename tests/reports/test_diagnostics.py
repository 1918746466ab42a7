"""The numbers of a report, compared with plain NumPy and by hand, and what their pictures show."""

import numpy as np
import pytest
from scipy import special
from sklearn.calibration import calibration_curve

from cifar_jax.evaluation.calibration import measure_calibration
from cifar_jax.reports import diagnostics
from cifar_jax.reports.style import render

LABELS = np.array([0, 0, 0, 1, 1, 2])
PREDICTED = np.array([0, 0, 1, 1, 0, 1])  # class 2 is never predicted, class 3 does not occur


def make_predictions(num_images=3000, num_classes=10, seed=0):
    """Returns probabilities and labels of a classifier that is right about half of the time at any
    confidence: overconfident in some bins, underconfident in others."""
    random = np.random.default_rng(seed)
    probabilities = random.dirichlet(np.full(num_classes, 0.3), num_images)
    labels = random.integers(num_classes, size=num_images)
    right = random.random(num_images) < 0.5
    return probabilities, np.where(right, probabilities.argmax(axis=1), labels)


@pytest.mark.parametrize("num_bins", [1, 10, 15])
def test_calibration_error_equals_a_plain_computation(num_bins):
    probabilities, labels = make_predictions()
    confidence = probabilities.max(axis=1)
    correct = probabilities.argmax(axis=1) == labels
    error, gaps = 0.0, []
    for number in range(num_bins):
        inside = (confidence > number / num_bins) & (confidence <= (number + 1) / num_bins)
        if inside.any():
            gaps.append(correct[inside].mean() - confidence[inside].mean())
            error += inside.mean() * abs(gaps[-1])
    found = measure_calibration(probabilities, labels, num_bins)
    assert found.error == pytest.approx(error, rel=1e-12)
    assert num_bins == 1 or min(gaps) < -0.1 < 0.1 < max(gaps)
    assert found.num_predictions.sum() == len(labels)
    true, predicted = calibration_curve(correct, confidence, n_bins=num_bins)
    some = found.num_predictions > 0
    np.testing.assert_allclose(found.accuracy[some], true)
    np.testing.assert_allclose(found.confidence[some], predicted)


def test_certain_predictions_that_are_right_or_wrong():
    sure = np.eye(3)[[0, 1, 2, 0]]
    assert measure_calibration(sure, np.array([0, 1, 2, 0])).error == 0
    assert measure_calibration(sure, np.array([1, 2, 0, 1])).error == 1


def test_scores_by_hand():
    scores = diagnostics.score_classes(LABELS, PREDICTED, 4)
    np.testing.assert_allclose(scores.precision, [2 / 3, 1 / 3, np.nan, np.nan])
    np.testing.assert_allclose(scores.recall, [2 / 3, 1 / 2, 0, np.nan])
    np.testing.assert_allclose(scores.f1, [2 / 3, 2 / 5, 0, np.nan])
    assert scores.support.tolist() == [3, 2, 1, 0]


def test_the_matrix_shows_truth_by_predicted_with_counts_and_percent():
    axes = diagnostics.plot_confusion(LABELS, PREDICTED, ("a$b$", "<c>", "d", "e")).axes[0]
    matrix = [[2, 1, 0, 0], [1, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]]
    shares = np.array(matrix) / [[3], [2], [1], [1]]
    np.testing.assert_allclose(axes.images[0].get_array(), shares)
    assert (axes.get_ylabel(), axes.get_xlabel()) == ("Truth", "Predicted")
    texts = {text.get_position(): text.get_text() for text in axes.texts}
    assert texts == {
        **{(0, 0): "2\n67%", (1, 0): "1\n33%"},  # (column, row)
        **{(0, 1): "1\n50%", (1, 1): "1\n50%"},
        (1, 2): "1\n100%",
    }
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a$b$", "<c>", "d", "e"]


def test_a_hundred_classes_have_no_numbers_in_the_cells():
    probabilities, labels = make_predictions(num_classes=100)
    predicted = probabilities.argmax(axis=1)
    names = [f"class {number}" for number in range(100)]
    figure = diagnostics.plot_confusion(labels, predicted, names)
    assert not figure.axes[0].texts
    scores = diagnostics.score_classes(labels, predicted, 100)
    figure = diagnostics.plot_class_scores(scores, names)
    worst = figure.axes[0].get_yticklabels()[0].get_text()
    assert worst == names[int(np.argmin(scores.f1))]
    assert len(figure.axes[0].get_yticklabels()) == 20


def test_pictures_of_undefined_scores_and_of_a_perfect_model():
    scores = diagnostics.score_classes(LABELS, PREDICTED, 4)
    render(diagnostics.plot_class_scores(scores, "abcd"))
    perfect = np.eye(4)[LABELS]
    render(diagnostics.plot_calibration(measure_calibration(perfect, LABELS), dark=True))
    scores = diagnostics.score_classes(LABELS, LABELS, 3)
    low, high = diagnostics.plot_class_scores(scores, "abc").axes[0].get_xlim()
    assert (low, high) == (0.9, 1)


def test_the_bars_of_the_reliability_diagram():
    probabilities, labels = make_predictions()
    found = measure_calibration(probabilities, labels)
    top, bottom = diagnostics.plot_calibration(found).axes
    some = found.num_predictions > 0
    np.testing.assert_array_equal([bar.get_height() for bar in top.patches], found.accuracy[some])
    assert sum(bar.get_height() for bar in bottom.patches) == pytest.approx(1)
    assert f"{found.error:.2%}" in top.get_title()


def test_the_reliability_diagram_shows_the_values_before_and_after():
    logits = np.log(make_predictions()[0]) * 3
    labels = make_predictions()[1]
    before = measure_calibration(special.softmax(logits, axis=1), labels)
    after = measure_calibration(special.softmax(logits / 3, axis=1), labels)
    assert (before.num_predictions != after.num_predictions).any()
    top, bottom = diagnostics.plot_calibration(after, before).axes
    some, old = after.num_predictions > 0, before.num_predictions > 0
    np.testing.assert_array_equal([bar.get_height() for bar in top.patches], after.accuracy[some])
    lines = {line.get_label(): line for line in top.lines}
    np.testing.assert_array_equal(
        lines["accuracy before"].get_xydata(),
        np.stack([before.confidence[old], before.accuracy[old]], axis=1),
    )
    np.testing.assert_array_equal(lines["mean confidence"].get_ydata(), after.confidence[some])
    (points,) = bottom.lines
    shares = before.num_predictions[old] / len(labels)
    np.testing.assert_allclose(points.get_ydata(), shares)
    np.testing.assert_allclose(points.get_xdata(), (np.flatnonzero(old) + 0.46) / len(old))
    heights = [bar.get_height() for bar in bottom.patches]
    np.testing.assert_allclose(heights, after.num_predictions / len(labels))
    words = f"calibration error {before.error:.2%} before, {after.error:.2%} after"
    assert top.get_title() == words
