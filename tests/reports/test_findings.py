"""What the report draws of a model's predictions."""

import numpy as np
import pytest

from cifar_jax.evaluation import evaluate, gradcam
from cifar_jax.reports import findings, plots, style
from tests import program


@pytest.mark.slow
def test_the_heat_belongs_to_the_mistakes_that_are_shown(monkeypatch):
    monkeypatch.setattr(style, "_DPI", 20)
    drawn, plot = [], plots.plot_predictions

    def note(images, probabilities, names, labels, titles, dark=False):
        drawn.append((images, probabilities, labels, titles))
        return plot(images, probabilities, names, labels, titles, dark=dark)

    monkeypatch.setattr(plots, "plot_predictions", note)
    folder = program.ROOT / "tests" / "data" / "format-1"
    (found,) = evaluate.predict_split(folder)
    names = [x.name for x in findings.draw_images(findings.score_predictions(found), 8)]
    assert names[-2:] == ["mistakes", "explanations"]
    # Each picture is drawn in light and in dark colours.
    mistakes, explanations = drawn[-4], drawn[-2]
    for one, other in zip(mistakes[1:], explanations[1:], strict=True):
        np.testing.assert_array_equal(one, other)
    predicted = found.logits.argmax(axis=1)
    confidence = found.probabilities.max(axis=1)
    wrong = np.flatnonzero(predicted != found.labels)
    chosen = wrong[np.argsort(-confidence[wrong], kind="stable")][:8]
    assert [int(title.rpartition("#")[2]) for title in explanations[3]] == list(chosen)
    maps = []
    for index, shown, plain in zip(chosen, explanations[0], mistakes[0], strict=True):
        np.testing.assert_array_equal(plain, found.images[index])
        one = slice(index, index + 1)
        (heat,) = gradcam.explain_images(found.trained, found.images[one], predicted[one])
        expected = plots.overlay_heat(found.images[index], heat).astype(int)
        assert np.abs(shown - expected).max() <= 1
        maps.append(heat)
    # Another image or another class has another map.
    assert len({heat.tobytes() for heat in maps}) > 1
    others = gradcam.explain_images(found.trained, found.images[chosen], found.labels[chosen])
    assert np.abs(others - np.stack(maps)).max() > 0.1
