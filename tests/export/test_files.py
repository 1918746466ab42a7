"""ONNX and StableHLO: every model, any number of images, with what the run does at test time."""

import functools
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cifar_jax
from cifar_jax.errors import UserError
from cifar_jax.evaluation.trained import Trained
from cifar_jax.export import export, onnx_file, stablehlo
from cifar_jax.export.subject import Subject
from cifar_jax.models import registry
from configs import default
from tests.few import slow

# Small versions of the models, and what the run does at test time.
OPTIONS = {
    "resnet": {"depth": 20},
    "wide_resnet": {"depth": 10, "widen_factor": 1},
    "speedrun": {"group_features": (8, 16, 16)},
    "mlp": {"hidden_sizes": (16,), "activation": "relu"},
}
VIEWS = {
    "speedrun": ("mirror_shift", None),
    "lenet": ("mirror_shift", 0.3),
    "resnet": ("mirror", None),
}


def need_onnx():
    for library in onnx_file.FORMAT.libraries:
        pytest.importorskip(library, reason="needs the extra `export`")


def need_flatbuffers():
    pytest.importorskip("flatbuffers", reason="needs the extra `export`")


@functools.cache
def make_subject(name, dtype="float32", temperature=1.5):
    """Returns a model with random weights and statistics, and its answers to random images."""
    rng = np.random.default_rng(0)
    model = registry.create(name, 10, jnp.dtype(dtype).type, **OPTIONS.get(name, {}))
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    variables = jax.tree.map(
        lambda x: np.float32(x + 0.1 * np.abs(rng.normal(size=x.shape)) * (x.ndim == 1)), variables
    )
    config = default.get_config()
    config.test_time.views, config.test_time.confidence_threshold = VIEWS.get(name, ("plain", None))
    names, statistics = tuple("abcdefghij"), ((0.4, 0.5, 0.6), (0.2, 0.3, 0.25))
    trained = Trained(
        config, model, variables, names, *statistics, (32, 32, 3), 3, temperature=temperature
    )
    images = rng.integers(0, 256, (40, 32, 32, 3), np.uint8)
    logits = trained.predict_logits(images, 20)
    about = {"data": {"class_names": names}}
    return Subject(name, trained, about, images, None, logits, trained.probabilities(logits), 1.0)


@pytest.mark.slow
@pytest.mark.parametrize("name", registry.MODELS)
@pytest.mark.parametrize("kind", ["onnx", "stablehlo"])
def test_every_model_exports(name, kind, tmp_path):
    need_flatbuffers()
    if kind == "onnx":
        need_onnx()
    subject = make_subject(name)
    written = export.write_checked(export.FORMATS[kind], subject, tmp_path)
    assert (written.num_images, written.num_different) == (40, 0)
    # Test-time views share the weights.
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(subject.trained.variables))
    assert written.path.stat().st_size == written.num_bytes < 1.1 * size + 200_000


@pytest.mark.slow
def test_stablehlo_has_views_and_temperature_and_runs_with_jax_alone(tmp_path):
    need_flatbuffers()
    subject = make_subject("speedrun")
    export.write_checked(stablehlo.FORMAT, subject, tmp_path)
    names = ["model.stablehlo", "model.stablehlo.json", "run_stablehlo.py"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    facts = json.loads((tmp_path / "model.stablehlo.json").read_text())
    assert (facts["jax"], facts["platforms"]) == (jax.__version__, ["cpu", "cuda", "tpu"])
    assert facts["data"]["class_names"] == list("abcdefghij")
    assert len(stablehlo.EXAMPLE.splitlines()) == 10
    without = "import sys; sys.modules['cifar_jax'] = sys.modules['flax'] = None\n"
    example = (tmp_path / "run_stablehlo.py").read_text()
    here = example.replace("__file__", repr(str(tmp_path / "x.py"))).replace("print(", "print(*")
    done = subprocess.run([sys.executable, "-c", without + here], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    black = subject.trained.predict(np.zeros((1, 32, 32, 3), np.uint8))[0]
    first = done.stdout.split("]")[0].strip("[ ").split()
    np.testing.assert_allclose([float(x) for x in first], black, atol=1e-5)


@pytest.mark.slow
def test_a_model_in_bfloat16_is_exported_in_float32(tmp_path):
    need_flatbuffers()
    subject = make_subject("mlp", "bfloat16")
    export.write_checked(stablehlo.FORMAT, subject, tmp_path)
    wide = make_subject("mlp")
    _, probabilities = stablehlo.FORMAT.open(tmp_path / "model.stablehlo")(subject.images)
    np.testing.assert_allclose(probabilities, wide.probabilities, atol=1e-5)
    assert np.abs(probabilities - subject.probabilities).max() > 1e-4


@pytest.mark.parametrize(
    "kind", [stablehlo.FORMAT, slow(onnx_file.FORMAT)], ids=lambda kind: kind.file
)
def test_a_forgotten_temperature_is_found(kind, tmp_path):
    need_flatbuffers()
    if kind is onnx_file.FORMAT:
        need_onnx()
    subject = make_subject("mlp", temperature=1.0)
    other = subject.trained._replace(temperature=1.5)
    subject = subject._replace(probabilities=other.probabilities(subject.logits))
    with pytest.raises(UserError, match=r"0 of 40 answers differ .* and probabilities by up to 0"):
        export.write_checked(kind, subject, tmp_path)


def test_onnx_says_what_it_is_and_answers_as_the_run(run):
    need_onnx()
    import onnx

    export.export_model(run, ["onnx"])
    model = onnx.load(run / "export" / "model.onnx")
    onnx.checker.check_model(model)
    (images,) = model.graph.input
    shape = [size.dim_param or size.dim_value for size in images.type.tensor_type.shape.dim]
    assert (images.name, shape[1:]) == ("images", [32, 32, 1])
    assert isinstance(shape[0], str)
    assert [output.name for output in model.graph.output] == ["logits", "probabilities"]
    about = {entry.key: json.loads(entry.value) for entry in model.metadata_props}
    assert about["data"]["class_names"][3] == "3"
    assert about["test"]["num_correct"] == 22
    assert about["config"]["model"]["name"] == "bn_cnn"
    images = np.random.default_rng(0).integers(0, 256, (9, 32, 32, 1), np.uint8)
    _, probabilities = onnx_file.FORMAT.open(run / "export" / "model.onnx")(images)
    np.testing.assert_allclose(probabilities, cifar_jax.load(run).predict(images), atol=1e-5)
