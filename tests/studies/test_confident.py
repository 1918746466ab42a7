"""Confident learning: against an example by hand, and against loops over all images."""

import numpy as np
import pytest

from cifar_jax.studies import confident


def test_an_example_by_hand():
    probabilities = np.array(
        [
            *([0.9, 0.1, 0.0], [0.8, 0.1, 0.1], [0.1, 0.8, 0.1]),
            *([0.2, 0.7, 0.1], [0.3, 0.6, 0.1], [0.1, 0.1, 0.8]),
        ]
    )
    found = confident.find_suspicious(np.array([0, 0, 0, 1, 1, 2]), probabilities)
    # The thresholds are 0.6, 0.65 and 0.8: the fifth image reaches none.
    assert found.flagged.tolist() == [False, False, True, False, False, False]
    assert found.suggested.tolist() == [1, 1, 1, 0, 0, 0]
    np.testing.assert_allclose(np.exp(found.margin), [9, 8, 1 / 8, 3.5, 2, 8])
    np.testing.assert_allclose(found.joint * 6, [[2, 1, 0], [0, 2, 0], [0, 0, 1]])
    assert found.order.tolist() == [2, 4, 3, 1, 5, 0]


def count_by_loops(labels, probabilities):
    """Returns the flagged images and the joint distribution, one image after another."""
    classes = probabilities.shape[1]
    thresholds = [
        np.mean([row[c] for row, label in zip(probabilities, labels, strict=True) if label == c])
        if c in labels
        else np.inf
        for c in range(classes)
    ]
    flagged, counts = [], np.zeros((classes, classes))
    for row, label in zip(probabilities, labels, strict=True):
        reached = [c for c in range(classes) if row[c] >= thresholds[c]]
        best = max(reached, key=lambda c: row[c]) if reached else None
        flagged.append(best not in (None, label))
        if best is not None:
            counts[label, best] += 1
    for c in range(classes):
        if counts[c].sum() == 0:
            counts[c, c] = 1
        counts[c] *= np.sum(labels == c) / counts[c].sum()
    return flagged, counts / len(labels)


@pytest.mark.parametrize("seed", range(5))
def test_loops_find_the_same(seed):
    random = np.random.default_rng(seed)
    labels = random.choice([0, 1, 3, 4], 200)  # no image has the label 2
    logits = random.normal(size=(200, 5))
    logits[np.arange(200), labels] += 1.5
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    found = confident.find_suspicious(labels, probabilities)
    flagged, joint = count_by_loops(labels, probabilities)
    assert found.flagged.tolist() == flagged
    assert 0 < sum(flagged) < 200
    np.testing.assert_allclose(found.joint, joint, atol=1e-12)
    np.testing.assert_allclose(found.joint.sum(axis=1) * 200, np.bincount(labels, minlength=5))
    others = np.where(np.eye(5, dtype=bool)[labels], -np.inf, logits)
    margins = logits[np.arange(200), labels] - others.max(axis=1)
    np.testing.assert_array_equal(found.order, np.argsort(margins))


def test_a_probability_of_nothing_has_the_least_margin():
    found = confident.find_suspicious(np.array([0, 1]), np.array([[0.1, 0.9], [1.0, 0.0]]))
    assert found.order.tolist() == [1, 0]
    assert np.isfinite(found.margin).all()
