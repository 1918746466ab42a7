"""Plain convolutional networks: convolutions, max pooling, dense layers."""

import functools
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from cifar_jax.models.layers import BatchNorm, Conv, Dense, max_pool, relu

he_normal = nn.initializers.he_normal()
Conv3x3 = functools.partial(Conv, kernel_size=(3, 3), kernel_init=he_normal)
HeDense = functools.partial(Dense, kernel_init=he_normal)


def halve(x):
    """Max pooling over 2x2 windows; drops the last row or column of an odd size."""
    return max_pool(x, (2, 2), strides=(2, 2))


def flatten_features(x):
    """Reshapes [batch, ...] to [batch, features]."""
    return x.reshape(x.shape[0], -1)


class SimpleCNN(nn.Module):
    """Two convolutions, one pooling and one hidden layer: 4,210,090 parameters on CIFAR-10.

    Attributes:
      num_classes: the number of logits.
      dtype: of the computation; parameters and logits are float32.
      dropout_rate: after the hidden layer.
    """

    num_classes: int
    dtype: Any = jnp.float32
    dropout_rate: float = 0.5

    @nn.compact
    def __call__(self, images, train: bool = False):
        """Returns logits [batch, num_classes] of images [batch, height, width, channels]."""
        x = relu(Conv3x3(32, dtype=self.dtype)(images))
        x = halve(relu(Conv3x3(32, dtype=self.dtype)(x)))
        x = flatten_features(x)
        x = relu(HeDense(512, dtype=self.dtype)(x))
        x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
        return Dense(self.num_classes, dtype=jnp.float32, name="head")(x)


class BNCNN(nn.Module):
    """Convolutions and dense layers, each with dropout and then batch normalisation.

    After a convolution come ReLU, 2x2 max pooling, dropout and batch normalisation (Ioffe and
    Szegedy, 2015); after a dense layer ReLU, dropout and batch normalisation. Dropout before a
    normalisation makes the variance larger in training than in evaluation (Li et al., 2019,
    "Understanding the Disharmony between Dropout and Batch Normalization by Variance Shift"), so
    its rates are small.

    Attributes:
      num_classes: the number of logits.
      dtype: of the computation; parameters and logits are float32.
      conv_features: the widths of the convolutions; each halves the image, so a 32x32 image
        allows at most five.
      dense_features: the widths of the hidden dense layers.
      dropout_rate: after each convolution.
      dense_dropout_rate: after each hidden dense layer.
    """

    num_classes: int
    dtype: Any = jnp.float32
    conv_features: tuple[int, ...] = (64, 128, 128, 256)
    dense_features: tuple[int, ...] = (256, 128, 64)
    dropout_rate: float = 0.05
    dense_dropout_rate: float = 0.1

    @nn.compact
    def __call__(self, images, train: bool = False):
        """Returns logits [batch, num_classes] of images [batch, height, width, channels]."""
        norm = functools.partial(
            BatchNorm, use_running_average=not train, momentum=0.9, dtype=self.dtype
        )
        dropout = functools.partial(nn.Dropout, deterministic=not train)
        x = images
        for features in self.conv_features:
            x = halve(relu(Conv3x3(features, dtype=self.dtype)(x)))
            x = norm()(dropout(self.dropout_rate)(x))
        x = flatten_features(x)
        for features in self.dense_features:
            x = relu(HeDense(features, dtype=self.dtype)(x))
            x = norm()(dropout(self.dense_dropout_rate)(x))
        return Dense(self.num_classes, dtype=jnp.float32, name="head")(x)


class VGGBN(nn.Module):
    """Three pairs of 3x3 convolutions with batch normalisation after each ReLU.

    Small filters in pairs come from VGG (Simonyan and Zisserman, 2015). On CIFAR-10 it has
    2,491,838 parameters and 3,144 moving statistics, 2,494,982 numbers in all.

    Attributes:
      num_classes: the number of logits.
      dtype: of the computation; parameters and logits are float32.
      dropout_rate: after each pooling.
      dense_dropout_rate: after the first hidden dense layer.
    """

    num_classes: int
    dtype: Any = jnp.float32
    dropout_rate: float = 0.25
    dense_dropout_rate: float = 0.5

    @nn.compact
    def __call__(self, images, train: bool = False):
        """Returns logits [batch, num_classes] of images [batch, height, width, channels]."""
        norm = functools.partial(
            BatchNorm, use_running_average=not train, momentum=0.9, dtype=self.dtype
        )
        dropout = functools.partial(nn.Dropout, deterministic=not train)
        x = images
        for features in (32, 64, 128):
            for _ in range(2):
                x = norm()(relu(Conv3x3(features, dtype=self.dtype)(x)))
            x = dropout(self.dropout_rate)(halve(x))
        x = norm()(relu(HeDense(1024, dtype=self.dtype)(flatten_features(x))))
        x = dropout(self.dense_dropout_rate)(x)
        x = norm()(relu(HeDense(100, dtype=self.dtype)(x)))
        return Dense(self.num_classes, dtype=jnp.float32, name="head")(x)


class LeNet(nn.Module):
    """The layout of LeNet-5 with ReLU and max pooling: 62,006 parameters on CIFAR-10.

    LeCun et al. (1998), "Gradient-based learning applied to document recognition".

    Attributes:
      num_classes: the number of logits.
      dtype: of the computation; parameters and logits are float32.
    """

    num_classes: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images, train: bool = False):
        """Returns logits [batch, num_classes] of images [batch, height, width, channels]."""
        x = images
        for features in (6, 16):
            conv = Conv(features, (5, 5), padding="VALID", kernel_init=he_normal, dtype=self.dtype)
            x = halve(relu(conv(x)))
        x = flatten_features(x)
        for features in (120, 84):
            x = relu(HeDense(features, dtype=self.dtype)(x))
        return Dense(self.num_classes, dtype=jnp.float32, name="head")(x)
