"""The worker of PyTorch: channels last, fused SGD, float32 images in memory.

Its argument is "eager" or "compiled" (by `torch.compile`).
"""

import itertools
import platform
import sys
import time
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.peers import protocol

COMPILED = sys.argv[1:] == ["compiled"]


class FlattenChannelsLast(nn.Module):
    """The order in which the other frameworks flatten; free of cost in this layout."""

    def forward(self, x):
        return x.permute(0, 2, 3, 1).flatten(1)


class Function(nn.Module):
    """A function as a layer."""

    def __init__(self, function):
        super().__init__()
        self.forward = function


def mlp(rates):
    return nn.Sequential(
        *(FlattenChannelsLast(), nn.Linear(784, 500), nn.Sigmoid()),
        *(nn.Linear(500, 50), nn.Sigmoid(), nn.Linear(50, protocol.NUM_CLASSES)),
    )


def simple_cnn(rates):
    return nn.Sequential(
        *(nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1), nn.ReLU()),
        *(nn.MaxPool2d(2), FlattenChannelsLast(), nn.Linear(32 * 16 * 16, 512), nn.ReLU()),
        *(nn.Dropout(rates[0]), nn.Linear(512, protocol.NUM_CLASSES)),
    )


def vgg_bn(rates):
    parts: list[nn.Module] = []
    inputs = 3
    for features in (32, 64, 128):
        for _ in range(2):
            parts += [nn.Conv2d(inputs, features, 3, padding=1), nn.ReLU()]
            parts += [nn.BatchNorm2d(features)]
            inputs = features
        parts += [nn.MaxPool2d(2), nn.Dropout(rates[0])]
    return nn.Sequential(
        *(*parts, FlattenChannelsLast(), nn.Linear(2048, 1024), nn.ReLU(), nn.BatchNorm1d(1024)),
        *(nn.Dropout(rates[1]), nn.Linear(1024, 100), nn.ReLU(), nn.BatchNorm1d(100)),
        nn.Linear(100, protocol.NUM_CLASSES),
    )


class BasicBlock(nn.Module):
    def __init__(self, inputs, features, stride):
        super().__init__()
        self.stride, self.padding = stride, features - inputs
        self.conv1 = nn.Conv2d(inputs, features, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(features)
        self.conv2 = nn.Conv2d(features, features, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(features)

    def forward(self, x):
        y = F.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        if self.padding:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.padding))
        return F.relu(x + y)


def resnet(rates):
    blocks, inputs = [], 16
    for stage, block in itertools.product(range(3), range(3)):
        features = 16 * 2**stage
        blocks.append(BasicBlock(inputs, features, 2 if stage and not block else 1))
        inputs = features
    return nn.Sequential(
        *(nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(), *blocks),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, protocol.NUM_CLASSES)),
    )


def speedrun(rates):
    parts: list[nn.Module] = [nn.Conv2d(3, 24, 2), nn.GELU()]
    inputs = 24
    for features in (64, 256, 256):
        for pool in (True, False):
            parts += [nn.Conv2d(inputs, features, 3, padding=1, bias=False)]
            parts += [nn.MaxPool2d(2)] if pool else []
            norm = nn.BatchNorm2d(features, eps=1e-12, momentum=0.4)
            norm.weight.requires_grad_(False)
            parts += [norm, nn.GELU()]
            inputs = features
    head = nn.Linear(256, protocol.NUM_CLASSES, bias=False)
    parts += [nn.MaxPool2d(3), nn.Flatten(), head, Function(lambda x: x / 256)]
    return nn.Sequential(*parts)


def create(model: str, rates: tuple[float, ...]) -> nn.Module:
    return globals()[model](rates).to(memory_format=torch.channels_last)


def make_step(net: nn.Module, forward: Any) -> Any:
    """Returns the training step (images, labels) -> (loss, number of right answers)."""
    trainable = [parameter for parameter in net.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(
        trainable, protocol.LEARNING_RATE, momentum=protocol.MOMENTUM, fused=True
    )

    def step(images, labels):
        optimizer.zero_grad(set_to_none=True)
        logits = forward(images)
        loss = F.cross_entropy(logits, labels)
        loss.backward()
        optimizer.step()
        return loss.detach(), (logits.detach().argmax(1) == labels).sum()

    return step


def prepare(model: str, batch_size: int) -> protocol.Runner:
    net = create(model, protocol.DROPOUT.get(model, ()))
    torch._dynamo.reset()
    forward = torch.compile(net, dynamic=False) if COMPILED else net
    step = make_step(net, forward)
    images, labels = protocol.make_data(model)
    # Rows of [n, height, width, channels] are batches in channels-last layout without a copy.
    all_images = torch.from_numpy(protocol.normalize(images))
    all_labels = torch.from_numpy(labels.astype(np.int64))
    batches = protocol.index_batches(batch_size)

    def train(num_steps: int) -> float:
        net.train()
        begun = time.perf_counter()
        total_loss, total_correct = torch.zeros(()), torch.zeros((), dtype=torch.int64)
        for _ in range(num_steps):
            rows = torch.from_numpy(next(batches))
            loss, correct = step(all_images[rows].permute(0, 3, 1, 2), all_labels[rows])
            total_loss += loss
            total_correct += correct
        return time.perf_counter() - begun

    def infer(num_batches: int) -> float:
        net.eval()
        begun = time.perf_counter()
        with torch.inference_mode():
            for _ in range(num_batches):
                forward(all_images[:batch_size].permute(0, 3, 1, 2))
        return time.perf_counter() - begun

    return protocol.Runner(train, infer)


def put_layers(net: nn.Module, layers: protocol.Variables) -> None:
    """Sets the weights, matched in the order of calls."""
    kinds = (nn.Conv2d, nn.Linear, nn.BatchNorm1d, nn.BatchNorm2d)
    own = [module for module in net.modules() if isinstance(module, kinds)]
    for module, arrays in zip(own, layers, strict=True):
        values = {
            "weight": arrays.get("scale"),
            "bias": arrays.get("bias"),
            "running_mean": arrays.get("mean"),
            "running_var": arrays.get("var"),
        }
        if "kernel" in arrays:
            kernel = arrays["kernel"]
            values["weight"] = kernel.transpose(3, 2, 0, 1) if kernel.ndim == 4 else kernel.T
        with torch.no_grad():
            for name, value in values.items():
                if value is not None:
                    getattr(module, name).copy_(torch.from_numpy(np.ascontiguousarray(value)))


def compute_losses(model: str, case: protocol.Case) -> dict[str, Any]:
    net = create(model, (0.0, 0.0))
    put_layers(net, case.layers)
    step = make_step(net, net)
    images = torch.from_numpy(protocol.normalize(case.images)).permute(0, 3, 1, 2)
    labels = torch.from_numpy(case.labels.astype(np.int64))
    losses = [float(step(images, labels)[0]) for _ in range(3)]
    trainable = sum(p.numel() for p in net.parameters() if p.requires_grad)
    moving = sum(b.numel() for name, b in net.named_buffers() if "running" in name)
    return {"parameters": trainable, "variables": trainable + moving, "losses": losses}


def train_once(path: str, num_steps: int, batch_size: int) -> None:
    """Trains and evaluates the simple CNN on uint8 images, converted batch by batch."""
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: torch.from_numpy(array) for name, array in file.items()}
    net = create("simple_cnn", protocol.DROPOUT["simple_cnn"])
    step = make_step(net, net)

    def convert(images):
        return (images.float() / 255).permute(0, 3, 1, 2)

    for rows in torch.randperm(len(arrays["train_labels"])).split(batch_size)[:num_steps]:
        step(convert(arrays["train_images"][rows]), arrays["train_labels"][rows].long())
    net.eval()
    with torch.inference_mode():
        for images in arrays["test_images"].split(500):
            net(convert(images))


if __name__ == "__main__":
    if COMPILED:  # fails here where there is no C++ compiler
        torch.compile(nn.Linear(1, 1))(torch.zeros(1, 1))
    protocol.serve(
        protocol.timing_handlers(prepare, compute_losses) | {"train_once": train_once},
        {"python": platform.python_version(), "torch": torch.__version__},
    )
