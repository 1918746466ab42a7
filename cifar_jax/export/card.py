"""The model card: where a model comes from, how good it is, and what it cannot do.

The head in YAML is what model hubs read; the rest is for people.
"""

import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from cifar_jax import files
from cifar_jax.evaluation import scores
from cifar_jax.evaluation.calibration import measure_calibration
from cifar_jax.export.subject import Subject
from cifar_jax.reports import diagnostics
from cifar_jax.runs.weights import SHIPPED
from cifar_jax.text import printable


def write_card(subject: Subject, weights: Path, card: Path) -> None:
    """Writes the card of a file of weights.

    Args:
      subject: the model, with its answers to the test images if they are known.
      weights: the file.
      card: the Markdown file to write.
    """
    parts = [*_head(subject), "", *_body(subject, weights)]
    if subject.labels is not None:
        parts += ["", *_scores(subject, subject.labels)]
    files.write_text(card, "\n".join([*parts, "", *_limits(subject)]) + "\n")


def _head(subject: Subject) -> Iterator[str]:
    config = subject.trained.config
    data = config.data.name
    yield "---"
    yield "license: apache-2.0"
    yield "library_name: cifar_jax"
    yield "pipeline_tag: image-classification"
    yield f"tags: [jax, flax, {config.model.name}]"
    yield f"datasets: [{data}]"
    yield "metrics: [accuracy]"
    if test := subject.about.get("test"):
        yield "model-index:"
        yield f"  - name: {json.dumps(subject.name)}"
        yield "    results:"
        yield "      - task: {type: image-classification}"
        yield f"        dataset: {{type: {data}, name: {data}, split: test}}"
        yield f"        metrics: [{{type: accuracy, value: {test['accuracy']:.4f}}}]"
    yield "---"


def _body(subject: Subject, weights: Path) -> Iterator[str]:
    trained, origin = subject.trained, subject.about["origin"]
    config = trained.config
    height, width, channels = trained.image_shape
    sizes = [np.asarray(leaf).size for leaf in _leaves(trained.variables.get("params", {}))]
    yield f"# {subject.name}"
    yield ""
    yield (
        f"The network `{config.model.name}` with {sum(sizes):,} parameters, trained on "
        f"`{config.data.name}`: images of {height} x {width} x {channels}, "
        f"{len(trained.class_names)} classes. `{weights.name}` holds the weights, and in its "
        "metadata the config, the class names, the mean and the deviation of each channel, and a "
        "SHA-256, which is checked when it is loaded:"
    )
    yield ""
    yield "```python"
    yield "import cifar_jax"
    yield ""
    shown = weights.stem if weights.parent == SHIPPED else weights.name
    yield f'model = cifar_jax.load("{shown}")'
    yield "probabilities = model.predict(images)  # uint8 [images, height, width, channels]"
    yield "```"
    yield ""
    yield "## Training"
    yield ""
    if command := origin.get("command"):
        yield f"* Command: `{shlex.join(command)}`"
    if commit := origin.get("commit"):
        yield f"* Commit: `{commit}`"
    yield f"* Seed {trained.seed}, {trained.step:,} steps of {config.batch_size} images"
    if processor := origin.get("processor"):
        yield f"* Hardware: {origin.get('cores')} cores of {processor}"
    if versions := origin.get("versions"):
        yield "* Versions: " + ", ".join(f"{name} {version}" for name, version in versions.items())


def _scores(subject: Subject, labels: np.ndarray) -> Iterator[str]:
    test = scores.score(subject.trained.scale(subject.logits), labels)
    low, high = scores.accuracy_interval(test.num_correct, test.num_images)
    predicted = subject.probabilities.argmax(axis=1)
    names = subject.trained.class_names
    by_class = diagnostics.score_classes(labels, predicted, len(names))
    error = measure_calibration(subject.probabilities, labels).error
    yield "## Results"
    yield ""
    yield (
        f"On the test split of `{subject.trained.config.data.name}`, by these weights as they are "
        f"stored: **{_percent(test.accuracy)}**, {test.num_correct:,} of {test.num_images:,} "
        f"images (95 % interval {_percent(low)} to {_percent(high)}, for other images of the same "
        f"kind, by Wilson), loss {test.loss:.4f}, expected calibration error {_percent(error)} in "
        "15 bins. It is one run: other seeds give other weights and slightly other results."
    )
    if subject.trained.temperature != 1:
        yield ""
        yield (
            f"The probabilities have the {subject.trained.describe_temperature()}: the logits are "
            "divided by it."
        )
    yield ""
    yield "| class | precision | recall | F1 | images |"
    yield "|---|---:|---:|---:|---:|"
    for name, *values, support in zip(names, *by_class, strict=True):
        cells = " | ".join(f"{100 * value:.1f} %" for value in values)
        yield f"| {printable(name).replace('|', chr(92) + '|')} | {cells} | {support:,} |"


def _limits(subject: Subject) -> Iterator[str]:
    trained = subject.trained
    height, width, _ = trained.image_shape
    yield "## What it cannot do"
    yield ""
    yield (
        f"* It knows {len(trained.class_names)} classes and always answers with one of them, "
        "whatever a picture shows."
    )
    yield (
        f"* It sees {height} x {width} pixels. A larger picture is shrunk to that, and what is "
        "small in it is lost."
    )
    yield (
        f"* Its accuracy and calibration hold for pictures like those of "
        f"`{trained.config.data.name}`; on others both are usually worse, without a warning."
    )
    yield "* It was made for research and teaching, not for decisions about people."
    yield ""
    yield "## Licence"
    yield ""
    yield (
        "Apache-2.0, like the code. The training images belong to "
        f"`{trained.config.data.name}` and have terms of their own."
    )


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def _leaves(tree: Any) -> Iterator[Any]:
    for value in tree.values():
        yield from _leaves(value) if isinstance(value, dict) else [value]
