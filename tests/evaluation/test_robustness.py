"""The robustness sheet of a made-up model."""

import numpy as np
import pytest

from cifar_jax.data import corruptions, datasets, sources
from cifar_jax.evaluation import evaluate, robustness
from cifar_jax.evaluation.model import Trained
from tests import tiny

LABELS = np.arange(20) % 2


class Bright(Trained):
    """Takes bright images for class 1."""

    def predict_logits(self, images, batch_size):
        bright = images.mean(axis=(1, 2, 3)) - 128.0
        return np.stack([-bright, bright], axis=1)


@pytest.fixture
def sheet(monkeypatch):
    """Returns a function that makes the sheet for a set's name."""
    images = np.broadcast_to(
        (LABELS * 155 + 50).astype(np.uint8)[:, None, None, None], (20, 8, 8, 3)
    )
    monkeypatch.setattr(
        corruptions, "corrupt_images", lambda x, name, s: x[::-1] if name == "fog" and s > 3 else x
    )

    def make(name, **fields):
        config = tiny.config(data__name=name, **fields)
        model = Bright(config, None, {}, ("a", "b"), (0.5,) * 3, (0.2,) * 3, (8, 8, 3), 7)
        found = evaluate.Predictions(model, images, LABELS, model.predict_logits(images, 20), "0")
        monkeypatch.setattr(evaluate, "predict_split", lambda *_, **__: iter([found]))
        return robustness.evaluate_corruptions("run")

    return make


def test_the_table_has_every_corruption_and_the_means(sheet, capsys):
    found = sheet("digits")
    assert list(found) == list(corruptions.CORRUPTIONS)
    assert found["fog"] == [1, 1, 1, 0, 0]
    assert found["snow"] == [1] * 5
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "the checkpoint of step 7: test accuracy 100.00% without corruption"
    rows = {line.split()[0]: line.split()[1:] for line in lines[3:-1]}
    assert rows["fog"] == ["100.00", "100.00", "100.00", "0.00", "0.00", "60.00"]
    assert rows["mean"] == ["100.00", "100.00", "100.00", "93.33", "93.33", "97.33"]
    assert lines[-1].startswith("0 of 75 sets of images are from cifar10_corrupted")


@pytest.fixture
def prepared(monkeypatch):
    """Prepares two sets, of four images each."""
    names = ("cifar10_corrupted/snow_2", "cifar10_1")
    monkeypatch.setattr(
        robustness.sources, "find_sizes", lambda name, _: {"test": 4} if name in names else None
    )
    split = datasets.Split(np.zeros((4, 8, 8, 3), np.uint8), np.array([0, 0, 0, 1]))
    data = datasets.Dataset("x", ("a", "b"), (0.5,) * 3, (0.2,) * 3, {"test": split})
    monkeypatch.setattr(robustness.datasets, "load_dataset", lambda *_: data)
    monkeypatch.setattr(robustness, "_SHAPE", (8, 8, 3))


@pytest.mark.parametrize(
    "fields", [{}, {"test_split": "test[:100%]"}, {"train_split": "train[:90%]"}]
)
def test_prepared_sets_are_used_for_cifar10(sheet, prepared, capsys, fields):
    fields = {f"data__{name}": value for name, value in fields.items()}
    assert sheet("cifar10", **fields)["snow"] == [1, 0.75, 1, 1, 1]
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2].startswith("1 of 75 sets of images are from cifar10_corrupted")
    assert lines[-1] == "cifar10_1: accuracy 75.00%"


@pytest.mark.parametrize(
    "fields",
    [
        {"test_split": "test[:50%]"},
        {"test_split": "train[40000:]", "train_split": "train[:40000]"},
        {"train_split": "train+test"},
    ],
)
def test_the_images_of_another_test_split_are_computed(sheet, prepared, capsys, fields):
    fields = {f"data__{name}": value for name, value in fields.items()}
    assert sheet("cifar10", **fields)["snow"] == [1] * 5
    assert "0 of 75 sets of images are from cifar10_corrupted" in capsys.readouterr().out


def test_images_of_another_size_are_computed(sheet, prepared, capsys, monkeypatch):
    monkeypatch.setattr(robustness, "_SHAPE", (32, 32, 3))
    source = sources.Source({}, None)
    monkeypatch.setattr(robustness.sources, "open_source", lambda *_: source)
    assert sheet("cifar10", data__image_size=8)["snow"] == [1] * 5
    out = capsys.readouterr().out
    assert "0 of 75 sets of images are from cifar10_corrupted" in out
    assert out.endswith("cifar10_1: accuracy 75.00%\n")
