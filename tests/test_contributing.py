"""The examples of CONTRIBUTING.md and of "Your own code" in docs/usage.md; each is tried."""

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
from cifar_jax.optim import build
from cifar_jax.runs import signals
from cifar_jax.training import check
from cifar_jax.training import loop as train
from tests import program, tiny

ROOT = Path(__file__).parent.parent
TEXT, USAGE = ((ROOT / name).read_text() for name in ("CONTRIBUTING.md", "docs/usage.md"))


def read_block(text, name):
    """Returns the Python block after a mark."""
    found = re.search(rf"<!-- test: {name} -->\n *```python\n(.*?)\n *```", text, re.DOTALL)
    return textwrap.dedent(found[1]) + "\n"


def run_block(name, folder, monkeypatch):
    """Imports the Python block after a mark as a module of its own."""
    (folder / f"contributed_{name}.py").write_text(read_block(TEXT, name))
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


def test_an_optimizer(tmp_path, monkeypatch):
    monkeypatch.setitem(
        build.RULES, "sign_momentum", run_block("optimizer", tmp_path, monkeypatch).sign_momentum
    )
    (tmp_path / "run").mkdir()
    start(tiny.config(num_steps=2, optimizer__name="sign_momentum"), tmp_path / "run")


def test_your_own_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("my_models", "my_optim", "my_augment"):
        (tmp_path / f"{name}.py").write_text(read_block(USAGE, name))
    found = re.search(
        r"All three together:\n\n```bash\npython main.py (.*?)\n```", USAGE, re.DOTALL
    )
    flags = found[1].replace("\\\n", "").split()
    short = ("--config.num_steps=2", "--config.log.report=False")
    code, out, err = program.run_here(*flags, *short)
    assert (code, err) == (0, "")
    assert "total: 330" in out
    code, again, err = program.run_here("--mode=evaluate", "--workdir=runs/own")
    assert (code, err) == (0, "")
    assert out.splitlines()[-1].partition("  in ")[0] in again


@pytest.mark.parametrize(
    ("text", "name"),
    [
        *[(TEXT, name) for name in ("model", "optimizer", "augmentation")],
        *[(USAGE, name) for name in ("my_models", "my_optim", "my_augment")],
    ],
)
def test_the_examples_of_code_have_under_fifteen_lines(text, name):
    assert len(re.findall(r"^ *\S", read_block(text, name), re.M)) < 15
