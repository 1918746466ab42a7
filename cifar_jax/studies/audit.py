"""`--mode=audit`: finds training images whose labels are probably wrong.

Each fold is an ordinary run that holds out one part of the training images; together the folds give
each image probabilities by a model that has not seen it.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict
from scipy import special

from cifar_jax import files
from cifar_jax.data import datasets
from cifar_jax.data.sampling import partition, replace_labels
from cifar_jax.errors import UserError
from cifar_jax.evaluation import evaluate
from cifar_jax.runs.workdir import lock
from cifar_jax.studies import audit_page, confident, training
from cifar_jax.text import printable

TABLE = "labels.csv"


def audit_labels(
    config: ConfigDict, workdir: Path, num_folds: int = 5, config_text: str | None = None
) -> int:
    """Trains the folds, ranks the labels, and writes labels.csv and audit.html.

    Args:
      config: a checked config; its own validation split is not used.
      workdir: the folder of the audit; the folds are its folders fold_0, fold_1 and so on.
      num_folds: how many; each image is held out in one of them.
      config_text: as for `loop.train_model`.

    Returns:
      The exit code.

    Raises:
      UserError: the folds do not fit the data, or as for `loop.train_model`.
    """
    training.check_folder(workdir, "audit")
    whole = datasets.load_for(config, validation_examples=0, label_noise=0)
    images, clean, origin = whole.splits["train"]
    total, classes = len(clean), len(whole.class_names)
    folds = list(_make_folds(config, num_folds, total))
    for number, fold in enumerate(folds):
        folder = workdir / f"fold_{number}"
        print(f"fold {number + 1} of {num_folds}, in {printable(str(folder))}", flush=True)
        with lock(folder):
            if code := training.train_in(fold, folder, config_text):
                return code
    seed = datasets.run_options(config)["seed"]
    labels = replace_labels(clean, classes, config.data.label_noise, seed)
    probabilities = np.full((total, classes), np.nan)
    for number, fold in enumerate(folds):
        data = fold.data
        chosen, _ = partition(total, data.validation_examples, data.seed, data.validation_fold)
        probabilities[chosen] = _predict(workdir / f"fold_{number}", labels[chosen])
    found = confident.find_suspicious(labels, probabilities)
    audit = audit_page.Audit(config, whole.class_names, images, labels, clean, probabilities, found)
    files.write_csv(workdir / TABLE, _rows(audit, origin))
    path = audit_page.write_audit(audit, workdir, num_folds)
    print(f"{printable(str(path))}: {audit_page.describe_audit(audit)}; all images are in {TABLE}")
    return 0


def part_size(total: int, num_folds: int) -> int:
    """Returns how many images a fold holds out; the last one may have fewer.

    Raises:
      UserError: a fold would have none.
    """
    if not 2 <= num_folds <= total:
        raise UserError(f"--folds is {num_folds}: give a number from 2 to {total} (images)")
    size = -(-total // num_folds)
    if (parts := -(-total // size)) < num_folds:
        raise UserError(
            f"--folds is {num_folds}, but parts of {size} images leave none of {total} for the last"
            f" fold: give --folds={parts}"
        )
    return size


def _make_folds(config: ConfigDict, num_folds: int, total: int) -> Iterator[ConfigDict]:
    fields = {"data.validation_examples": part_size(total, num_folds), "log.report": False}
    fields["data.seed"] = datasets.run_options(config)["seed"]
    for number in range(num_folds):
        yield training.change_config(config, fields | {"data.validation_fold": number})


def _predict(folder: Path, labels: np.ndarray) -> np.ndarray:
    """Returns a fold's probabilities of its held-out images, the mean over its seeds."""
    every = []
    for predictions in evaluate.predict_split(folder, "validation"):
        if not np.array_equal(predictions.labels, labels):
            raise UserError(f"{folder} was trained on other data: choose another --workdir")
        every.append(special.softmax(predictions.logits.astype(np.float64), axis=1))
    return np.mean(every, axis=0)


def _rows(audit: audit_page.Audit, origin: Mapping[str, np.ndarray]) -> Iterator[list[object]]:
    """Yields the rows of labels.csv: the header, then the images, the most suspicious one first."""
    names, found = audit.class_names, audit.found
    noisy = bool(audit.config.data.label_noise)
    head = ["rank", "index", *origin, "label", "suggested", "flagged", "margin"]
    yield [*head, "probability of label", "probability of suggested", *["replaced"] * noisy]
    for rank, index in enumerate(found.order, 1):
        label, suggested = audit.labels[index], found.suggested[index]
        shares = (audit.probabilities[index, number] for number in (label, suggested))
        yield [
            *(rank, index, *(column[index] for column in origin.values())),
            *(names[label], names[suggested], int(found.flagged[index])),
            *(f"{number:.6g}" for number in (found.margin[index], *shares)),
            *[int(label != audit.clean[index])] * noisy,
        ]
