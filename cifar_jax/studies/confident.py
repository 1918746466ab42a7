"""Confident learning: which labels of a set are probably wrong.

Northcutt, Jiang and Chuang, "Confident Learning: Estimating Uncertainty in Dataset Labels", Journal
of Artificial Intelligence Research 70, 2021 (https://arxiv.org/abs/1911.00068).
"""

from typing import NamedTuple

import numpy as np


class Suspicions(NamedTuple):
    """What probabilities say of labels.

    Attributes:
      flagged: bool [images], whether the image is counted as one of another class than its label.
      suggested: int [images], the most probable class other than the label.
      margin: float64 [images], the logarithm of the label's probability less that of the suggested
        class's. For a single model it is the difference of their logits.
      joint: float64 [classes, classes], the estimated share of the images that have the label of
        the row and belong to the class of the column; its sum is 1.
      order: int [images], the images from the most to the least suspicious one, by their margins.
    """

    flagged: np.ndarray
    suggested: np.ndarray
    margin: np.ndarray
    joint: np.ndarray
    order: np.ndarray


def find_suspicious(labels: np.ndarray, probabilities: np.ndarray) -> Suspicions:
    """Finds the labels that contradict the probabilities of models that were not trained on them.

    The threshold of a class is the mean of its probability over the images that have its label. An
    image counts as one of the most probable class among those that reach their thresholds.

    Args:
      labels: int [images].
      probabilities: float [images, classes].
    """
    images, classes = probabilities.shape
    rows = np.arange(images)
    given = probabilities[rows, labels]
    sizes = np.bincount(labels, minlength=classes)
    with np.errstate(invalid="ignore", divide="ignore"):
        thresholds = np.bincount(labels, given, classes) / sizes
    # No image counts as one of a class without labels: a comparison with nan is false.
    reached = np.where(probabilities >= thresholds, probabilities, -1.0)
    counted, sure = reached.argmax(axis=1), reached.max(axis=1) >= 0
    counts = np.zeros((classes, classes))
    np.add.at(counts, (labels[sure], counted[sure]), 1)
    empty = counts.sum(axis=1) == 0
    counts[empty, empty] = 1
    joint = counts / counts.sum(axis=1, keepdims=True) * sizes[:, None] / images
    others = probabilities.astype(np.float64)
    others[rows, labels] = -1
    suggested = others.argmax(axis=1)
    smallest = np.finfo(np.float64).tiny
    chosen, best = (np.log(np.maximum(x, smallest)) for x in (given, others[rows, suggested]))
    margin = chosen - best
    order = np.argsort(margin, kind="stable")
    return Suspicions(sure & (counted != labels), suggested, margin, joint, order)
