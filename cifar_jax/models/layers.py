"""The blocks that every model is built from."""

import functools

from flax import linen as nn

from cifar_jax import ops

Conv = functools.partial(nn.Conv, conv_general_dilated=ops.conv_general_dilated)
BatchNorm = nn.BatchNorm
max_pool = ops.max_pool
