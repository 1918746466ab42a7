"""The format safetensors: the weights with all that `cifar_jax.load` needs, and a model card."""

from pathlib import Path

import numpy as np

from cifar_jax.evaluation import trained
from cifar_jax.export.card import write_card
from cifar_jax.export.subject import Answer, Format, Subject
from cifar_jax.runs import weights

CARD = "README.md"


def _write(subject: Subject, path: Path) -> None:
    weights.write_weights(path, subject.trained.variables, subject.about)


def _open(path: Path) -> Answer:
    model = trained.load_file(path)

    def answer(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        logits = model.predict_logits(images, model.config.eval_batch_size)
        return logits, model.probabilities(logits)

    return answer


FORMAT = Format(
    file=f"model{weights.SUFFIX}",
    libraries=(),
    adapt=lambda subject: subject,
    write=_write,
    open=_open,
    finish=lambda subject, path: write_card(subject, path, path.with_name(CARD)),
)
