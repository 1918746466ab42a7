"""Residual networks: ResNet with basic blocks, and wide ResNet with pre-activation."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import linen as nn

from cifar_jax.errors import UserError
from cifar_jax.models.layers import BatchNorm, Conv, Dense, max_pool, relu

he_normal = nn.initializers.he_normal()
# Padding by one pixel on every side, unlike "SAME", keeps a strided window centred on the pixel
# that the shortcut takes.
Conv3x3 = functools.partial(
    Conv, kernel_size=(3, 3), padding=1, use_bias=False, kernel_init=he_normal
)
Conv1x1 = functools.partial(Conv, kernel_size=(1, 1), use_bias=False, kernel_init=he_normal)


class Layout(NamedTuple):
    """The number of blocks in each stage, the first stage's width, and the kind of shortcut."""

    stage_sizes: tuple[int, ...]
    features: int
    projection: bool


LAYOUTS = {
    18: Layout((2, 2, 2, 2), 64, projection=True),
    34: Layout((3, 4, 6, 3), 64, projection=True),
    20: Layout((3, 3, 3), 16, projection=False),
    32: Layout((5, 5, 5), 16, projection=False),
    44: Layout((7, 7, 7), 16, projection=False),
    56: Layout((9, 9, 9), 16, projection=False),
    110: Layout((18, 18, 18), 16, projection=False),
}


STEM_STRIDES = (1, 2, 4)


def choose_stem_stride(image_size: int) -> int:
    """Returns the largest stride of the stem that leaves at least 32x32 positions, or 1."""
    return max(stride for stride in STEM_STRIDES if stride == 1 or image_size >= 32 * stride)


def _check_stem(stride: int) -> None:
    if stride not in STEM_STRIDES:
        raise UserError(f"a stem cannot have a stride of {stride}: choose 1, 2 or 4")


def _make_stem(conv: Callable[..., Any], features: int, stride: int) -> Callable[..., Any]:
    """Returns the stem: a 3x3 convolution with the same parameters for every stride.

    Half of a stride of 4 comes from pooling.
    """
    layer = conv(features, strides=min(stride, 2), name="stem_conv")
    return (lambda images: max_pool(layer(images), (2, 2), (2, 2))) if stride == 4 else layer


def _subsample_and_pad(x, features: int, strides: int):
    """Returns the shortcut without parameters (option A): every n-th pixel, new channels zero."""
    x = x[:, ::strides, ::strides]
    return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, features - x.shape[-1])))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions added to the input, or to its shortcut where the shape changes.

    The last scale starts at zero, so that a new block returns its input (Goyal et al., 2017,
    "Accurate, Large Minibatch SGD").
    """

    features: int
    strides: int
    projection: bool
    conv: Callable[..., Any]
    norm: Callable[..., Any]

    @nn.compact
    def __call__(self, inputs):
        """Maps [batch, height, width, channels] to [..., height / strides, ..., features]."""
        x = self.conv(self.features, strides=self.strides)(inputs)
        x = self.norm(activation=relu)(x)
        x = self.conv(self.features)(x)
        shortcut = inputs
        if inputs.shape != x.shape and self.projection:
            shortcut = Conv1x1(
                self.features, strides=self.strides, dtype=x.dtype, name="shortcut_conv"
            )(inputs)
            shortcut = self.norm(name="shortcut_norm")(shortcut)
        elif inputs.shape != x.shape:
            shortcut = _subsample_and_pad(inputs, self.features, self.strides)
        return self.norm(scale_init=nn.initializers.zeros, activation=relu)(x, shortcut=shortcut)


class ResNet(nn.Module):
    """The residual network for small images: a 3x3 stem and no pooling before the mean.

    He et al. (2016), "Deep Residual Learning for Image Recognition". Depths 18 and 34 are the
    ImageNet layouts (four stages from 64 channels, projection shortcuts) with 11,173,962 and
    21,282,122 parameters. Depths 20, 32, 44, 56 and 110 are the paper's CIFAR-10 networks (three
    stages from 16 channels, shortcuts without parameters); depth 20 has 269,722.

    Attributes:
      num_classes: the number of logits.
      dtype: of the computation; parameters and logits are float32.
      depth: 18, 34, 20, 32, 44, 56 or 110.
      stem_stride: 1, 2 or 4, for larger images.
    """

    num_classes: int
    dtype: Any = jnp.float32
    depth: int = 18
    stem_stride: int = 1

    def __post_init__(self) -> None:
        _check_stem(self.stem_stride)
        if self.depth not in LAYOUTS:
            known = ", ".join(map(str, LAYOUTS))
            raise UserError(f"resnet has no depth {self.depth}: choose one of {known}")
        super().__post_init__()

    @nn.compact
    def __call__(self, images, train: bool = False):
        """Returns logits [batch, num_classes] of images [batch, height, width, channels]."""
        layout = LAYOUTS[self.depth]
        conv = functools.partial(Conv3x3, dtype=self.dtype)
        norm = functools.partial(
            BatchNorm, use_running_average=not train, momentum=0.9, dtype=self.dtype
        )
        x = _make_stem(conv, layout.features, self.stem_stride)(images)
        x = norm(name="stem_norm", activation=relu)(x)
        for stage, num_blocks in enumerate(layout.stage_sizes):
            for block in range(num_blocks):
                x = BasicBlock(
                    features=layout.features * 2**stage,
                    strides=2 if stage > 0 and block == 0 else 1,
                    projection=layout.projection,
                    conv=conv,
                    norm=norm,
                    name=f"stage_{stage}_block_{block}",
                )(x)
        x = x.mean(axis=(1, 2))
        return Dense(self.num_classes, dtype=jnp.float32, name="head")(x)


class PreActivationBlock(nn.Module):
    """Normalisation and ReLU before each of two 3x3 convolutions, dropout between them."""

    features: int
    strides: int
    conv: Callable[..., Any]
    norm: Callable[..., Any]
    dropout: Callable[..., Any]

    @nn.compact
    def __call__(self, inputs):
        """Maps [batch, height, width, channels] to [..., height / strides, ..., features]."""
        activated = self.norm()(inputs)
        shortcut = inputs
        if inputs.shape[-1] != self.features:
            shortcut = Conv1x1(
                self.features, strides=self.strides, dtype=activated.dtype, name="shortcut_conv"
            )(activated)
        x = self.conv(self.features, strides=self.strides)(activated)
        x = self.dropout()(self.norm()(x))
        return shortcut + self.conv(self.features)(x)


class WideResNet(nn.Module):
    """WRN-d-k: three stages of pre-activation blocks, k times as wide as the CIFAR ResNet.

    Zagoruyko and Komodakis (2016), "Wide Residual Networks", on the blocks of He et al. (2016),
    "Identity Mappings in Deep Residual Networks". WRN-28-10 has 36,479,194 parameters.

    Attributes:
      num_classes: the number of logits.
      dtype: of the computation; parameters and logits are float32.
      depth: 6n + 4, for n blocks per stage.
      widen_factor: the k that multiplies the stages' 16, 32 and 64 channels.
      dropout_rate: between the two convolutions of a block.
      stem_stride: 1, 2 or 4, for larger images.
    """

    num_classes: int
    dtype: Any = jnp.float32
    depth: int = 28
    widen_factor: int = 10
    dropout_rate: float = 0.0
    stem_stride: int = 1

    def __post_init__(self) -> None:
        _check_stem(self.stem_stride)
        if self.depth < 10 or (self.depth - 4) % 6:
            raise UserError(f"wide_resnet has no depth {self.depth}: choose 10, 16, 22, 28, ...")
        super().__post_init__()

    @nn.compact
    def __call__(self, images, train: bool = False):
        """Returns logits [batch, num_classes] of images [batch, height, width, channels]."""
        conv = functools.partial(Conv3x3, dtype=self.dtype)
        norm = functools.partial(
            BatchNorm,
            use_running_average=not train,
            momentum=0.9,
            dtype=self.dtype,
            activation=relu,
        )
        dropout = functools.partial(nn.Dropout, self.dropout_rate, deterministic=not train)
        x = _make_stem(conv, 16, self.stem_stride)(images)
        for stage in range(3):
            for block in range((self.depth - 4) // 6):
                x = PreActivationBlock(
                    features=16 * self.widen_factor * 2**stage,
                    strides=2 if stage > 0 and block == 0 else 1,
                    conv=conv,
                    norm=norm,
                    dropout=dropout,
                    name=f"stage_{stage}_block_{block}",
                )(x)
        x = norm(name="final_norm")(x).mean(axis=(1, 2))
        return Dense(self.num_classes, dtype=jnp.float32, name="head")(x)
