"""The examples of CONTRIBUTING.md: a model, an augmentation, a data set; each is tried."""

import importlib
import re
import textwrap
from pathlib import Path

import jax
import numpy as np
import pytest

import cifar_jax
from cifar_jax.augment import batch as augment
from cifar_jax.data import datasets
from cifar_jax.models import registry
from cifar_jax.runs import signals
from cifar_jax.training import check
from cifar_jax.training import loop as train
from tests import tiny

TEXT = (Path(__file__).parent.parent / "CONTRIBUTING.md").read_text()


def run_block(name, folder, monkeypatch):
    """Imports the Python block after a mark as a module of its own."""
    found = re.search(rf"<!-- test: {name} -->\n *```python\n(.*?)\n *```", TEXT, re.DOTALL)
    (folder / f"contributed_{name}.py").write_text(textwrap.dedent(found[1]))
    monkeypatch.syspath_prepend(folder)
    return importlib.import_module(f"contributed_{name}")


def start(config, folder):
    check.check_config(config)
    assert train.train_model(config, folder, signals.Signals()) == 0


def test_a_model_and_its_config(tmp_path, monkeypatch):
    monkeypatch.setitem(
        registry.MODELS, "two_layers", run_block("model", tmp_path, monkeypatch).TwoLayers
    )
    config = run_block("config", tmp_path, monkeypatch).get_config()
    config.update(tiny.config(num_steps=2).to_dict() | {"model": config.model})
    start(config, tmp_path)
    assert cifar_jax.load(tmp_path).variables["params"]["Conv_0"]["kernel"].shape == (3, 3, 1, 32)


def test_an_augmentation(tmp_path, monkeypatch):
    random_invert = run_block("augmentation", tmp_path, monkeypatch).random_invert
    images = np.random.default_rng(0).integers(0, 256, (64, 4, 4, 1), dtype=np.uint8)
    result = np.asarray(random_invert(jax.random.key(0), images))
    inverted = (result == 255 - images).all(axis=(1, 2, 3))
    assert 16 < inverted.sum() < 48
    np.testing.assert_array_equal(result[~inverted], images[~inverted])
    old = augment.apply
    monkeypatch.setattr(
        augment, "apply", lambda key, x, *rest: random_invert(key, old(key, x, *rest))
    )
    start(tiny.config(num_steps=2), tmp_path)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:tensorflow_datasets")
def test_a_data_set(tmp_path, monkeypatch):
    pytest.importorskip("array_record")
    run_block("data", tmp_path, monkeypatch).prepare(tmp_path / "data")
    config = tiny.config(
        data__name="stripes",
        data__data_dir=str(tmp_path / "data"),
        data__validation_examples=0,
        batch_size=16,
        num_epochs=15.0,
        eval_every_epochs=0.0,
        checkpoint__every_epochs=0.0,
    )
    (tmp_path / "run").mkdir()
    start(config, tmp_path / "run")
    assert cifar_jax.load(tmp_path / "run").class_names == ("horizontal", "vertical")
    assert len(datasets.load_dataset("stripes", str(tmp_path / "data")).splits["test"].labels) == 16
