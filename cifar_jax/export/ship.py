"""Adds a trained model to those that come with the package; for the maintainers.

  python -m cifar_jax.export.ship runs/resnet_20
  python -m cifar_jax.export.ship runs/speedrun --float16

Writes cifar_jax/pretrained/NAME.safetensors and its card NAME.md. The run must be of a commit that
is known, without other changes. With --float16 the weights take half of the space; the card has the
accuracy of the weights as they are stored.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from cifar_jax.errors import UserError
from cifar_jax.evaluation import scores
from cifar_jax.export.card import write_card
from cifar_jax.export.subject import Subject, read_subject
from cifar_jax.runs import weights

# All files together, in bytes.
MOST_BYTES = 8_000_000
# The share of the test images that may be lost by rounding.
_MOST_LOST = 0.0005


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("workdir", type=Path, help="the run's folder")
    parser.add_argument("--name", help="what to call it; by default the folder's name")
    parser.add_argument("--float16", action="store_true", help="store parameters in 16 bits")
    options = parser.parse_args(argv[1:])
    try:
        print(ship_model(options.workdir, options.name, options.float16))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def ship_model(workdir: Path, name: str | None = None, float16: bool = False) -> str:
    """Writes the file and the card of a model; returns a line on its scores.

    Raises:
      UserError: the run's commit or its data are not known, the rounded weights are worse, or the
        files are too large.
    """
    subject = read_subject(workdir)
    subject = subject._replace(name=name or subject.name)
    commit, labels = subject.about["origin"].get("commit"), subject.labels
    if not commit or commit.endswith("+") or labels is None:
        raise UserError(
            f"{workdir} is of commit {commit}: ship a run of a commit without other changes, where "
            "its data can be read"
        )
    path = weights.SHIPPED / f"{subject.name}{weights.SUFFIX}"
    path.parent.mkdir(exist_ok=True)
    before = scores.score(subject.trained.scale(subject.logits), labels)
    if float16:
        subject = _round(subject, labels)
    after = scores.score(subject.trained.scale(subject.logits), labels)
    if before.accuracy - after.accuracy > _MOST_LOST:
        raise UserError(
            f"rounding costs too much: {before.accuracy:.2%} became {after.accuracy:.2%}"
        )
    others = [file for file in path.parent.iterdir() if file != path]
    unchecked = path.with_name(f"{path.name}.unchecked")
    weights.write_weights(unchecked, _stored(subject, float16), subject.about)
    used = sum(file.stat().st_size for file in (unchecked, *others))
    if used > MOST_BYTES:
        unchecked.unlink()
        raise UserError(f"all shipped files would take {used:,} bytes, more than {MOST_BYTES:,}")
    unchecked.replace(path)
    write_card(subject, path, path.with_suffix(".md"))
    words = scores.format_scores("test", after)
    return f"{path.name}: {words}, {before.num_correct} before it was stored; {used:,} bytes in all"


def _stored(subject: Subject, float16: bool) -> dict[str, Any]:
    """Returns the variables as they are stored; BatchNorm's statistics stay float32."""
    variables = dict(subject.trained.variables)
    if float16:
        params = variables["params"]
        variables["params"] = jax.tree.map(lambda leaf: np.asarray(leaf, np.float16), params)
    return variables


def _round(subject: Subject, labels: np.ndarray) -> Subject:
    """Returns the subject with the weights as they are stored, and their answers."""
    stored = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), _stored(subject, True))
    model = subject.trained._replace(variables=stored)
    logits = model.predict_logits(subject.images, model.config.eval_batch_size)
    about = subject.about | {"test": scores.score(model.scale(logits), labels)._asdict()}
    probabilities = model.probabilities(logits)
    return subject._replace(trained=model, about=about, logits=logits, probabilities=probabilities)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
