"""Grad-CAM against PyTorch's autograd, on the same models with the same weights, in float64."""

import jax
import numpy as np
import pytest

from cifar_jax.evaluation import gradcam
from cifar_jax.models import registry

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

from tests import torch_models  # noqa: E402
from tests.models.test_reference import copy_weights, layer_pairs, random_variables  # noqa: E402

pytestmark = pytest.mark.slow

# name, options, and the reference's layer whose output is the last feature map: the last of a kind.
CASES = [
    ("simple_cnn", {}, nn.Conv2d),
    ("bn_cnn", {}, nn.BatchNorm2d),
    ("vgg_bn", {}, nn.BatchNorm2d),
    ("lenet", {}, nn.Conv2d),
    ("resnet", {"depth": 20}, torch_models.BasicBlock),
    ("wide_resnet", {"depth": 10, "widen_factor": 1}, nn.ReLU),
    ("speedrun", {"group_features": (8, 16, 16)}, nn.GELU),
]


def explain_both(name, options, kind):
    """Returns maps, the reference with the same weights, its last map's layer, images, classes."""
    random = np.random.default_rng(0)
    images = random.normal(size=(8, 32, 32, 3)).astype(np.float32)
    classes = random.integers(0, 10, 8)
    model = registry.create(name, 10, **options)
    variables = random_variables(model, images, random)
    call = gradcam.find_last_map(model, (32, 32, 3))
    maps = jax.jit(gradcam.make_explain(model, call))(variables, images, classes)
    reference = getattr(torch_models, name)(32, 3, **options).double().eval()
    copy_weights(variables, layer_pairs(model, reference, (32, 32, 3)))
    layer = [layer for layer in reference.modules() if isinstance(layer, kind)][-1]
    return np.asarray(maps), reference, layer, torch.tensor(images).permute(0, 3, 1, 2), classes


@pytest.mark.parametrize(("name", "options", "kind"), CASES)
def test_pytorch_gives_the_same_maps(name, options, kind):
    maps, reference, layer, images, classes = explain_both(name, options, kind)
    kept = []
    layer.register_forward_hook(lambda _, __, output: kept.append(output))
    logits = reference(images.double())
    (features,) = kept
    (gradient,) = torch.autograd.grad(logits[torch.arange(8), classes].sum(), features)
    weights = gradient.mean(dim=(2, 3), keepdim=True)
    expected = torch.relu((weights * features).sum(dim=1))
    expected = expected / expected.amax(dim=(1, 2), keepdim=True).clamp(min=1e-300)
    assert (expected.amax(dim=(1, 2)) > 0).sum() >= 4
    np.testing.assert_allclose(maps, expected.detach().numpy(), atol=2e-4)


@pytest.mark.parametrize(("name", "options", "kind"), CASES)
def test_the_package_grad_cam_gives_the_same_maps(name, options, kind):
    """It enlarges each map to the image's size and stretches it to 0 and 1, before and after."""
    package = pytest.importorskip("pytorch_grad_cam", reason="grad-cam is not installed")
    from cv2 import resize  # which grad-cam needs
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    maps, reference, layer, images, classes = explain_both(name, options, kind)
    explain = package.GradCAM(reference.float(), [layer])
    found = explain(images, [ClassifierOutputTarget(number) for number in classes.tolist()])

    def stretch(one):
        return (one - one.min()) / (1e-7 + one.max() - one.min())

    expected = [stretch(resize(stretch(one), (32, 32))) for one in maps.astype(np.float32)]
    np.testing.assert_allclose(found, expected, atol=1e-4)
