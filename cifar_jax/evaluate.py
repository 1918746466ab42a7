"""`--mode=evaluate`: a trained model on a split of a data set."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cifar_jax import datasets, scores
from cifar_jax import trained as trained_lib
from cifar_jax.errors import UserError


class Answers(NamedTuple):
    """What a trained model says to every image of a split.

    Attributes:
      trained: the model.
      images: uint8 [images, height, width, channels].
      labels: int [images].
      logits: float32 [images, classes].
    """

    trained: trained_lib.Trained
    images: np.ndarray
    labels: np.ndarray
    logits: np.ndarray


def evaluate(workdir: Path, split: str = "test", **options: Any) -> scores.Scores:
    """Scores a trained model on a split; prints the scores and returns them.

    Args:
      workdir: of the run.
      split: as for `answer`.
      **options: as for `answer`.
    """
    answers = answer(workdir, split, **options)
    result = scores.score(answers.logits, answers.labels)
    step = answers.trained.step
    print(f"{workdir}, checkpoint of step {step}: {scores.describe(split, result)}")
    return result


def answer(
    workdir: Path,
    split: str = "test",
    checkpoint: str = "last",
    dataset_name: str | None = None,
    data_dir: str | None = None,
    batch_size: int | None = None,
) -> Answers:
    """Applies a trained model to a split.

    Args:
      workdir: of the run.
      split: "train", "test", "validation" (the one that the run carved) or the set's own name.
      checkpoint: "last", "best" or a step.
      dataset_name: another set with the same classes; None: the run's own.
      data_dir: where the data lie; None: as for the run.
      batch_size: images of a step; None: the run's own.

    Raises:
      UserError: the run, the checkpoint or the data cannot be had, or do not fit together.
    """
    settings = trained_lib.configure(workdir)
    run = trained_lib.load(workdir, checkpoint)
    config = run.config
    name = dataset_name or config.data.name
    carved = config.data.validation_examples and name == config.data.name
    own = split in ("train", "validation") and carved
    wanted = ("train", "test") if own else (split,)
    dataset = datasets.load(name, data_dir or settings.get("data.data_dir"), wanted)
    if own:
        dataset = datasets.carve_validation(dataset, config.data.validation_examples, config.seed)
    # TFDS gives numbers for names to a set that does not name its classes, such as cifar10_1.
    unnamed = tuple(map(str, range(len(run.class_names))))
    if dataset.class_names not in (run.class_names, unnamed):
        raise UserError(
            f"{name} has other classes ({len(dataset.class_names)}) than the model of {workdir} "
            f"({len(run.class_names)}): it can only be scored on a set with the same classes"
        )
    images, labels = dataset.splits[split]
    if images.shape[1:] != run.image_shape:
        raise UserError(
            f"{name} has images of {images.shape[1:]}, the model takes {run.image_shape}"
        )
    logits = run.predict_logits(images, batch_size or settings["eval_batch_size"])
    return Answers(run, images, labels, logits)
