"""Every model against a second implementation in PyTorch, with the same weights, in float64.

Compared are the logits in training and in evaluation mode, the gradients of the mean
cross-entropy, and the moving statistics after a training step. The reference computes in float64
because PyTorch's float32 variances of channels-last inputs are off by 1e-4.
"""

import jax
import numpy as np
import optax
import pytest

from cifar_jax.models import layer_table, registry

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

from tests import torch_models  # noqa: E402

pytestmark = pytest.mark.slow

# name, what shapes the network, what only switches dropout off, size, channels, batch.
CASES = [
    ("mlp", {}, {}, 28, 1, 16),
    ("simple_cnn", {}, {"dropout_rate": 0.0}, 32, 3, 16),
    ("bn_cnn", {}, {"dropout_rate": 0.0, "dense_dropout_rate": 0.0}, 32, 3, 64),
    ("vgg_bn", {}, {"dropout_rate": 0.0, "dense_dropout_rate": 0.0}, 32, 3, 64),
    ("vgg_bn", {}, {"dropout_rate": 0.0, "dense_dropout_rate": 0.0}, 28, 1, 64),
    ("lenet", {}, {}, 32, 3, 16),
    ("lenet", {}, {}, 28, 1, 16),
    ("resnet", {"depth": 18}, {}, 32, 3, 16),
    ("resnet", {"depth": 20}, {}, 32, 3, 16),
    ("wide_resnet", {"depth": 16, "widen_factor": 2}, {}, 32, 3, 16),
    ("wide_resnet", {"depth": 10, "widen_factor": 1}, {}, 32, 3, 16),
    ("speedrun", {}, {}, 32, 3, 16),
    ("speedrun", {"group_features": (8, 16, 16), "group_convs": 3}, {}, 32, 3, 16),
    ("speedrun", {"group_features": (8, 16, 16), "activation": "relu"}, {}, 32, 3, 16),
    ("speedrun", {"group_features": (8, 16, 16), "activation": "silu"}, {}, 32, 3, 16),
]


def random_variables(model, images, rng):
    """Initial kernels, and everything that starts at zero or one moved away from it."""
    variables = jax.tree.map(np.asarray, jax.jit(model.init)(jax.random.key(0), images))

    def draw(path, leaf):
        kind = path[-1].key
        if kind in ("scale", "var"):
            leaf = rng.uniform(0.5, 1.5, leaf.shape)
        elif kind in ("bias", "mean"):
            leaf = rng.normal(0, 0.2, leaf.shape)
        return np.asarray(leaf, np.float32)

    return jax.tree_util.tree_map_with_path(draw, variables)


def layer_pairs(model, reference, image_shape):
    """Pairs the paths of our layers with the reference's layers, both in the order of calls."""
    kinds = (nn.Conv2d, nn.Linear, nn.BatchNorm1d, nn.BatchNorm2d)
    theirs = [layer for layer in reference.modules() if isinstance(layer, kinds)]
    ours = [row.path.split("/") for row in layer_table.layer_table(model, image_shape)]
    return list(zip(ours, theirs, strict=True))


def lookup(tree, path):
    for key in path:
        tree = tree[key]
    return tree


def to_theirs(kernel):
    """A kernel [.., in, out] as PyTorch has it, [out, in, ..]."""
    return kernel.transpose(3, 2, 0, 1) if kernel.ndim == 4 else kernel.T


def copy_weights(variables, pairs):
    for path, layer in pairs:
        params = lookup(variables["params"], path)
        state = {}
        if "kernel" in params:
            state["weight"] = to_theirs(params["kernel"])
        if "scale" in params:
            state["weight"] = params["scale"]
        if "bias" in params:
            state["bias"] = params["bias"]
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            statistics = lookup(variables["batch_stats"], path)
            state |= {"running_mean": statistics["mean"], "running_var": statistics["var"]}
        own = dict(layer.named_parameters()) | dict(layer.named_buffers())
        for name, value in state.items():
            own[name].data.copy_(torch.tensor(value))


def count_per_channel(pairs):
    """Fills the returned dict, as data pass, with how many numbers each variance is taken over."""
    counts = {}
    for path, layer in pairs:
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):

            def hook(_, inputs, path=tuple(path)):
                counts[path] = inputs[0].numel() // inputs[0].shape[1]

            layer.register_forward_pre_hook(hook)
    return counts


def largest(actual, expected):
    """The largest difference, over the largest expected value where that exceeds one."""
    expected = np.asarray(expected)
    return np.abs(np.asarray(actual) - expected).max() / max(1, np.abs(expected).max())


def distance(actual, expected):
    """The difference's norm over the expected norm.

    Right for gradients, which jump where rounding puts an activation near zero on the other side
    of a ReLU: a few such jumps are a per cent of the norm, a wrong formula is most of it.
    """
    return np.linalg.norm(np.asarray(actual) - expected) / np.linalg.norm(expected)


def train_step(model, variables, images, labels):
    """Returns the gradients, and the logits and new moving statistics of a training step."""

    @jax.jit
    def grad(params):
        def loss(params):
            logits, updates = model.apply(
                variables | {"params": params}, images, train=True, mutable=["batch_stats"]
            )
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            return losses.mean(), (logits, updates)

        return jax.grad(loss, has_aux=True)(params)

    return jax.tree.map(np.asarray, grad(variables["params"]))


def test_every_model_has_a_reference():
    assert {name for name, *_ in CASES} == set(registry.MODELS)


@pytest.mark.parametrize(("name", "options", "no_dropout", "size", "channels", "n"), CASES)
def test_same_numbers(name, options, no_dropout, size, channels, n):
    rng = np.random.default_rng(1)
    images = rng.normal(size=(n, size, size, channels)).astype(np.float32)
    labels = rng.integers(0, 10, n)
    model = registry.create(name, 10, **options, **no_dropout)
    variables = random_variables(model, images, rng)
    reference = getattr(torch_models, name)(size, channels, **options).double()
    pairs = layer_pairs(model, reference, images.shape[1:])
    copy_weights(variables, pairs)
    torch_images = torch.tensor(images).permute(0, 3, 1, 2).double()

    with torch.no_grad():
        expected = reference.eval()(torch_images).numpy()
    evaluation = largest(jax.jit(model.apply)(variables, images), expected)

    gradients, (logits, updates) = train_step(model, variables, images, labels)
    counts = count_per_channel(pairs)
    expected = reference.train()(torch_images)
    nn.functional.cross_entropy(expected, torch.tensor(labels)).backward()
    training = largest(logits, expected.detach().numpy())

    gradient, statistics = [], [0.0]
    for path, layer in pairs:
        for key, grad in lookup(gradients, path).items():
            theirs = (layer.bias if key == "bias" else layer.weight).grad.numpy()
            ours = to_theirs(grad) if key == "kernel" else grad
            gradient.append(distance(ours, theirs))
        if tuple(path) in counts:
            old = lookup(variables["batch_stats"], path)
            new = lookup(updates["batch_stats"], path)
            # PyTorch's moving variance takes the unbiased estimate, ours the biased one.
            kept = (1 - layer.momentum) * old["var"]
            biased = (layer.running_var.numpy() - kept) * (1 - 1 / counts[tuple(path)])
            statistics.append(largest(new["mean"], layer.running_mean.numpy()))
            statistics.append(largest(new["var"], kept + biased))
    worst = {
        "evaluation": evaluation,
        "training": training,
        "statistics": max(statistics),
        "gradient": max(gradient),
    }
    print(name, options, size, *(f"{what} {value:.1e}" for what, value in worst.items()))
    assert max(evaluation, training, *statistics) <= 1e-4, worst
    assert max(gradient) <= 0.02, worst
