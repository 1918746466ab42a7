"""Gradients of a convolution's kernel as matrix products over chunks of the batch."""

import jax
import jax.numpy as jnp
from jax import lax

from cifar_jax.ops.chunks import sum_chunks


def by_patches(images, gradient, kernel_size, strides, padding):
    """Sums, over chunks of images, the product of the output gradient and the image patches."""
    _, height, width, features = gradient.shape
    channels, dtype = images.shape[-1], images.dtype
    rows, columns = kernel_size
    wide = jnp.promote_types(dtype, jnp.float32)

    def one(images, gradient):
        images = jnp.pad(images.astype(wide), ((0, 0), *padding, (0, 0)))
        patches = [
            images[
                :,
                i : i + (height - 1) * strides[0] + 1 : strides[0],
                j : j + (width - 1) * strides[1] + 1 : strides[1],
            ]
            for i in range(rows)
            for j in range(columns)
        ]
        # Behind the barrier the patches are made once; fused into the product they would be made anew
        # for each of its elements.
        patches = lax.optimization_barrier(jnp.concatenate(patches, -1))
        # The small operand on the left: the one whose columns are summed over is repacked slowly.
        return jnp.einsum("nhwo,nhwp->op", gradient.astype(wide), patches)

    total = sum_chunks(one, images, gradient, size=max(1, 1024 // (height * width)))
    return total.T.reshape(rows, columns, channels, features).astype(dtype)
