"""`--mode=calibrate`: fits the temperature of a trained model on images it was not trained on."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from cifar_jax.config import stored
from cifar_jax.data import foresight, sources
from cifar_jax.data.splits import SplitSize, count_common, find_parts
from cifar_jax.errors import UserError
from cifar_jax.evaluation import calibration, evaluate
from cifar_jax.runs import weights
from cifar_jax.text import format_table

# With fewer images, chance decides much of the temperature.
_FEW = 100

_log = logging.getLogger(__name__)


def calibrate_model(workdir: Path, split: str = "validation", **options: Any) -> list[float]:
    """Fits a temperature for each seed and writes them beside the checkpoint; prints what changes.

    The classes that are predicted stay the same.

    Args:
      workdir: the run's folder.
      split: of images that the model was not trained on; as for `evaluate.predict_split`.
      **options: "checkpoint", "data_dir" and "batch_size", as for `evaluate.predict_split`.

    Returns:
      The temperatures.

    Raises:
      UserError: the run was trained on images of the split or held out no validation images, or it
        is a file of weights; no temperature is best; or as for `evaluate.predict_split`.
    """
    config = stored.from_json(weights.read_config(workdir))
    if weights.find_file(workdir):
        raise UserError(f"{workdir} is a file of weights: calibrate the run, then export it again")
    given = options.get("data_dir")
    sizes = foresight.foresee(config, given).sizes  # {} for a set that is still to be prepared
    if not sizes:
        sizes = sources.open_source(config.data.name, sources.find_place(config, given=given)).sizes
    on_test = _check_split(workdir, config, split, sizes)
    every = list(evaluate.predict_split(workdir, split, **options))
    temperatures = _fit_temperatures(every, split)
    rows = [("seed", "temperature", "", "loss", "calibration error", "adaptive", "Brier score")]
    for one, temperature in zip(every, temperatures, strict=True):
        for when, value in (("before", 1.0), ("after", temperature)):
            given = one._replace(trained=one.trained._replace(temperature=value))
            measured = calibration.measure_calibration(given.probabilities, one.labels)
            shares = f"{measured.error:.2%}", f"{measured.adaptive_error:.2%}"
            numbers = f"{given.score().loss:.4f}", *shares, f"{measured.brier:.4f}"
            rows.append((one.name, f"{value:.3f}", when, *numbers))
    step, count = every[0].trained.step, len(every[0].labels)
    calibration.save_temperatures(workdir, step, temperatures, split, count)
    print(f"{workdir}, checkpoint of step {step}, {count} images of the {split} split:")
    print(format_table(rows, right=(1, 3, 4, 5, 6)))
    print(f"evaluate, report, predict and export now use {workdir / calibration.FILE}")
    if on_test:
        print("fitted on the test split: scores on it are no longer those of unseen images")
    return temperatures


def _check_split(
    workdir: Path, config: ConfigDict, split: str, sizes: Mapping[str, SplitSize]
) -> bool:
    """Returns whether a split has test images of the run.

    Raises:
      UserError: the run was trained on some of its images; or there is no such split.
    """
    data = config.data
    if split == "validation":
        if split not in sizes and not data.validation_examples:
            raise UserError(
                f"{workdir} held out no images to calibrate on: train with "
                "--config.data.validation_examples=N, or use the test images with --split=test, "
                "after which the loss and the calibration on them are no longer those of unseen "
                "images"
            )
        return False
    if split == "test":
        return True
    parts = find_parts(data.name, split, sizes)
    if split == "train" or count_common(parts, find_parts(data.name, data.train_split, sizes)):
        raise UserError(
            f"--split={split} has images that {workdir} was trained on: calibrate on images that "
            "were not, --split=validation"
        )
    test = data.test_split or ("test" if "test" in sizes else None)
    return test is not None and count_common(parts, find_parts(data.name, test, sizes)) > 0


def _fit_temperatures(every: Sequence[evaluate.Predictions], split: str) -> list[float]:
    """Returns the temperature of each seed; warns of those that few images decide.

    Raises:
      UserError: the cross-entropy falls as far as a temperature can go.
    """
    count = len(every[0].labels)
    if count < _FEW:
        _log.warning(
            "the %s split has only %d images: a temperature fitted on fewer than %d can do harm; "
            "hold out more (data.validation_examples)",
            split,
            count,
            _FEW,
        )
    temperatures = []
    for one in every:
        temperature = calibration.fit_temperature(one.logits, one.labels)
        if not calibration.is_inside(temperature):
            right = int((one.logits.argmax(axis=1) == one.labels).sum())
            raise UserError(
                f"no temperature is best for seed {one.name}, which has {right} of {count} images "
                f"of the {split} split right: the loss falls on to the bound, {temperature:.3g}; "
                "calibrate on other or more images (data.validation_examples)"
            )
        temperatures.append(temperature)
    return temperatures
