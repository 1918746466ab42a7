"""`--mode=evaluate`: a trained model on a split of a data set."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cifar_jax.data import datasets
from cifar_jax.errors import UserError
from cifar_jax.evaluation import scores
from cifar_jax.evaluation import trained as trained_lib


class Answers(NamedTuple):
    """The answers of a trained model to every image of a split.

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

    With several seeds that were trained together it prints the scores of each and their mean, and
    returns the scores over all of them.

    Args:
      workdir: of the run.
      split: as for `answer_seeds`.
      **options: as for `answer_seeds`.
    """
    seeds, every, step = [], [], 0
    for answers in answer_seeds(workdir, split, **options):
        seeds.append(answers.trained.seed)
        every.append(scores.score(answers.logits, answers.labels))
        step = answers.trained.step
    gap = "\n" if len(seeds) > 1 else " "
    words = scores.describe_seeds(split, seeds, every)
    print(f"{workdir}, checkpoint of step {step}:{gap}{words}")
    return scores.pool(every)


def answer(workdir: Path, *arguments: Any, **options: Any) -> Answers:
    """Applies a trained model (with several seeds, the first or the given one) to a split.

    Arguments and errors are those of `answer_seeds`.
    """
    return next(answer_seeds(workdir, *arguments, **options))


def answer_seeds(
    workdir: Path,
    split: str = "test",
    checkpoint: str = "last",
    dataset_name: str | None = None,
    data_dir: str | None = None,
    batch_size: int | None = None,
    seed: int | None = None,
) -> Iterator[Answers]:
    """Applies a trained model to a split; yields the answers of each seed that was trained.

    Args:
      workdir: of the run.
      split: "train", "test", "validation" (the one that the run held out) or the set's own name.
      checkpoint: "last", "best" or a step.
      dataset_name: another set with the same classes; None: the run's own.
      data_dir: the folder of the data; None: the run's own.
      batch_size: images per step; None: the run's own.
      seed: one of several seeds; None: all of them.

    Raises:
      UserError: the run, the checkpoint or the data cannot be had, or do not fit together.
    """
    settings = trained_lib.configure(workdir)
    runs = trained_lib.load_seeds(workdir, checkpoint, seed)
    run, config = runs[0], runs[0].config
    name = dataset_name or config.data.name
    carved = config.data.validation_examples and name == config.data.name
    own = split in ("train", "validation") and carved
    wanted = ("train", "test") if own else (split,)
    dataset = datasets.load(name, data_dir or settings.get("data.data_dir"), wanted)
    if own:
        dataset = datasets.carve_validation(dataset, config.data.validation_examples, config.seed)
    # TFDS numbers the classes of a set that does not name them, such as cifar10_1.
    unnamed = tuple(map(str, range(len(run.class_names))))
    if dataset.class_names not in (run.class_names, unnamed):
        ours, theirs = (", ".join(x.class_names[:20]) for x in (run, dataset))
        raise UserError(
            f"{name} has other classes ({theirs}) than the model of {workdir} ({ours}): it can only "
            "be scored on a set with the same classes in the same order"
        )
    images, labels = dataset.splits[split]
    if images.shape[1:] != run.image_shape:
        raise UserError(
            f"{name} has images of {images.shape[1:]}, the model takes {run.image_shape}"
        )
    size = batch_size or settings["eval_batch_size"]
    for run in runs:
        yield Answers(run, images, labels, run.predict_logits(images, size))
