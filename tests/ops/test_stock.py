"""Within `stock_operations` our operations are XLA's, and only there."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cifar_jax import ops

images = jnp.asarray(np.random.default_rng(0).normal(size=(2, 6, 6, 3)), jnp.float32)
kernel = jnp.asarray(np.random.default_rng(1).normal(size=(3, 3, 3, 4)), jnp.float32)
CALLS = {
    "conv": lambda x: ops.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    ),
    "dot": lambda x: ops.dot_general(x[:, 0, 0], kernel[0, 0], (((1,), (0,)), ((), ()))),
    "max_pool": lambda x: ops.max_pool(x, (2, 2), strides=(2, 2)),
    "gelu": ops.gelu,
    "relu": ops.relu,
}


@pytest.mark.parametrize("name", CALLS)
def test_the_switch_takes_xlas_operation(name):
    def trace():
        return str(jax.make_jaxpr(lambda x: CALLS[name](x))(images))

    ours = trace()
    with ops.stock_operations():
        stock = trace()
        value = CALLS[name](images)
    assert trace() == ours != stock
    assert "platform" not in stock
    assert "custom_vjp" not in stock
    np.testing.assert_allclose(value, CALLS[name](images), atol=1e-5)
