"""Convolution, pooling and normalisation whose gradients are fast on the CPU too.

On a GPU or a TPU these are XLA's own operations and nothing else: the choice is made by platform
when a program is lowered.
"""

from cifar_jax.ops.conv import conv_general_dilated
from cifar_jax.ops.dense import dot_general
from cifar_jax.ops.normalization import normalize_batch
from cifar_jax.ops.pooling import max_pool

__all__ = ["conv_general_dilated", "dot_general", "max_pool", "normalize_batch"]
