"""How well a model's confidence fits its accuracy, and the temperature that corrects it.

`--mode=calibrate` fits the temperature and writes it beside the checkpoints; whatever loads the
checkpoint later uses it.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import special

from cifar_jax import files
from cifar_jax.errors import UserError
from cifar_jax.runs import manifest

FILE = "calibration.json"
NUM_BINS = 15
_LIMIT = math.log(100)  # of the logarithm of a temperature


class Calibration(NamedTuple):
    """How often predictions of some confidence are correct.

    Attributes:
      confidence: float64 [bins], the mean probability of the predicted classes in each bin; 0 in
        an empty bin.
      accuracy: float64 [bins], the share of correct predictions in each bin; 0 in an empty bin.
      num_predictions: int [bins], how many predictions each bin has.
      error: the expected calibration error: the mean of |accuracy - confidence| over the bins,
        weighted by `num_predictions` (Guo et al. 2017, https://arxiv.org/abs/1706.04599).
      adaptive_error: the same with bins that have, as nearly as possible, the same number of
        predictions each (Nguyen and O'Connor 2015, https://arxiv.org/abs/1508.05154).
      brier: the Brier score, from 0 to 2: the mean over the images of the squared distance between
        the probabilities and the true class, summed over the classes (Brier 1950).
    """

    confidence: np.ndarray
    accuracy: np.ndarray
    num_predictions: np.ndarray
    error: float
    adaptive_error: float
    brier: float


def measure_calibration(
    probabilities: np.ndarray, labels: np.ndarray, num_bins: int = NUM_BINS
) -> Calibration:
    """Compares the confidence of predictions with how often they are correct.

    Args:
      probabilities: float [images, classes]; the most probable class is the prediction.
      labels: int [images], the true classes.
      num_bins: the number of bins; those of `error` are all of the same width and closed at their
        upper ends.
    """
    confidence = probabilities.max(axis=1)
    correct = probabilities.argmax(axis=1) == labels
    place = np.searchsorted(np.linspace(0, 1, num_bins + 1)[1:-1], confidence)
    count = np.bincount(place, minlength=num_bins)
    sums = [np.bincount(place, weights, num_bins) for weights in (confidence, correct)]
    error = np.abs(sums[0] - sums[1]).sum() / len(labels)
    order = np.argsort(confidence, kind="stable")
    gaps = np.array_split((correct - confidence)[order], num_bins)
    adaptive = sum(abs(gap.sum()) for gap in gaps) / len(labels)
    targets = np.eye(probabilities.shape[1])[labels]
    brier = ((probabilities - targets) ** 2).sum(axis=1).mean()
    confidences, accuracies = (part / np.maximum(count, 1) for part in sums)
    errors = float(error), float(adaptive), float(brier)
    return Calibration(confidences, accuracies, count, *errors)


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """Returns the temperature, from 0.01 to 100, that gives the least cross-entropy.

    Guo et al., "On Calibration of Modern Neural Networks", 2017. The cross-entropy is convex in the
    inverse of the temperature. If all images are classified right, it falls with the temperature
    down to the bound.

    Args:
      logits: float [images, classes].
      labels: int [images], the true classes.
    """
    logits = logits.astype(np.float64)
    if (logits.argmax(axis=1) == labels).all():
        return math.exp(-_LIMIT)  # the loss is rounded to 0 well before

    def loss(log_temperature: float) -> float:
        log_probabilities = special.log_softmax(logits / math.exp(log_temperature), axis=1)
        return -float(log_probabilities[np.arange(len(labels)), labels].mean())

    from scipy import optimize  # imported late, because it takes an eighth of a second

    found = optimize.minimize_scalar(
        loss, bounds=(-_LIMIT, _LIMIT), method="bounded", options={"xatol": 1e-8}
    )
    return math.exp(found.x)


def is_inside(temperature: float) -> bool:
    """Whether a temperature of `fit_temperature` is not at a bound."""
    return abs(math.log(temperature)) < _LIMIT - 1e-3


def save_temperatures(
    workdir: Path, step: int, temperatures: Sequence[float], split: str, num_images: int
) -> None:
    """Writes the temperatures of a checkpoint into the run's folder, whole or not at all.

    Args:
      workdir: the run's folder.
      step: the checkpoint's step.
      temperatures: of each seed, in their order.
      split: the split that they were fitted on.
      num_images: the number of its images.
    """
    path = workdir / FILE
    values = files.read_json(path, missing={})
    digest = manifest.read_digest(workdir / "checkpoints" / str(step))
    entry = {"step": step, "split": split, "num_images": num_images}
    files.write_json(path, values | {digest: entry | {"temperatures": list(temperatures)}})


def read_temperatures(workdir: Path, step: int, num_seeds: int) -> list[tuple[float, str]]:
    """Returns (temperature, split that it was fitted on) for each seed of a checkpoint.

    They are (1, "") if the checkpoint is not calibrated. The temperatures of another checkpoint of
    the same step, such as one of a new run in the same folder, do not count.

    Raises:
      UserError: the file is damaged.
    """
    path = workdir / FILE
    plain = [(1.0, "")] * num_seeds
    if not (values := files.read_json(path, missing={})):
        return plain
    entry: Any = values.get(manifest.read_digest(workdir / "checkpoints" / str(step)))
    if entry is None:
        return plain
    try:
        found = [(float(value), str(entry["split"])) for value in entry["temperatures"]]
        if len(found) == num_seeds and all(0 < value < math.inf for value, _ in found):
            return found
    except (TypeError, ValueError, KeyError):
        pass
    raise UserError(f"{path} is damaged: delete it, and calibrate again with --mode=calibrate")
