"""`--mode=evaluate --corruptions`: scores a trained model on corrupted test images."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from cifar_jax.config.stored import strip_version
from cifar_jax.data import corruptions, datasets, sources, splits
from cifar_jax.evaluation import evaluate
from cifar_jax.evaluation.model import Trained
from cifar_jax.text import format_table

# The sets of TFDS that hold CIFAR-10's test images as their authors corrupted them, and new ones.
_CORRUPTED, _NEW = "cifar10_corrupted", "cifar10_1"
# Those of CIFAR-10.
_SHAPE = (32, 32, 3)
_SIZES = {x: splits.SplitSize(n, [n]) for x, n in (("train", 50_000), ("test", 10_000))}


def evaluate_corruptions(
    workdir: Path | Sequence[Path], split: str = "test", **options: Any
) -> dict[str, list[float]]:
    """Scores a trained model under every corruption at every strength; prints the table.

    Images of CIFAR-10's test split come from TFDS's set cifar10_corrupted where that is prepared
    and the model takes them at their size; all others are computed. With several seeds, the
    accuracies are their means.

    Args:
      workdir: as for `evaluate.predict_split`.
      split: as for `evaluate.predict_split`.
      **options: as for `evaluate.predict_split`.

    Returns:
      The accuracy at each of the five strengths, by the corruptions' names.

    Raises:
      UserError: as for `evaluate.predict_split`; or images cannot be corrupted.
    """
    every = list(evaluate.predict_split(workdir, split, **options))
    last = every[-1]
    models = [last.trained] if last.trained.members else [one.trained for one in every]
    config = models[0].config
    place = options.get("data_dir") or config.data.data_dir
    name = strip_version(options.get("dataset_name") or config.data.name)
    own = split == "test" and name == "cifar10"
    official = own and _has_official_test(config) and last.images.shape[1:] == _SHAPE
    size = options.get("batch_size") or config.eval_batch_size
    clean = np.mean([one.score().accuracy for one in every[-len(models) :]])
    print(f"{models[0].describe()}: {split} accuracy {clean:.2%} without corruption")
    found: dict[str, list[float]] = {}
    num_loaded = 0
    for name in corruptions.CORRUPTIONS:
        found[name] = []
        for strength in corruptions.STRENGTHS:
            prepared = f"{_CORRUPTED}/{name}_{strength}"
            loaded = _load_prepared(prepared, place) if official else None
            num_loaded += loaded is not None
            part = loaded or datasets.Split(
                corruptions.corrupt_images(last.images, name, strength), last.labels
            )
            found[name].append(_mean_accuracy(models, part, size))
    print(format_table(list(_rows(found)), right=range(1, 7)))
    print(f"{num_loaded} of {len(found) * 5} sets of images are from {_CORRUPTED}, others computed")
    if own and (new := _load_prepared(_NEW, place, config)):
        print(f"{_NEW}: accuracy {_mean_accuracy(models, new, size):.2%}")
    return found


def _has_official_test(config: ConfigDict) -> bool:
    """Whether the test split of a run is all of CIFAR-10's own, or the run is on another set."""
    data = config.data
    if strip_version(data.name) != "cifar10":
        return True
    given = data.name, _SIZES, data.train_split, data.test_split
    chosen = splits.choose_splits(*given, use_validation=False).get("test")
    whole = [splits.Part("test", 0, 10_000)]
    return chosen is not None and splits.find_parts(data.name, chosen, _SIZES) == whole


def _load_prepared(
    name: str, place: str | None, config: ConfigDict | None = None
) -> datasets.Split | None:
    """Returns the test split of a set if it is prepared, its images as the config says."""
    if sources.find_sizes(name, place) is None:
        return None
    source = sources.find_place(config, name, place) if config else place
    return datasets.load_dataset(name, source, ("test",)).splits["test"]


def _mean_accuracy(models: Sequence[Trained], split: datasets.Split, size: int) -> float:
    every = [
        model.predict_logits(split.images, size).argmax(axis=1) == split.labels for model in models
    ]
    return float(np.mean(every))


def _rows(found: Mapping[str, Sequence[float]]) -> Iterator[list[str]]:
    """Yields the rows of the table, the mean of all corruptions last."""
    yield ["accuracy (%) by strength", *map(str, corruptions.STRENGTHS), "mean"]
    means = np.mean(list(found.values()), axis=0)
    for name, shares in [*found.items(), ("mean", means)]:
        yield [name, *(f"{100 * share:.2f}" for share in (*shares, np.mean(shares)))]
