"""The models in PyTorch, the reference of models/test_reference.py.

Each function takes the image's side and channels and returns a module for ten classes, whose
layers are defined in the order of our calls. Dropout is left out.
"""

from torch import nn
from torch.nn import functional as F


class FlattenChannelsLast(nn.Module):
    def forward(self, x):
        return x.permute(0, 2, 3, 1).flatten(1)


class MeanOfPixels(nn.Module):
    def forward(self, x):
        return x.mean(dim=(2, 3))


def mlp(size, channels):
    return nn.Sequential(
        FlattenChannelsLast(),
        *(nn.Linear(size * size * channels, 500), nn.Sigmoid()),
        *(nn.Linear(500, 50), nn.Sigmoid()),
        nn.Linear(50, 10),
    )


def simple_cnn(size, channels):
    return nn.Sequential(
        *(nn.Conv2d(channels, 32, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(32, 32, 3, padding=1), nn.ReLU()),
        *(nn.MaxPool2d(2), FlattenChannelsLast()),
        *(nn.Linear(32 * (size // 2) ** 2, 512), nn.ReLU()),
        nn.Linear(512, 10),
    )


def bn_cnn(size, channels):
    layers = []
    for features in (64, 128, 128, 256):
        layers += [nn.Conv2d(channels, features, 3, padding=1), nn.ReLU()]
        layers += [nn.MaxPool2d(2), nn.BatchNorm2d(features)]
        channels = features
    layers += [FlattenChannelsLast()]
    width = channels * (size // 16) ** 2
    for features in (256, 128, 64):
        layers += [nn.Linear(width, features), nn.ReLU(), nn.BatchNorm1d(features)]
        width = features
    return nn.Sequential(*layers, nn.Linear(width, 10))


def vgg_bn(size, channels):
    layers = []
    for features in (32, 64, 128):
        for _ in range(2):
            layers += [nn.Conv2d(channels, features, 3, padding=1), nn.ReLU()]
            layers += [nn.BatchNorm2d(features)]
            channels = features
        layers += [nn.MaxPool2d(2)]
    layers += [FlattenChannelsLast()]
    layers += [nn.Linear(128 * (size // 8) ** 2, 1024), nn.ReLU(), nn.BatchNorm1d(1024)]
    layers += [nn.Linear(1024, 100), nn.ReLU(), nn.BatchNorm1d(100)]
    return nn.Sequential(*layers, nn.Linear(100, 10))


def lenet(size, channels):
    return nn.Sequential(
        *(nn.Conv2d(channels, 6, 5), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2)),
        FlattenChannelsLast(),
        *(nn.Linear(16 * (((size - 4) // 2 - 4) // 2) ** 2, 120), nn.ReLU()),
        *(nn.Linear(120, 84), nn.ReLU()),
        nn.Linear(84, 10),
    )


class BasicBlock(nn.Module):
    def __init__(self, inputs, outputs, stride, projection):
        super().__init__()
        self.inputs, self.outputs, self.stride = inputs, outputs, stride
        self.residual = nn.Sequential(
            *(nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)),
            *(nn.ReLU(), nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)),
        )
        self.projection = None
        if projection and (stride != 1 or inputs != outputs):
            conv = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.projection = nn.Sequential(conv, nn.BatchNorm2d(outputs))
        # After the projection, which is the order in which our block makes its layers.
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, x):
        if self.projection:
            shortcut = self.projection(x)
        else:
            shortcut = x[:, :, :: self.stride, :: self.stride]
            shortcut = F.pad(shortcut, (0, 0, 0, 0, 0, self.outputs - self.inputs))
        return F.relu(self.norm(self.residual(x)) + shortcut)


def resnet(size, channels, depth=18):
    width, sizes = (64, [2, 2, 2, 2]) if depth == 18 else (16, [(depth - 2) // 6] * 3)
    stem = nn.Conv2d(channels, width, 3, 1, 1, bias=False)
    layers = [stem, nn.BatchNorm2d(width), nn.ReLU()]
    inputs = width
    for stage, num_blocks in enumerate(sizes):
        for block in range(num_blocks):
            stride = 2 if stage and not block else 1
            layers += [BasicBlock(inputs, width * 2**stage, stride, depth == 18)]
            inputs = width * 2**stage
    return nn.Sequential(*layers, MeanOfPixels(), nn.Linear(inputs, 10))


class WideBlock(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inputs)
        self.shortcut = None
        if inputs != outputs:
            self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)

    def forward(self, x):
        activated = F.relu(self.norm1(x))
        shortcut = self.shortcut(activated) if self.shortcut else x
        return shortcut + self.conv2(F.relu(self.norm2(self.conv1(activated))))


def wide_resnet(size, channels, depth, widen_factor):
    layers = [nn.Conv2d(channels, 16, 3, 1, 1, bias=False)]
    inputs = 16
    for stage in range(3):
        for block in range((depth - 4) // 6):
            width = 16 * widen_factor * 2**stage
            layers += [WideBlock(inputs, width, 2 if stage and not block else 1)]
            inputs = width
    layers += [nn.BatchNorm2d(inputs), nn.ReLU(), MeanOfPixels()]
    return nn.Sequential(*layers, nn.Linear(inputs, 10))


class Scale(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return x * self.factor


class Shortcut(nn.Module):
    def __init__(self, layers, activation):
        super().__init__()
        self.layers, self.activation = nn.Sequential(*layers), activation

    def forward(self, x):
        return self.activation(x + self.layers(x))


def speedrun(size, channels, group_features=(64, 256, 256), group_convs=2, activation="gelu"):
    activate = {"gelu": nn.GELU, "relu": nn.ReLU, "silu": nn.SiLU}[activation]

    def conv(inputs, width):
        return nn.Conv2d(inputs, width, 3, padding="same", bias=False)

    def norm(width):
        return nn.BatchNorm2d(width, eps=1e-12, momentum=0.4)

    layers = [nn.Conv2d(channels, 8 * channels, 2), nn.GELU()]
    inputs = 8 * channels
    for width in group_features:
        layers += [conv(inputs, width), nn.MaxPool2d(2), norm(width), activate()]
        second = [conv(width, width), norm(width)]
        if group_convs == 3:
            members = [*second, activate(), conv(width, width), norm(width)]
            layers += [Shortcut(members, activate())]
        else:
            layers += [*second, activate()]
        inputs = width
    layers += [nn.MaxPool2d(3), nn.Flatten(), nn.Linear(inputs, 10, bias=False), Scale(1 / inputs)]
    return nn.Sequential(*layers)
