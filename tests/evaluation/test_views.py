"""Test-time augmentation compared with NumPy; logits do not depend on other images."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest
from flax import linen as nn
from ml_collections import ConfigDict
from scipy import special

from cifar_jax.errors import UserError
from cifar_jax.evaluation import logits, trained, views
from cifar_jax.models import registry
from cifar_jax.parallel import devices
from tests import tiny

IMAGES = np.random.default_rng(0).integers(0, 256, (41, 8, 8, 3), dtype=np.uint8)
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)
WEIGHTS = np.random.default_rng(1).normal(size=(8 * 8 * 3, 5)).astype(np.float32) / 4


class Linear(nn.Module):
    """The logits of a softmax regression with known weights."""

    dtype: type = np.float32

    def __call__(self, images, train=False):
        return images.reshape(len(images), -1) @ WEIGHTS


def predict(images, kind, confidence_threshold=None, batch_size=7):
    mesh = devices.make_mesh()
    test_time = ConfigDict({"views": kind, "confidence_threshold": confidence_threshold})
    with jax.set_mesh(mesh):
        return views.make_predict(Linear(), mesh, MEAN, STD, test_time)({}, images, batch_size)


def apply(images):
    """The logits in float64."""
    pixels = (images / 255 - np.array(MEAN)) / np.array(STD)
    return pixels.reshape(len(images), -1) @ WEIGHTS.astype(np.float64)


def mirrored(images):
    return 0.5 * apply(images) + 0.5 * apply(images[:, :, ::-1])


def shifted(images):
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect")
    return 0.5 * mirrored(padded[:, 0:8, 0:8]) + 0.5 * mirrored(padded[:, 2:10, 2:10])


EXPECTED = {
    "plain": apply(IMAGES),
    "mirror": mirrored(IMAGES),
    "mirror_shift": 0.5 * mirrored(IMAGES) + 0.5 * shifted(IMAGES),
}


@pytest.mark.parametrize("kind", EXPECTED)
def test_the_logits_are_the_mean_over_the_views(kind):
    np.testing.assert_allclose(predict(IMAGES, kind), EXPECTED[kind], atol=1e-4)
    others = [values for name, values in EXPECTED.items() if name != kind]
    assert all(np.abs(EXPECTED[kind] - values).max() > 0.1 for values in others)


def test_the_views_of_a_picture():
    rows = np.arange(2 * 4 * 5 * 1, dtype=np.float32).reshape(2, 4, 5, 1)
    np.testing.assert_array_equal(views.mirror(rows), rows[:, :, ::-1])
    down = np.asarray(views.shift(rows, 1))
    np.testing.assert_array_equal(down[:, 1:, 1:], rows[:, :-1, :-1])
    np.testing.assert_array_equal(down[:, 0, 1:], rows[:, 1, :-1])
    up = np.asarray(views.shift(rows, -1))
    np.testing.assert_array_equal(up[:, :-1, :-1], rows[:, 1:, 1:])
    np.testing.assert_array_equal(up[:, -1, :-1], rows[:, -2, 1:])


@pytest.mark.parametrize("batch_size", [1, 7, 500])
def test_only_uncertain_images_are_shifted(batch_size):
    confidence = special.softmax(EXPECTED["mirror"], axis=1).max(axis=1)
    confidence_threshold = np.median(confidence) + 1e-4
    uncertain = confidence < confidence_threshold
    assert 15 < uncertain.sum() < 30
    expected = np.where(uncertain[:, None], EXPECTED["mirror_shift"], EXPECTED["mirror"])
    logits = predict(IMAGES, "mirror_shift", float(confidence_threshold), batch_size)
    np.testing.assert_allclose(logits, expected, atol=1e-4)


def test_logits_do_not_depend_on_the_other_images():
    whole = predict(IMAGES, "mirror_shift", 0.6)
    order = np.random.default_rng(2).permutation(41)
    np.testing.assert_array_equal(predict(IMAGES[order], "mirror_shift", 0.6), whole[order])
    alone = [predict(IMAGES[i : i + 7], "mirror_shift", 0.6) for i in range(0, 35, 7)]
    np.testing.assert_array_equal(np.concatenate(alone), whole[:35])
    certain = predict(IMAGES, "mirror_shift", 1e-6)
    np.testing.assert_array_equal(certain, predict(IMAGES, "mirror"))


def test_batchnorm_takes_its_running_statistics():
    config = tiny.bn_config()
    options = config.model.to_dict()
    model = registry.create(options.pop("name"), 10, **options)
    variables = devices.jit_once(lambda key: model.init(key, np.zeros((1, 8, 8, 3))))(
        jax.random.key(0)
    )
    mesh = devices.make_mesh()
    test_time = ConfigDict({"views": "mirror", "confidence_threshold": None})
    with jax.set_mesh(mesh):
        both = views.make_predict(model, mesh, MEAN, STD, test_time)(variables, IMAGES[:8], 8)
        plain = views.make_predict(model, mesh, MEAN, STD)
        parts = [plain(variables, images, 8) for images in (IMAGES[:8], IMAGES[:8, :, ::-1])]
    np.testing.assert_allclose(both, np.mean(parts, axis=0), atol=1e-6)


def test_any_number_of_images_takes_few_programs(monkeypatch):
    """Sizes are powers of two up to the batch; what is filled up does not show in the result."""
    config = ConfigDict({"test_time": {"views": "mirror_shift", "confidence_threshold": 0.9}})
    names = tuple("abcde")
    model = trained.Trained(config, Linear(), {}, names, MEAN, STD, IMAGES.shape[1:], step=1)
    shapes = set()

    def record(program, variables, images, batch_size, mesh):
        shapes.add((program, len(images), batch_size))
        return logits.predict_logits(program, variables, images, batch_size, mesh)

    monkeypatch.setattr(views, "predict_logits", record)
    every = special.softmax(predict(IMAGES, "mirror_shift", 0.9, 41).astype(np.float64), axis=1)
    shapes.clear()
    for count in range(1, 42):
        found = model.predict(IMAGES[:count], 12)
        np.testing.assert_allclose(found, every[:count], rtol=1e-5)
    assert {shape[1:] for shape in shapes} == {(n, n) for n in (1, 2, 4, 8, 12)}
    assert len(shapes) == 10  # mirrored and shifted views
    with pytest.raises(UserError, match="the batch size is 0: it must be at least 1"):
        model.predict(IMAGES, 0)


def test_a_cpu_computes_a_narrow_deep_network_few_images_at_a_time():
    """The results of all layers of a ResNet-20 have more numbers than its weights."""
    narrow, wide = registry.create("resnet", 10, depth=20), registry.create("lenet", 10)
    mesh = devices.make_mesh()
    few = 4 * mesh.shape["data"]
    assert logits.fit_batch_size(narrow, (32, 32, 3), 500, mesh) == few
    assert logits.fit_batch_size(narrow, (32, 32, 3), 3, mesh) == 3
    assert logits.fit_batch_size(wide, (32, 32, 3), 500, mesh) == 500
    gpu = SimpleNamespace(platform="gpu")
    other = SimpleNamespace(devices=np.array([[gpu, gpu]]), shape={"data": 2})
    assert logits.fit_batch_size.__wrapped__(narrow, (32, 32, 3), 500, other) == 500
