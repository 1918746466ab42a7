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


@pytest.mark.parametrize(("name", "options", "kind"), CASES)
def test_pytorch_gives_the_same_maps(name, options, kind):
    random = np.random.default_rng(0)
    images = random.normal(size=(8, 32, 32, 3)).astype(np.float32)
    classes = random.integers(0, 10, 8)
    model = registry.create(name, 10, **options)
    variables = random_variables(model, images, random)
    call = gradcam.find_last_map(model, (32, 32, 3))
    maps = jax.jit(gradcam.make_explain(model, call))(variables, images, classes)

    reference = getattr(torch_models, name)(32, 3, **options).double().eval()
    copy_weights(variables, layer_pairs(model, reference, (32, 32, 3)))
    kept = []
    layer = [layer for layer in reference.modules() if isinstance(layer, kind)][-1]
    layer.register_forward_hook(lambda _, __, output: kept.append(output))
    logits = reference(torch.tensor(images).permute(0, 3, 1, 2).double())
    (features,) = kept
    (gradient,) = torch.autograd.grad(logits[torch.arange(8), classes].sum(), features)
    weights = gradient.mean(dim=(2, 3), keepdim=True)
    expected = torch.relu((weights * features).sum(dim=1))
    expected = expected / expected.amax(dim=(1, 2), keepdim=True).clamp(min=1e-300)
    assert (expected.amax(dim=(1, 2)) > 0).sum() >= 4
    np.testing.assert_allclose(maps, expected.detach().numpy(), atol=2e-4)
