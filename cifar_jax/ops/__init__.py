"""Convolution, pooling and normalisation whose gradients are fast.

On a GPU or a TPU the convolutions are XLA's own, and what only a CPU needs is left out: the choice
is made by platform when a program is lowered.
"""

from cifar_jax.ops.activation import gelu, relu
from cifar_jax.ops.conv import conv_general_dilated
from cifar_jax.ops.dense import dot_general
from cifar_jax.ops.normalization import normalize_batch
from cifar_jax.ops.pooling import max_pool
from cifar_jax.ops.stock import stock_operations

__all__ = [
    "conv_general_dilated",
    "dot_general",
    "gelu",
    "max_pool",
    "normalize_batch",
    "relu",
    "stock_operations",
]
