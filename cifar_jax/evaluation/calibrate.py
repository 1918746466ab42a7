"""`--mode=calibrate`: fits the temperature of a trained model on images it was not trained on."""

from pathlib import Path
from typing import Any

from cifar_jax.config import stored
from cifar_jax.data import foresight, sources
from cifar_jax.errors import UserError
from cifar_jax.evaluation import calibration, evaluate
from cifar_jax.runs import weights
from cifar_jax.text import format_table


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
      UserError: the run was trained on the split or held out no validation images, or it is a file
        of weights; or as for `evaluate.predict_split`.
    """
    if split.partition("[")[0] == "train":
        raise UserError(
            "--split=train was trained on: calibrate on images that were not, --split=validation"
        )
    config = stored.from_json(weights.read_config(workdir))
    if weights.find_file(workdir):
        raise UserError(f"{workdir} is a file of weights: calibrate the run, then export it again")
    given = options.get("data_dir")
    known = foresight.foresee(config, given).sizes  # {} for a set that is still to be prepared
    if not known:
        known = sources.open_source(config.data.name, sources.find_place(config, given=given)).sizes
    own = "validation" in known
    if split == "validation" and not own and not config.data.validation_examples:
        raise UserError(
            f"{workdir} held out no images to calibrate on: train with "
            "--config.data.validation_examples=N, or use the test images with --split=test, after "
            "which the loss and the calibration on them are no longer those of unseen images"
        )
    every = list(evaluate.predict_split(workdir, split, **options))
    temperatures = [calibration.fit_temperature(one.logits, one.labels) for one in every]
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
    if split == "test":
        print("fitted on the test split: scores on it are no longer those of unseen images")
    return temperatures
