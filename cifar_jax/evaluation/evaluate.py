"""`--mode=evaluate`: scores a trained model on a split of a data set."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cifar_jax.data import datasets, sources
from cifar_jax.data.class_folders import FOLDER
from cifar_jax.errors import UserError
from cifar_jax.evaluation import scores, trained
from cifar_jax.evaluation.trained import Trained


class Predictions(NamedTuple):
    """The logits of a trained model for every image of a split.

    Attributes:
      trained: the model.
      images: uint8 [images, height, width, channels].
      labels: int [images].
      logits: float32 [images, classes].
    """

    trained: Trained
    images: np.ndarray
    labels: np.ndarray
    logits: np.ndarray


def evaluate_model(workdir: Path, split: str = "test", **options: Any) -> scores.Scores:
    """Scores a trained model on a split; prints the scores and returns them.

    If several seeds were trained together, it prints the scores of each and their mean, and returns
    the scores over all of them.

    Args:
      workdir: the run's folder.
      split: as for `predict_split`.
      **options: as for `predict_split`.
    """
    seeds, every, which = [], [], ""
    for found in predict_split(workdir, split, **options):
        seeds.append(found.trained.seed)
        every.append(scores.score(found.logits, found.labels))
        which = f"step {found.trained.step}{scores.format_views(found.trained.config.test_time)}"
    gap = "\n" if len(seeds) > 1 else " "
    words = scores.format_seed_scores(split, seeds, every)
    print(f"{workdir}, checkpoint of {which}:{gap}{words}")
    return scores.pool(every)


def predict_split(
    workdir: Path,
    split: str = "test",
    checkpoint: str = "last",
    dataset_name: str | None = None,
    data_dir: str | None = None,
    batch_size: int | None = None,
    seed: int | None = None,
    stored_code: bool = False,
) -> Iterator[Predictions]:
    """Applies a trained model to a split; yields the predictions of each seed, one by one.

    Args:
      workdir: the run's folder.
      split: "train", "test" or "validation": what the run used as such; or, in TFDS's notation, a
        split of the set itself.
      checkpoint: "last", "best" or a step.
      dataset_name: another set with the same classes; None: the run's own.
      data_dir: the folder of the data; None: the run's own.
      batch_size: images per step; None: the run's own.
      seed: one of several seeds; None: all of them.
      stored_code: as for `trained.load`.

    Raises:
      UserError: the run, the checkpoint or the data cannot be read, or do not fit each other.
    """
    settings = trained.configure_for_run(workdir)
    models = trained.load_seeds(workdir, checkpoint, seed, stored_code)
    first, config = models[0], models[0].config
    name = dataset_name or config.data.name
    field = "data.path" if name == FOLDER else "data.data_dir"
    given = data_dir or settings.get(field)
    place = sources.find_place(config, name, given, first.image_shape)
    if name == config.data.name and split in ("train", "test", "validation"):
        options = datasets.run_options(config)
        if split == "test":
            options["validation_examples"] = 0
        dataset = datasets.load_run_data(name, place, **options)
        if split not in dataset.splits:
            raise UserError(f"{workdir} has no split {split!r}: it has {', '.join(dataset.splits)}")
    else:
        dataset = datasets.load_dataset(name, place, (split,))
    # TFDS numbers the classes of a set that does not name them, such as cifar10_1.
    unnamed = tuple(map(str, range(len(first.class_names))))
    if dataset.class_names not in (first.class_names, unnamed):
        ours, theirs = (", ".join(x.class_names[:20]) for x in (first, dataset))
        raise UserError(
            f"{name} has other classes ({theirs}) than the model of {workdir} ({ours}): choose a "
            "set with the same classes in the same order"
        )
    images, labels = dataset.splits[split]
    if images.shape[1:] != first.image_shape:
        raise UserError(
            f"{name} has images of {images.shape[1:]}, the model takes {first.image_shape}: choose "
            "a set with images of that shape"
        )
    for model in models:
        logits = model.predict_logits(images, batch_size or settings["eval_batch_size"])
        yield Predictions(model, images, labels, logits)
