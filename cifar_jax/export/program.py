"""The function that exported files hold: from pixels to logits and probabilities."""

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cifar_jax.augment import batch as augment
from cifar_jax.evaluation import views
from cifar_jax.evaluation.trained import Trained
from cifar_jax.export.subject import Answer, Subject

INPUT, OUTPUTS = "images", ("logits", "probabilities")


def make_program(trained: Trained) -> Callable[[jax.Array], tuple[jax.Array, jax.Array]]:
    """Returns the function from uint8 [batch, height, width, channels] to [batch, classes].

    It normalises the pixels, takes the mean over the run's test-time views, and divides by its
    temperature. Trace it within `ops.stock_operations`.
    """

    def program(images: jax.Array) -> tuple[jax.Array, jax.Array]:
        def apply(batch: jax.Array) -> Any:
            return trained.model.apply(trained.variables, batch, train=False)

        batch = augment.normalize(images, trained.mean, trained.std, jnp.float32)
        logits = views.apply_views(apply, batch, trained.config.test_time)
        return logits, jax.nn.softmax(logits / trained.temperature)

    return program


def in_float32(subject: Subject) -> Subject:
    """Returns the subject with a model that computes in float32, and that model's answers."""
    trained = subject.trained
    if trained.model.dtype == jnp.float32:
        return subject
    trained = trained._replace(model=trained.model.clone(dtype=jnp.float32))
    logits = trained.predict_logits(subject.images, trained.config.eval_batch_size)
    probabilities = trained.probabilities(logits)
    return subject._replace(trained=trained, logits=logits, probabilities=probabilities)


def in_batches(answer: Answer) -> Answer:
    """Returns the function applied to the first image alone, to 7, and to 500 at a time."""

    def answer_all(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        starts = [0, 1, *range(8, len(images), 500), len(images)]
        parts = [images[a:b] for a, b in itertools.pairwise(starts) if len(images[a:b])]
        logits, probabilities = zip(*map(answer, parts), strict=True)
        return np.concatenate(logits), np.concatenate(probabilities)

    return answer_all
