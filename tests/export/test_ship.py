"""The maintainers' command that adds a model to those of the package."""

import json

import numpy as np
import pytest
import safetensors.numpy

import cifar_jax
from cifar_jax.export import ship
from cifar_jax.runs import weights

ENVIRONMENT = {
    "commit": "a" * 40,
    "command": ["main.py", "--config=configs/digits.py", "--workdir=/home/me/run"],
    "versions": {"jax": "0.10.2"},
    "processor": "a processor",
    "cores": 2,
    "host": "my_host",
}


@pytest.fixture
def shipped(run, tmp_path, monkeypatch):
    """The folder of shipped models, empty, and a run that is of a known commit."""
    monkeypatch.setattr(weights, "SHIPPED", tmp_path / "pretrained")
    monkeypatch.setattr("cifar_jax.export.card.SHIPPED", tmp_path / "pretrained")
    (run / "environment.json").write_text(json.dumps(ENVIRONMENT))
    return tmp_path / "pretrained"


def test_a_model_is_shipped_in_half_of_the_space(run, shipped, capsys):
    assert ship.main(["ship", str(run), "--name=small", "--float16"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("small.safetensors: test accuracy 6.11% (22 of 360)")
    assert "22 before it was stored" in out
    whole = (shipped / "small.safetensors").read_bytes()
    arrays = safetensors.numpy.load(whole)
    types = {name.split("/")[0]: array.dtype.name for name, array in arrays.items()}
    assert types == {"params": "float16", "batch_stats": "float32"}
    kernel = cifar_jax.load(run).variables["params"]["head"]["kernel"]
    stored = cifar_jax.load("small").variables["params"]["head"]["kernel"]
    np.testing.assert_array_equal(stored, np.float32(np.float16(kernel)))
    card = (shipped / "small.md").read_text()
    assert "* Command: `python main.py --config=configs/digits.py`\n" in card
    assert "* Hardware: 2 cores of a processor\n" in card
    assert 'cifar_jax.load("small")' in card
    for secret in ("/home/me", "my_host"):
        assert secret not in card
        assert secret.encode() not in whole


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("_MOST_LOST", -1.0, "error: rounding costs too much: 6.11% became 6.11%"),
        ("MOST_BYTES", 100, "more than 100"),
    ],
)
def test_a_model_that_is_worse_or_too_large_is_refused(
    run, shipped, monkeypatch, capsys, name, value, words
):
    monkeypatch.setattr(ship, name, value)
    assert ship.main(["ship", str(run), "--float16"]) == 2
    assert words in capsys.readouterr().err
    assert list(shipped.iterdir()) == []


def test_a_model_that_is_too_large_leaves_the_shipped_one(run, shipped, monkeypatch, capsys):
    assert ship.main(["ship", str(run), "--name=small"]) == 0
    before = {path.name: path.read_bytes() for path in shipped.iterdir()}
    monkeypatch.setattr(ship, "MOST_BYTES", 100)
    assert ship.main(["ship", str(run), "--name=small", "--float16"]) == 2
    assert {path.name: path.read_bytes() for path in shipped.iterdir()} == before
    # The file that is replaced does not count.
    size = sum(map(len, before.values()))
    monkeypatch.setattr(ship, "MOST_BYTES", size)
    assert ship.main(["ship", str(run), "--name=small"]) == 0
    assert capsys.readouterr().out.endswith(f"; {size:,} bytes in all\n")


@pytest.mark.parametrize("commit", [None, "b" * 40 + "+"])
def test_a_run_of_an_unknown_commit_is_refused(run, shipped, capsys, commit):
    (run / "environment.json").write_text(json.dumps(ENVIRONMENT | {"commit": commit}))
    assert ship.main(["ship", str(run)]) == 2
    assert f"is of commit {commit}: ship a run of a commit" in capsys.readouterr().err
    assert not shipped.exists()
