"""The network of the CIFAR-10 speed records, with its initial values.

Jordan (2024), "94% on CIFAR-10 in 3.29 Seconds on a Single GPU", in the layout of the later version
that is trained with Muon.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from cifar_jax.errors import UserError
from cifar_jax.models.layers import BatchNorm, Conv, Dense, gelu, max_pool, relu

ACTIVATIONS = {"gelu": gelu, "relu": relu, "silu": nn.silu}
# Uniform within 1 / sqrt(fan in).
fan_in_uniform = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def identity_conv(key, shape, dtype=jnp.float32):
    """Returns an initial kernel [height, width, in, out] whose first filters copy a channel.

    Filter i below min(in, out) is 1 at the centre of channel i and 0 elsewhere; the others are
    uniform within 1 / sqrt(fan in).
    """
    height, width, inputs, outputs = shape
    channels = min(inputs, outputs)
    kernel = fan_in_uniform(key, shape, dtype).at[..., :channels].set(0)
    return kernel.at[height // 2, width // 2, :channels, :channels].set(jnp.eye(channels))


def unit_deviation(key, shape, dtype=jnp.float32):
    """Returns a uniform initial kernel, scaled to a sample standard deviation of exactly one."""
    kernel = fan_in_uniform(key, shape, dtype)
    return kernel / kernel.std(ddof=1)


def whitening_kernel(images: jax.Array | np.ndarray, eps: float = 5e-4) -> jax.Array:
    """Returns the kernel for the stem that makes the 2x2 patches of `images` uncorrelated.

    Its filters are the eigenvectors of the patches' uncentred second moment, each divided by
    sqrt(eigenvalue + eps), and their negatives.

    Args:
      images: normalised floats [num_images, height, width, channels]; a few thousand suffice.
      eps: added to the eigenvalues, so that directions without variance stay bounded.

    Returns:
      float32 kernel [2, 2, channels, 8 * channels], for the parameter "stem/kernel".
    """
    images = jnp.asarray(images, jnp.float32)
    _, height, width, channels = images.shape
    corners = [images[:, y : height - 1 + y, x : width - 1 + x] for y in (0, 1) for x in (0, 1)]
    patches = jnp.concatenate(corners, axis=-1).reshape(-1, 4 * channels)
    second_moment = jnp.matmul(patches.T, patches, precision="highest") / len(patches)
    eigenvalues, eigenvectors = np.linalg.eigh(np.asarray(second_moment, np.float64))
    filters = eigenvectors / np.sqrt(eigenvalues + eps)
    filters = np.concatenate([filters, -filters], axis=1)
    return jnp.asarray(filters.reshape(2, 2, channels, -1), jnp.float32)


class ConvGroup(nn.Module):
    """A convolution, 2x2 max pooling and more convolutions, each followed by norm and activation.

    With three or more convolutions, the first one's result is added before the last activation.
    """

    features: int
    conv: Any
    norm: Any
    num_convs: int = 2

    @nn.compact
    def __call__(self, x):
        """Maps [batch, height, width, channels] to [batch, height / 2, width / 2, features]."""
        x = max_pool(self.conv(self.features)(x), (2, 2), strides=(2, 2))
        x = first = self.norm()(x)
        for _ in range(2, self.num_convs):
            x = self.norm()(self.conv(self.features)(x))
        x = self.conv(self.features)(x)
        return self.norm()(x, shortcut=first if self.num_convs > 2 else None)


class Speedrun(nn.Module):
    """A whitening stem and three groups of two convolutions: 1,971,640 parameters on CIFAR-10.

    The stem, a 2x2 convolution with eight filters per channel, starts with the `whitening_kernel`
    of the training images; the recipes do not train it.

    Attributes:
      num_classes: the number of logits.
      dtype: of the computation; parameters and logits are float32.
      group_features: the widths of the groups.
      group_convs: convolutions per group, at least 2; groups of 3 or more have a shortcut.
      activation: "gelu", "relu" or "silu", after each norm; after the stem it is always GELU.
    """

    num_classes: int
    dtype: Any = jnp.float32
    group_features: tuple[int, ...] = (64, 256, 256)
    group_convs: int = 2
    activation: str = "gelu"

    def __post_init__(self):
        """Checks what the registry does not."""
        if self.activation not in ACTIVATIONS:
            known = ", ".join(ACTIVATIONS)
            raise UserError(
                f"model speedrun has no activation {self.activation!r}: choose one of {known}"
            )
        if self.group_convs < 2:
            raise UserError(
                f"model speedrun: group_convs must be at least 2, not {self.group_convs}"
            )
        super().__post_init__()

    def params_from_data(self, images: jax.Array) -> dict[str, Any]:
        """Returns the parameters that depend on training images: the stem's kernel.

        Args:
          images: normalised floats [num_images, height, width, channels].
        """
        return {"stem": {"kernel": whitening_kernel(images)}}

    @nn.compact
    def __call__(self, images, train: bool = False):
        """Returns logits [batch, num_classes] of images [batch, height, width, channels]."""
        conv = functools.partial(
            Conv, kernel_size=(3, 3), use_bias=False, kernel_init=identity_conv, dtype=self.dtype
        )
        norm = functools.partial(
            BatchNorm,
            use_running_average=not train,
            use_scale=False,
            momentum=0.6,
            epsilon=1e-12,
            dtype=self.dtype,
            activation=ACTIVATIONS[self.activation],
        )
        x = Conv(
            8 * images.shape[-1],
            (2, 2),
            padding="VALID",
            kernel_init=fan_in_uniform,
            dtype=self.dtype,
            name="stem",
        )(images)
        x = gelu(x)
        for i, features in enumerate(self.group_features):
            x = ConvGroup(features, conv, norm, self.group_convs, name=f"group_{i}")(x)
        x = max_pool(x, (3, 3), strides=(3, 3))
        x = x.reshape(x.shape[0], -1)
        head = Dense(
            self.num_classes,
            use_bias=False,
            kernel_init=unit_deviation,
            dtype=jnp.float32,
            name="head",
        )
        return head(x) / x.shape[-1]
