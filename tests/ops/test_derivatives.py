"""Forward mode and second derivatives through the operations agree with XLA's own."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from cifar_jax import ops
from cifar_jax.models import layers
from cifar_jax.ops.stock import stock_operations
from cifar_jax.parallel import devices
from tests.few import slow

pytestmark = pytest.mark.numbers

conv = functools.partial(
    ops.conv_general_dilated, padding="SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
)


def dense(x, kernel):
    return layers.Dense(kernel.shape[1], use_bias=False).apply({"params": {"kernel": kernel}}, x)


def normalize(layer, activation, x, scale):
    variables = {"params": {"scale": scale, "bias": scale**2}, "batch_stats": STATISTICS}
    if layer is nn.BatchNorm:
        y, _ = layer(False).apply(variables, x, mutable=["batch_stats"])
        return activation(y + jnp.cos(x))
    given = {"shortcut": jnp.cos(x), "mutable": ["batch_stats"]}
    return layer(False, activation=activation).apply(variables, x, **given)[0]


STATISTICS = {"mean": np.zeros(3, np.float32), "var": np.ones(3, np.float32)}
# Functions of two arrays with the arrays' shapes; if there is a second function, it is XLA's own.
OPERATIONS = {
    "convolution": (lambda x, k: conv(x, k, (1, 1)), (3, 8, 8, 3), (3, 3, 3, 5)),
    "convolution with strides": (lambda x, k: conv(x, k, (2, 2)), (3, 8, 8, 4), (3, 3, 4, 5)),
    "Winograd's": (lambda x, k: conv(x, k, (1, 1)), (2, 5, 5, 32), (3, 3, 32, 32)),
    "dense": (
        lambda x, k: layers.Dense(5, False).apply({"params": {"kernel": k}}, x),
        (4, 7),
        (7, 5),
    ),
    "pooling": (
        lambda x, k: ops.max_pool(jnp.sin(x * k), (2, 2), (2, 2)),
        (3, 7, 7, 3),
        (1, 1, 1, 3),
    ),
    **{
        f"normalisation and {name}": (
            functools.partial(normalize, layers.BatchNorm, getattr(ops, name)),
            (4, 2, 2, 3),
            (3,),
            functools.partial(normalize, nn.BatchNorm, getattr(ops, name)),
        )
        for name in ("relu", "gelu")
    },
}


def derivatives(function, args, tangents):
    """Returns first and second derivatives, by forward and reverse mode."""

    def loss(*args):
        y = function(*args)
        return (jnp.sin(y) * jnp.arange(y.size).reshape(y.shape)).mean()

    def rate(args):
        return jax.jvp(loss, args, tangents)[1]

    def slope(args):
        return sum(map(jnp.vdot, gradient(*args), tangents))

    def twice(first):
        return jax.vmap(lambda x: loss(x, args[1]))(jnp.stack([first, 2 * first])).sum()

    gradient = jax.grad(loss, (0, 1))
    return {
        "jvp": jax.jvp(function, args, tangents)[1],
        "linearize": jax.linearize(loss, *args)[1](*tangents),
        "forward over reverse": jax.jvp(gradient, args, tangents)[1],
        "reverse over forward": jax.grad(rate)(args),
        "reverse over reverse": jax.grad(slope)(args),
        "grad of vmap": jax.grad(twice)(args[0]),
    }


# On an accelerator these are XLA's own, by the same rule as the first convolution.
LIKE_THE_FIRST = ("convolution with strides", "Winograd's", "dense")


@pytest.mark.parametrize(
    ("name", "platform_taken"),
    [
        *((name, "cpu") for name in OPERATIONS if "gelu" not in name),
        *(slow(name, "cpu") for name in OPERATIONS if "gelu" in name),
        *((name, "accelerator") for name in OPERATIONS if name not in LIKE_THE_FIRST),
        *(slow(x, "accelerator") for x in LIKE_THE_FIRST),
    ],
    indirect=["platform_taken"],
)
def test_every_derivative_is_xlas(name, platform_taken):
    function, *shapes = OPERATIONS[name]
    reference = shapes.pop() if callable(shapes[-1]) else function
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        args, tangents = (tuple(map(rng.standard_normal, shapes)) for _ in range(2))
        found = devices.jit_once(functools.partial(derivatives, function))(args, tangents)
        with stock_operations():
            expected = devices.jit_once(functools.partial(derivatives, reference))(args, tangents)
    for kind in expected:
        for one, other in zip(*map(jax.tree.leaves, (found[kind], expected[kind])), strict=True):
            scale = np.abs(other).max()
            assert scale > 0
            np.testing.assert_allclose(one, other, rtol=0, atol=1e-12 * scale, err_msg=kind)


def test_of_several_largest_elements_both_modes_take_the_first():
    pool = functools.partial(ops.max_pool, window_shape=(2, 2), strides=(2, 2))
    images, tangent = jnp.ones((1, 4, 4, 1)), jnp.arange(16.0).reshape(1, 4, 4, 1)
    _, rates = jax.jvp(pool, (images,), (tangent,))
    assert rates.ravel().tolist() == [0, 2, 8, 10]
    (gradient,) = jax.vjp(pool, images)[1](jnp.ones_like(rates))
    assert jnp.vdot(gradient, tangent) == rates.sum()


@pytest.mark.parametrize("activation", [None, ops.relu, ops.gelu])
@pytest.mark.parametrize("param_dtype", [jnp.bfloat16, jnp.float64])
def test_a_norms_parameters_may_have_another_type(param_dtype, activation):
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        x = rng.standard_normal((6, 2, 2, 3)).astype(np.float32)
        norm = layers.BatchNorm(False, activation=activation, param_dtype=param_dtype)
        other = nn.BatchNorm(False, param_dtype=param_dtype)
        variables = norm.init(jax.random.key(0), x)

        def loss(act, layer, params, x):
            y, _ = layer.apply({**variables, "params": params}, x, mutable=["batch_stats"])
            return jnp.sin(3 * act(y.astype(jnp.float32))).sum()

        found, expected = (
            devices.jit_once(jax.grad(functools.partial(loss, *parts), (0, 1)))(
                variables["params"], x
            )
            for parts in ((lambda y: y, norm), (activation or (lambda y: y), other))
        )
    for one, theirs in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        assert one.dtype == theirs.dtype
        scale = np.abs(theirs).max()
        np.testing.assert_allclose(*map(np.float64, (one, theirs)), rtol=0, atol=0.02 * scale)
