"""The fully connected network."""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from cifar_jax.errors import UserError
from cifar_jax.models.layers import Dense

# Each activation with the initialiser that keeps the variance of its inputs: Glorot and Bengio
# (2010) for the saturating ones, He et al. (2015) for ReLU.
ACTIVATIONS = {
    "sigmoid": (nn.sigmoid, nn.initializers.glorot_normal()),
    "tanh": (nn.tanh, nn.initializers.glorot_normal()),
    "relu": (nn.relu, nn.initializers.he_normal()),
}


class MLP(nn.Module):
    """Dense layers on the flattened image: 418,060 parameters for 28x28x1 and ten classes.

    Attributes:
      num_classes: the number of logits.
      dtype: of the computation; parameters and logits are float32.
      hidden_sizes: the widths of the hidden layers.
      activation: "sigmoid", "tanh" or "relu", after each hidden layer.
    """

    num_classes: int
    dtype: Any = jnp.float32
    hidden_sizes: tuple[int, ...] = (500, 50)
    activation: str = "sigmoid"

    def __post_init__(self) -> None:
        if self.activation not in ACTIVATIONS:
            known = ", ".join(ACTIVATIONS)
            raise UserError(f"mlp has no activation {self.activation!r}: choose one of {known}")
        super().__post_init__()

    @nn.compact
    def __call__(self, images, train: bool = False):
        """Returns logits [batch, num_classes] of images [batch, height, width, channels]."""
        activate, kernel_init = ACTIVATIONS[self.activation]
        x = images.reshape(images.shape[0], -1)
        for size in self.hidden_sizes:
            x = activate(Dense(size, dtype=self.dtype, kernel_init=kernel_init)(x))
        return Dense(self.num_classes, dtype=jnp.float32, name="head")(x)
