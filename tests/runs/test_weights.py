"""Files of weights: the same bits again, damage, and the models that come with the package."""

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

import cifar_jax
from cifar_jax.errors import UserError
from cifar_jax.evaluation import evaluate
from cifar_jax.export import ship
from cifar_jax.runs import weights
from tests import program
from tests.few import some

ABOUT = {"config": {"seed": 3}, "data": {"class_names": ["a|b", "\u00e9"]}, "step": 7}
NAMES = weights.shipped_names()
REAL_DATA = Path(os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")).expanduser()


def variables(dtype=np.float32):
    values = np.random.default_rng(0).normal(size=(4, 3)).astype(dtype)
    return {
        "params": {"head": {"kernel": values.T, "bias": values[:, 0]}},
        "batch_stats": {"norm": {"mean": np.float32([1e-30, 3e30])}},
    }


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_what_is_written_is_read(tmp_path, dtype):
    weights.write_weights(tmp_path / "x.safetensors", variables(dtype), ABOUT)
    found, about = weights.read_weights(tmp_path / "x.safetensors")
    assert about == ABOUT
    kernel = found["params"]["head"]["kernel"]
    assert kernel.dtype == np.float32
    np.testing.assert_array_equal(kernel, variables(dtype)["params"]["head"]["kernel"])
    np.testing.assert_array_equal(found["batch_stats"]["norm"]["mean"], np.float32([1e-30, 3e30]))


def test_every_changed_byte_is_found(tmp_path):
    path = tmp_path / "x.safetensors"
    weights.write_weights(path, variables(), ABOUT)
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(UserError, match=r"x\.safetensors (is damaged|has the format)"):
            weights.read_weights(path)
    path.write_bytes(whole[:-1])
    with pytest.raises(UserError, match=r"x\.safetensors is damaged: "):
        weights.read_weights(path)


def test_a_file_of_another_program_is_named(tmp_path):
    path = tmp_path / "x.safetensors"
    safetensors.numpy.save_file({"a": np.zeros(3, np.float32)}, path, {"format": "pt"})
    with pytest.raises(UserError, match=r"has the format 'pt', not 'cifar_jax-1'"):
        cifar_jax.load(path)
    with pytest.raises(UserError, match=r"none\.safetensors does not exist"):
        cifar_jax.load(tmp_path / "none.safetensors")


def test_arrays_of_another_model_are_named(tmp_path):
    found, about = weights.read_weights(weights.SHIPPED / "mlp.safetensors")
    del found["params"]["head"]["bias"]
    weights.write_weights(tmp_path / "x.safetensors", found, about)
    with pytest.raises(UserError, match="holds other arrays than those of the model that it desc"):
        cifar_jax.load(tmp_path / "x.safetensors")
    weights.write_weights(tmp_path / "x.safetensors", found, about | {"data": {}})
    with pytest.raises(UserError, match=r"x\.safetensors has no model: its data have a wrong"):
        cifar_jax.load(tmp_path / "x.safetensors")


@pytest.mark.numbers
@pytest.mark.parametrize("name", some(["mlp", "resnet_20"], NAMES))
def test_a_shipped_model_loads_by_its_name_and_is_what_its_card_says(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    model = cifar_jax.load(name)
    about = weights.read_weights(weights.SHIPPED / f"{name}.safetensors")[1]
    probabilities = model.predict(np.zeros((1, *model.image_shape), np.uint8))
    assert probabilities.shape == (1, len(model.class_names)) == (1, 10)
    card = (weights.SHIPPED / f"{name}.md").read_text()
    assert (
        f"**{100 * about['test']['accuracy']:.2f} %**, {about['test']['num_correct']:,} of" in card
    )
    assert f"Commit: `{about['origin']['commit']}`" in card
    assert re.fullmatch("[0-9a-f]{40}", about["origin"]["commit"])
    assert about["config"]["data"]["data_dir"] is None
    assert not re.search(r"/(work|home|tmp)/", card + json.dumps(about))
    assert f'cifar_jax.load("{name}")' in card


def test_the_shipped_files_are_small_and_have_cards():
    paths = list(weights.SHIPPED.iterdir())
    assert sum(path.stat().st_size for path in paths) <= ship.MOST_BYTES == 8_000_000
    assert {path.name for path in paths} == {
        f"{x}{end}" for x in NAMES for end in (".md", ".safetensors")
    }
    assert "mlp" in NAMES


def test_a_folder_goes_before_a_shipped_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mlp").mkdir()
    with pytest.raises(UserError, match=r"mlp/config\.json does not exist"):
        cifar_jax.load("mlp")
    assert cifar_jax.load("pretrained:mlp").step == cifar_jax.load("pretrained:mlp", "14040").step
    with pytest.raises(UserError, match="only the checkpoint of step 14040: leave out 'best'"):
        cifar_jax.load("pretrained:mlp", "best")
    with pytest.raises(UserError, match="pretrained:mlp has no seed 1: --seed can be 0"):
        cifar_jax.load("pretrained:mlp", seed=1)


def test_a_picture_is_classified_offline_by_a_shipped_model(tmp_path, monkeypatch):
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    picture = np.zeros((28, 28), np.uint8)
    picture[4:24, 13:16] = 255  # a one
    Image.fromarray(picture).save("one.png")
    code, out, err = program.run_here(
        "--mode=predict", "--workdir=pretrained:mlp", "--images=one.png"
    )
    # The tests share a JAX with two devices; this model asks for one.
    assert (code, re.sub("JAX was already started.*\n", "", err)) == (0, "")
    assert re.search(r"one\.png +1 +(9\d|100)\.\d", out)
    assert (tmp_path / "runs" / "pretrained" / "mlp" / "predictions" / "predictions.csv").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_model_has_the_count_of_its_card(name):
    about = weights.read_weights(weights.SHIPPED / f"{name}.safetensors")[1]
    dataset = about["config"]["data"]["name"]
    if not (REAL_DATA / dataset).is_dir():
        pytest.skip(f"the real {dataset} is not in {REAL_DATA}")
    found = evaluate.evaluate_model(f"{weights.PREFIX}{name}")
    # Another processor adds in another order, which may turn an image or two.
    assert abs(found.num_correct - about["test"]["num_correct"]) <= 2
    assert found.num_images == about["test"]["num_images"] == 10_000
