"""`--mode=evaluate`: scores a trained model, or an ensemble of several, on a split of a set."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from cifar_jax.config.stored import strip_version
from cifar_jax.data import datasets, foresight, sources
from cifar_jax.data.class_folders import FOLDER
from cifar_jax.errors import UserError
from cifar_jax.evaluation import scores, trained
from cifar_jax.evaluation.calibration import measure_calibration
from cifar_jax.evaluation.model import Trained, combine
from cifar_jax.runs import weights
from cifar_jax.text import say_every_minute


class Predictions(NamedTuple):
    """The logits of a trained model for every image of a split.

    Attributes:
      trained: the model.
      images: uint8 [images, height, width, channels].
      labels: int [images].
      logits: float32 [images, classes], before they are divided by the model's temperature; float64
        for an ensemble.
      name: what tells the model from those beside it: its run, its seed, or both.
      origin: where each image is in the set, as `datasets.Split` has it.
    """

    trained: Trained
    images: np.ndarray
    labels: np.ndarray
    logits: np.ndarray
    name: str = ""
    origin: Mapping[str, np.ndarray] = {}

    @property
    def probabilities(self) -> np.ndarray:
        """The class probabilities, float64 [images, classes]."""
        return self.trained.probabilities(self.logits)

    def score(self) -> scores.Scores:
        """Returns the scores of the probabilities."""
        return scores.score(self.trained.scale(self.logits), self.labels)


@say_every_minute("evaluating")
def evaluate_model(
    workdir: Path | Sequence[Path], split: str = "test", **options: Any
) -> scores.Scores:
    """Scores a trained model on a split; prints the scores and returns them.

    If several seeds were trained together, it prints the scores of each and their mean, and returns
    the scores over all of them; of an ensemble, it prints the scores of each member and returns
    those of the ensemble.

    Args:
      workdir: as for `predict_split`.
      split: as for `predict_split`.
      **options: as for `predict_split`.
    """
    every = list(predict_split(workdir, split, **options))
    scored, model = [one.score() for one in every], every[-1].trained
    if model.members:
        print(f"{model.describe()}:")
        print(scores.tabulate_scores(split, _columns("model", every), scored))
        apart, any_apart = disagreement([one.logits.argmax(axis=1) for one in every[:-1]])
        print(
            f"two members disagree on {apart:.2%} of the images on average; on {any_apart:.2%} not "
            "all members agree"
        )
        return scored[-1]
    views = scores.format_views(model.config.test_time)
    place = weights.list_runs(workdir)[0]
    print(f"{place}, checkpoint of step {model.step}{views}:", end="\n" if every[1:] else " ")
    if every[1:]:
        print(scores.tabulate_scores(split, _columns("seed", every), scored))
        print(scores.format_means(split, scored))
    else:
        print(scores.format_scores(split, scored[0]))
        print(describe_calibration(every[-1]))
    return scores.pool(scored)


def describe_calibration(found: Predictions) -> str:
    """Returns the line of how well the probabilities fit the accuracy, and their temperature."""
    measured, model = measure_calibration(found.probabilities, found.labels), found.trained
    words = f"calibration error {measured.error:.2%} (adaptive {measured.adaptive_error:.2%})"
    words += f"  Brier score {measured.brier:.4f}"
    return words + (f"  {model.describe_temperature()}" if model.temperature != 1 else "")


def _columns(head: str, every: Sequence[Predictions]) -> dict[str, list[str]]:
    """Returns the columns of a table of models around their scores, by their heads."""
    measured = [measure_calibration(one.probabilities, one.labels) for one in every]
    columns = {
        "calibration error": [f"{one.error:.2%}" for one in measured],
        "Brier score": [f"{one.brier:.4f}" for one in measured],
    }
    if any(one.trained.temperature != 1 for one in every):
        columns["temperature"] = [f"{one.trained.temperature:.3f}" for one in every]
    return {head: [one.name for one in every]} | columns


def disagreement(predicted: Sequence[np.ndarray]) -> tuple[float, float]:
    """Returns how often two models predict different classes, on average, and how often not all
    predict the same class.

    Args:
      predicted: int [images] for each of at least two models.
    """
    pairs = [
        (one != other).mean()
        for place, one in enumerate(predicted)
        for other in predicted[place + 1 :]
    ]
    return float(np.mean(pairs)), float((np.ptp(predicted, axis=0) > 0).mean())


def predict_split(
    workdir: Path | Sequence[Path],
    split: str = "test",
    checkpoint: str = "last",
    dataset_name: str | None = None,
    data_dir: str | None = None,
    batch_size: int | None = None,
    seed: int | None = None,
    ensemble: bool = False,
    stored_code: bool = False,
) -> Iterator[Predictions]:
    """Applies a trained model to a split; yields the predictions of each seed, one by one.

    For an ensemble, the predictions of each member are followed by those of the whole.

    Args:
      workdir: the run's folder; several: an ensemble of their models.
      split: "train", "test" or "validation": what the run used as such; or, in TFDS's notation, a
        split of the set itself.
      checkpoint: "last", "best" or a step.
      dataset_name: another set with the same classes; None: the run's own.
      data_dir: the folder of the data; None: the run's own.
      batch_size: images per step; None: the run's own.
      seed: one of several seeds; None: all of them.
      ensemble: whether the seeds of a run form an ensemble.
      stored_code: as for `trained.load`.

    Raises:
      UserError: the run, the checkpoint or the data cannot be read, or do not fit each other.
    """
    workdirs = weights.list_runs(workdir)
    settings = trained.configure_for_run(workdirs[0])
    models = trained.load_members(workdirs, checkpoint, seed, stored_code)
    whole = None
    if ensemble or len(workdirs) > 1:
        whole = combine(list(models.values()))
    is_folder = (dataset_name or next(iter(models.values())).config.data.name) == FOLDER
    given = data_dir or settings.get("data.path" if is_folder else "data.data_dir")
    images, labels, origin = load_images(models, split, dataset_name, given)
    every = []
    for name, model in models.items():
        logits = model.predict_logits(images, batch_size or settings["eval_batch_size"])
        every.append(logits)
        yield Predictions(model, images, labels, logits, name, origin)
    if whole:
        logits = whole.average_logits(every)
        yield Predictions(whole, images, labels, logits, "ensemble", origin)


def _choice(config: ConfigDict, split: str) -> dict[str, Any]:
    """Returns what decides, by a config, which images its own split consists of."""
    options = datasets.run_options(config)
    if split == "test":
        options |= {"validation_examples": 0, "validation_fold": 0, "label_noise": 0.0}
    is_folder = config.data.name == FOLDER  # whose share for testing the seed chooses too
    if not options["validation_examples"] and not options["label_noise"] and not is_folder:
        options["seed"] = 0  # it chooses nothing
    kept = ("name", "path", "image_size", "channels", "test_fraction")
    return options | {name: config.data[name] for name in kept}


def _load_own(model: Trained, name: str, split: str, given: str | None) -> datasets.Dataset:
    """Loads the splits of a model's run; raises UserError if it has no such split."""
    chosen = _choice(model.config, split)
    options = {x: chosen[x] for x in datasets.run_options(model.config)}
    place = sources.find_place(model.config, name, given, model.image_shape)
    dataset = datasets.load_run_data(name, place, **options)
    if split not in dataset.splits:
        raise UserError(f"the run has no split {split!r}: it has {', '.join(dataset.splits)}")
    return dataset


def load_images(
    models: Mapping[str, Trained], split: str, dataset_name: str | None, given: str | None
) -> datasets.Split:
    """Returns the images and labels of a split on which all of these models can be scored.

    Args:
      models: the models by their names.
      split: as for `predict_split`.
      dataset_name: as for `predict_split`.
      given: the folder of the data; None: that of the first model's config.

    Raises:
      UserError: the split cannot be read, does not fit the models, or is not the same for all.
    """
    configs = {label: model.config for label, model in models.items()}
    label, first = next(iter(models.items()))
    name = dataset_name or first.config.data.name
    foresight.check_split(first.config, name, split, given)
    own_name = strip_version(name) == strip_version(first.config.data.name)
    if own_name and split in ("train", "test", "validation"):
        dataset = _load_own(first, name, split, given)
        for other, config in configs.items():
            if _choice(config, split) == _choice(first.config, split):
                continue
            # Written otherwise, but perhaps the same images.
            folder = given
            if config.data.path != first.config.data.path and given == first.config.data.path:
                folder = config.data.path  # each has its own folder, and --data_dir names no other
            set_name = dataset_name or config.data.name
            read = _load_own(models[other], set_name, split, folder).splits[split]
            if not all(map(np.array_equal, dataset.splits[split].arrays, read.arrays)):
                raise UserError(
                    f"the {split} split of {other} is not that of {label}: choose one that is the "
                    "same for all"
                )
    else:
        place = sources.find_place(first.config, name, given, first.image_shape)
        dataset = datasets.load_dataset(name, place, (split,))
    # TFDS numbers the classes of a set that does not name them, such as cifar10_1.
    unnamed = tuple(map(str, range(len(first.class_names))))
    if dataset.class_names not in (first.class_names, unnamed):
        pairs = enumerate(zip(first.class_names, dataset.class_names, strict=False))
        start = next((n for n, (x, y) in pairs if x != y), 0) // 20 * 20  # twenty that differ
        ours, theirs = (", ".join(x.class_names[start : start + 20]) for x in (first, dataset))
        raise UserError(
            f"{name} has other classes ({theirs}) than the model ({ours}): choose a set with the "
            "same classes in the same order"
        )
    found = dataset.splits[split]
    if (shape := found.images.shape[1:]) != first.image_shape:
        raise UserError(
            f"{name} has images of {shape}, the model takes {first.image_shape}: choose "
            "a set with images of that shape"
        )
    return found
