"""Grad-CAM: against NumPy on a model of one convolution, on every model, and in the pictures."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from cifar_jax.errors import UserError
from cifar_jax.evaluation import gradcam, trained
from cifar_jax.models import registry
from cifar_jax.reports import plots
from tests import tiny


class OneMap(nn.Module):
    """A convolution of single pixels, ReLU outside of it, and a dense layer."""

    num_classes: int = 3

    @nn.compact
    def __call__(self, images, train: bool = False):
        x = nn.relu(nn.Conv(4, (1, 1), name="conv")(images))
        return nn.Dense(self.num_classes, name="head")(x.reshape(len(x), -1))


def explain_by_hand(kernel, bias, head, images, classes):
    """Returns the maps of `OneMap`, with the derivatives written out."""
    maps = []
    for image, number in zip(images.astype(np.float64), classes, strict=True):
        features = image @ kernel[0, 0] + bias  # [height, width, 4], before the ReLU
        gradient = head[:, number].reshape(features.shape) * (features > 0)
        weights = gradient.mean(axis=(0, 1))
        one = np.maximum((features * weights).sum(axis=-1), 0)
        maps.append(one / one.max() if one.max() > 0 else one)
    return np.stack(maps)


def test_numpy_gives_the_same_maps():
    random = np.random.default_rng(0)
    images = random.normal(size=(5, 6, 4, 2)).astype(np.float32)
    classes = np.array([0, 1, 2, 1, 0])
    model = OneMap()
    variables = model.init(jax.random.key(0), images)
    call = gradcam.find_last_map(model, (6, 4, 2))
    maps = jax.jit(gradcam.make_explain(model, call))(variables, images, classes)
    params = jax.tree.map(np.asarray, variables["params"])
    conv, head = params["conv"], params["head"]
    expected = explain_by_hand(conv["kernel"], conv["bias"], head["kernel"], images, classes)
    np.testing.assert_allclose(maps, expected, atol=1e-6)
    assert expected.max(axis=(1, 2)).tolist() == [1] * 5
    assert 0.1 < np.mean(expected > 0) < 0.9


def test_a_class_that_nothing_speaks_for_has_an_empty_map():
    model = OneMap()
    variables = model.init(jax.random.key(0), jnp.ones((1, 6, 4, 2)))
    empty = jax.tree.map(jnp.zeros_like, variables)
    maps = gradcam.make_explain(model, 0)(empty, jnp.ones((2, 6, 4, 2)), jnp.array([0, 1]))
    np.testing.assert_array_equal(maps, np.zeros((2, 6, 4)))


# The side of the last feature map for images of 32 x 32 pixels; None: there is none.
SIDES = {
    **{"mlp": None, "simple_cnn": 32, "bn_cnn": 2, "vgg_bn": 8, "lenet": 10},
    **{"resnet": 8, "wide_resnet": 8, "speedrun": 3},
}
# Small ones of these kinds.
OPTIONS = {"resnet": {"depth": 20}, "wide_resnet": {"depth": 10, "widen_factor": 1}}


@pytest.mark.parametrize("name", registry.MODELS)
def test_every_model_has_its_last_map_found(name):
    model = registry.create(name, 10, **OPTIONS.get(name, {}))
    call, side = gradcam.find_last_map(model, (32, 32, 3)), SIDES[name]
    assert (call is None) == (side is None)
    if side:
        shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
        explain = gradcam.make_explain(model, call)
        images, classes = jnp.zeros((2, 32, 32, 3)), jnp.zeros(2, jnp.int32)
        assert jax.eval_shape(explain, shapes, images, classes).shape == (2, side, side)


def test_a_trained_model_normalises_the_images():
    config = tiny.config()
    model = OneMap()
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (3, 6, 4, 2), np.uint8)
    object.__setattr__(model, "dtype", jnp.float32)
    variables = model.init(jax.random.key(0), images.astype(np.float32))
    run = trained.Trained(
        config, model, variables, ("a", "b", "c"), (0.4, 0.5), (0.2, 0.3), (6, 4, 2), 1
    )
    classes = np.array([2, 1, 0])
    maps = gradcam.explain_images(run, images, classes)
    scaled = (images / np.float32(255) - (0.4, 0.5)) / (0.2, 0.3)
    params = jax.tree.map(np.asarray, variables["params"])
    conv, head = params["conv"], params["head"]
    expected = explain_by_hand(conv["kernel"], conv["bias"], head["kernel"], scaled, classes)
    np.testing.assert_allclose(maps, expected, atol=1e-5)


def test_a_model_without_a_map_is_named():
    model = registry.create("mlp", 10)
    run = trained.Trained(tiny.config(), model, {}, ("a",), (0.4,), (0.2,), (6, 4, 1), 1)
    with pytest.raises(UserError, match=r"the model mlp has no feature map, .* leave out"):
        gradcam.explain_images(run, np.zeros((1, 6, 4, 1), np.uint8), np.zeros(1, int))


def test_heat_is_laid_over_an_image():
    image = np.full((4, 4, 1), 100, np.uint8)
    heat = np.array([[0.0, 1.0]])
    shown = plots.overlay_heat(image, heat)
    assert (shown.shape, shown.dtype) == ((4, 4, 3), np.uint8)
    np.testing.assert_array_equal(shown[:, 0], np.full((4, 3), 100))
    # 0.7 of yellow, the warmest colour, over 0.3 of the image.
    np.testing.assert_array_equal(shown[:, -1], [[208, 208, 30]] * 4)
    # Between pixels the heat is 0.25 and 0.75.
    expected = [[round(0.825 * 100 + 0.175 * c) for c in (255, 64, 0)]] * 4
    np.testing.assert_allclose(shown[:, 1], expected, atol=1)
    colour = np.arange(64, dtype=np.uint8).reshape(4, 4, 4)
    np.testing.assert_array_equal(plots.overlay_heat(colour, 0 * heat), colour[..., :3])
