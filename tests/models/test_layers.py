"""The models' blocks mean what Flax's do."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from cifar_jax.models.layers import BatchNorm, Conv, gelu, relu
from tests.few import some

pytestmark = pytest.mark.numbers


def draw(seed, shape, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


def close(found, expected, tolerance=1e-5):
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert one.dtype == other.dtype
        one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
        np.testing.assert_allclose(one, other, rtol=0, atol=tolerance * np.abs(other).max())


def train(module, variables, inputs, weights):
    """Output, running statistics, and the gradients by parameters and inputs."""

    @jax.jit
    def run(params, stats, inputs):
        def loss(params, inputs):
            output, updates = module.apply(
                {"params": params, "batch_stats": stats},
                inputs,
                use_running_average=False,
                mutable=["batch_stats"],
            )
            return jnp.sum(output.astype(jnp.float32) * weights), (output, updates)

        gradients, rest = jax.grad(loss, argnums=(0, 1), has_aux=True)(params, inputs)
        return *rest, gradients

    return run(variables.get("params", {}), variables["batch_stats"], inputs)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"momentum": 0.6, "epsilon": 1e-2},
        {"use_scale": False},
        {"use_scale": False, "use_bias": False},
        {"dtype": jnp.bfloat16},
    ],
)
def test_batch_norm_is_flax_batch_norm(options):
    options = {"bias_init": nn.initializers.normal(), **options}
    ours, flax = BatchNorm(**options), nn.BatchNorm(**options)
    dtype = options.get("dtype", jnp.float32)
    inputs = 2 * draw(0, (6, 5, 7, 12), dtype) + 1
    variables = flax.init(jax.random.key(0), inputs, use_running_average=False)
    close(ours.init(jax.random.key(0), inputs, use_running_average=False), variables)
    weights = draw(1, inputs.shape)
    rounding = 1e-2 if dtype == jnp.bfloat16 else 1e-5
    found, expected = (train(module, variables, inputs, weights) for module in (ours, flax))
    close(found[0], expected[0], rounding)
    close(found[1], expected[1])
    close(found[2], expected[2], rounding)
    variables = {**variables, **expected[1]}
    evaluated = [m.apply(variables, inputs, use_running_average=True) for m in (ours, flax)]
    close(*evaluated, rounding)


# Each with the function that it computes.
ACTIVATIONS = {
    "relu": (relu, nn.relu),
    "gelu": (gelu, functools.partial(nn.gelu, approximate=False)),
    "tanh": (nn.tanh, nn.tanh),
}


@pytest.mark.usefixtures("platform_taken")
@pytest.mark.parametrize(
    ("name", "has_shortcut", "dtype"),
    some(
        [
            *(("relu", True, jnp.float32), ("gelu", True, jnp.float32)),
            *(("relu", False, jnp.float32), ("gelu", False, jnp.float32)),
            *(("relu", True, jnp.bfloat16), ("gelu", False, jnp.bfloat16)),
            ("tanh", True, jnp.float32),
        ],
        itertools.product(ACTIVATIONS, [True, False], [jnp.float32, jnp.bfloat16]),
    ),
)
def test_batch_norm_with_what_follows_it(name, has_shortcut, dtype):
    """Together as one after the other in float64: result, statistics, gradients, evaluation."""
    activation, plain = ACTIVATIONS[name]
    inputs, shortcut = 2 * draw(0, (6, 5, 7, 12), dtype) + 1, draw(1, (6, 5, 7, 12), dtype)
    weights, shortcut = draw(2, inputs.shape, dtype), shortcut if has_shortcut else None
    options = {"scale_init": nn.initializers.normal(), "bias_init": nn.initializers.normal()}
    ours = BatchNorm(activation=activation, dtype=dtype, **options)
    flax = nn.BatchNorm(dtype=np.float64, param_dtype=np.float64, **options)
    variables = ours.init(jax.random.key(0), inputs, use_running_average=False)

    def together(variables, inputs, shortcut, **mode):
        return ours.apply(variables, inputs, shortcut=shortcut, **mode)

    def separate(variables, inputs, shortcut, **mode):
        output, updates = flax.apply(variables, inputs, **mode)
        return plain(output if shortcut is None else output + shortcut), updates

    def run(function, variables, inputs, shortcut):
        def train(params, inputs, shortcut):
            mode = {"use_running_average": False, "mutable": ["batch_stats"]}
            return function(variables | {"params": params}, inputs, shortcut, **mode)

        arguments = variables["params"], inputs, shortcut
        output, pull, updates = jax.vjp(train, *arguments, has_aux=True)
        mode = {"use_running_average": True, "mutable": []}
        evaluated, _ = function(variables | updates, inputs, shortcut, **mode)
        return output, evaluated, updates, pull(weights.astype(output.dtype))

    found = jax.jit(functools.partial(run, together))(variables, inputs, shortcut)
    assert found[0].dtype == found[1].dtype == dtype
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda x: np.asarray(x, np.float64), (variables, inputs, shortcut))
        expected = jax.jit(functools.partial(run, separate))(*wide)
    rounding = 1e-2 if dtype == jnp.bfloat16 else 1e-5
    found = jax.tree.map(lambda x: np.asarray(x, np.float64), found)
    close(found, expected, rounding)


def test_batch_norm_of_dense_layers_and_without_variance():
    inputs = jnp.concatenate([draw(0, (10, 3)), jnp.full((10, 1), 3.0)], 1)
    variables = BatchNorm().init(jax.random.key(0), inputs, use_running_average=False)
    both = [
        train(module(), variables, inputs, draw(1, inputs.shape))
        for module in (BatchNorm, nn.BatchNorm)
    ]
    close(both[0][1], both[1][1])
    assert np.isfinite(jax.tree.leaves(both[0])[0]).all()


def test_batch_norm_is_of_the_whole_batch_on_two_devices():
    inputs, weights = (
        draw(0, (8, 4, 4, 6)) + jnp.arange(8.0)[:, None, None, None],
        draw(1, (8, 4, 4, 6)),
    )
    variables = BatchNorm().init(jax.random.key(0), inputs, use_running_average=False)
    expected = train(BatchNorm(), variables, inputs, weights)
    mesh = jax.make_mesh((1, 2), ("seed", "data"), axis_types=(AxisType.Auto,) * 2)
    with jax.set_mesh(mesh):
        rows = NamedSharding(mesh, PartitionSpec("data"))
        found = train(BatchNorm(), variables, jax.device_put(inputs, rows), weights)
    close(found, expected)


def test_conv_takes_its_arguments_as_flax_does():
    inputs = draw(0, (2, 8, 8, 3))
    for options in ({}, {"strides": 2, "padding": 1}, {"padding": "VALID", "use_bias": False}):
        variables = nn.Conv(8, (3, 3), **options).init(jax.random.key(0), inputs)
        found = Conv(8, (3, 3), **options).apply(variables, inputs)
        close(found, nn.Conv(8, (3, 3), **options).apply(variables, inputs))
