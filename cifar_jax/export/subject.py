"""The model that is exported, and its own answers, which every exported file has to give."""

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cifar_jax import files
from cifar_jax.config import stored
from cifar_jax.errors import UserError
from cifar_jax.evaluation import evaluate, scores, trained
from cifar_jax.evaluation.trained import Trained
from cifar_jax.runs import provenance, sources, weights
from cifar_jax.runs import workdir as workdir_lib

# Two full batches are timed: a last one that is filled up would count for less than it takes.
_NUM_RANDOM, _NUM_TIMED, _BATCH_TIMED = 1000, 1000, 500

_log = logging.getLogger(__name__)

# uint8 images [images, height, width, channels] -> logits and probabilities [images, classes]
Answer = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


class Subject(NamedTuple):
    """A model with its answers to the images that exported files are checked on.

    Attributes:
      name: what the model is called.
      trained: the model.
      about: the description that goes with every file, JSON values: "config", "data", "step",
        "seed", "temperature" and "fitted_on" (the split, "" if there is none), "origin" (commit,
        command and versions of the training) and "test", its scores on the test split, if the
        images are that.
      images: uint8 [images, height, width, channels].
      labels: int [images]; None for random images.
      logits: float32 [images, classes].
      probabilities: float64 [images, classes].
      speed: of the model, in images per second.
    """

    name: str
    trained: Trained
    about: dict[str, Any]
    images: np.ndarray
    labels: np.ndarray | None
    logits: np.ndarray
    probabilities: np.ndarray
    speed: float


class Format(NamedTuple):
    """A kind of file.

    Attributes:
      file: the file's name.
      libraries: the modules of the extra `export` that it needs.
      adapt: returns the subject as this format can hold it.
      write: writes the file.
      open: returns the function that the file holds.
      finish: writes what lies beside the file, once that is checked.
    """

    file: str
    libraries: tuple[str, ...]
    adapt: Callable[[Subject], Subject]
    write: Callable[[Subject, Path], None]
    open: Callable[[Path], Answer]
    finish: Callable[[Subject, Path], None]


def read_subject(
    workdir: Path,
    checkpoint: str = "last",
    seed: int | None = None,
    data_dir: str | None = None,
    batch_size: int | None = None,
    stored_code: bool = False,
) -> Subject:
    """Loads a model and applies it to the test split of its data.

    If the data cannot be read, random images take their place, with a warning.

    Args:
      workdir: the run's folder, or what else `trained.load` takes.
      checkpoint: "last", "best" or a step.
      seed: one of several seeds that were trained together; None: the first.
      data_dir: the folder of the data; None: the run's own.
      batch_size: images per step; None: the run's own.
      stored_code: as for `trained.load`.

    Raises:
      UserError: there is no model, or `data_dir` does not hold the data.
    """
    settings = trained.configure_for_run(workdir)
    model = trained.load(workdir, checkpoint, seed, stored_code)
    about = _describe(model, workdir)
    size = batch_size or settings["eval_batch_size"]
    try:
        found = next(
            evaluate.predict_split(
                workdir,
                checkpoint=checkpoint,
                data_dir=data_dir,
                batch_size=batch_size,
                seed=model.seed,
                stored_code=stored_code,
            )
        )
        images, labels, logits = found.images, found.labels, found.logits
        about["test"] = scores.score(model.scale(logits), labels)._asdict()
    except UserError as error:
        if data_dir:
            raise
        _log.warning("the files are checked on random images, without scores: %s", error)
        random = np.random.default_rng(0)
        images = random.integers(0, 256, (_NUM_RANDOM, *model.image_shape), np.uint8)
        labels, logits = None, model.predict_logits(images, size)
    speed = measure_model_speed(model, images)
    name = (weights.find_file(workdir) or workdir.absolute()).stem
    probabilities = model.probabilities(logits)
    return Subject(name, model, about, images, labels, logits, probabilities, speed)


def measure_speed(answer: Callable[[np.ndarray], Any], images: np.ndarray) -> float:
    """Returns images per second, roughly, after a first call that compiles."""
    images = images[:_NUM_TIMED]
    answer(images)
    start = time.perf_counter()
    answer(images)
    return len(images) / (time.perf_counter() - start)


def measure_model_speed(model: Trained, images: np.ndarray) -> float:
    """Returns the model's own images per second, as `measure_speed` does a file's."""
    return measure_speed(lambda part: model.predict_logits(part, _BATCH_TIMED), images)


def _describe(model: Trained, workdir: Path) -> dict[str, Any]:
    """Returns the description of a model for the files that hold it, without its scores."""
    config = stored.to_json(model.config)
    config["num_seeds"], config["seed"] = 1, model.seed
    config["data"]["data_dir"] = None
    data = {name: list(getattr(model, name)) for name in ("class_names", "mean", "std")}
    file = weights.find_file(workdir)
    code = weights.read_weights(file)[1].get("code", {}) if file else sources.read_record(workdir)
    return {
        "config": config,
        "code": {field: {"sha256": code[field]["sha256"]} for field in code},
        "data": {**data, "image_shape": list(model.image_shape)},
        "step": model.step,
        "seed": model.seed,
        "temperature": model.temperature,
        "fitted_on": model.fitted_on,
        "origin": _origin(workdir),
        "versions": provenance.versions(),
    }


def _origin(workdir: Path) -> dict[str, Any]:
    """Returns the commit, command, versions and processor of the training, as far as known."""
    if file := weights.find_file(workdir):
        return weights.read_weights(file)[1].get("origin", {})
    path = workdir / workdir_lib.ENVIRONMENT
    if not path.exists():
        return {}
    environment = files.read_json(path)
    words = [str(word) for word in environment.pop("command", [])]
    command = [word for word in words if not word.startswith(("--workdir", "-workdir"))]
    known = {name: environment.get(name) for name in ("commit", "versions", "processor", "cores")}
    return {"command": ["python", *command], **known}
