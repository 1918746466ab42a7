"""Muon against a plain version in float64."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cifar_jax.errors import UserError
from cifar_jax.optim import muon

pytestmark = pytest.mark.usefixtures("_strict_shapes")
SHAPES = {"tall": (3, 3, 4, 6), "wide": (1, 1, 4, 9), "same": (3, 3, 4, 6), "dense": (5, 7)}


newton_schulz = jax.jit(muon.newton_schulz, static_argnums=1)


def draw(seed):
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}


def plain_orthogonal(kernel):
    """The iteration for one kernel, as a matrix [out, inputs], in float64."""
    x = kernel.reshape(-1, kernel.shape[-1]).T
    x = x / (np.linalg.norm(x) + 1e-7)
    for _ in range(3):
        square = x @ x.T
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x.T.reshape(kernel.shape)


@pytest.mark.parametrize("nesterov", [True, False])
def test_steps_are_those_of_float64(nesterov):
    optimizer = muon.muon(lambda step: 0.1 * (1 - step / 4), momentum=0.6, nesterov=nesterov)
    params = jax.tree.map(jnp.asarray, draw(0))
    expected = {name: value.astype(np.float64) for name, value in draw(0).items()}
    sums = {name: np.zeros(shape) for name, shape in SHAPES.items()}
    state = optimizer.init(params)
    for step in range(3):
        gradient = draw(step + 1)
        updates, state = jax.jit(optimizer.update)(gradient, state, params)
        params = jax.tree.map(jnp.add, params, updates)
        for name, kernel in expected.items():
            sums[name] = 0.6 * sums[name] + gradient[name]
            direction = gradient[name] + 0.6 * sums[name] if nesterov else sums[name]
            kernel = kernel * np.sqrt(kernel.shape[-1]) / np.linalg.norm(kernel)
            expected[name] = kernel - 0.1 * (1 - step / 4) * plain_orthogonal(direction)
            np.testing.assert_allclose(params[name], expected[name], atol=2e-6, err_msg=name)


def test_singular_values_come_near_one():
    matrix = np.random.default_rng(0).normal(size=(2, 16, 40)).astype(np.float32)
    assert np.linalg.svd(matrix, compute_uv=False).min() > 2
    for dtype in (jnp.float32, jnp.bfloat16):
        values = np.linalg.svd(newton_schulz(matrix, dtype), compute_uv=False)
        assert 0.6 < values.min() < values.max() < 1.3
        assert newton_schulz(matrix, dtype).dtype == jnp.float32


def test_bfloat16_is_near_float32():
    matrix = np.random.default_rng(0).normal(size=(2, 16, 40)).astype(np.float32)
    exact = newton_schulz(matrix, jnp.float32)
    distance = np.linalg.norm(newton_schulz(matrix, jnp.bfloat16) - exact)
    assert 1e-4 < distance / np.linalg.norm(exact) < 0.1


def test_a_kernel_without_gradient_stays():
    zero = {"kernel": jnp.zeros((3, 4))}
    np.testing.assert_array_equal(muon.orthogonalize(zero)["kernel"], 0)
    optimizer = muon.muon(0.1)
    updates, _ = optimizer.update(zero, optimizer.init(zero), zero)
    np.testing.assert_array_equal(updates["kernel"], 0)


def test_many_kernels_of_one_shape_take_one_iteration():
    params = {str(i): jnp.ones((3, 3, 4, 6)) for i in range(5)}
    text = jax.jit(muon.orthogonalize).lower(params).as_text()
    assert text.count("stablehlo.dot_general") == 3 * muon.NUM_STEPS


def test_matrices_enlarged_by_zeros_come_out_the_same():
    kernels = list(draw(0).values())
    orthogonalize = jax.jit(muon._orthogonalize, static_argnums=(1, 2))
    apart = orthogonalize(kernels, jnp.float32, 0)
    for most_more in (300, 10**9):
        groups = muon._group([(6, 36), (4, 9), (6, 36), (5, 7)], most_more)
        assert len(groups) == {300: 2, 10**9: 1}[most_more]
        for one, other in zip(orthogonalize(kernels, jnp.float32, most_more), apart, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-6)


def test_small_kernels_go_with_larger_ones_on_an_accelerator():
    widths = (24, 64, 64, 256, 256, 256, 256)
    shapes = [(3, 3, *pair) for pair in itertools.pairwise(widths)]
    params = {str(i): jnp.ones(shape) for i, shape in enumerate(shapes)}
    traced = jax.jit(muon.orthogonalize).trace(params)
    for platform, num_groups in (("cuda", 1), ("cpu", 4)):
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        assert text.count("stablehlo.dot_general") == num_groups * 3 * muon.NUM_STEPS


def test_kernels_that_would_become_much_larger_stay_apart():
    groups = muon._group([(512, 4608), (64, 576), (256, 2304), (64, 27)], 10**9)
    assert groups == [((256, 2304), [3, 1, 2]), ((512, 4608), [0])]


def test_on_an_accelerator_the_products_are_in_bfloat16():
    params = {"kernel": jnp.ones((3, 4))}
    for platform, other in (("cuda", "f32"), ("cpu", "bf16")):
        text = jax.jit(muon.orthogonalize).trace(params).lower(lowering_platforms=(platform,))
        products = [line for line in text.as_text().splitlines() if "dot_general" in line]
        assert len(products) == 3 * muon.NUM_STEPS
        assert not any(f"x{other}>" in line for line in products)


def test_rejects_parameters_that_are_not_kernels():
    with pytest.raises(UserError, match="muon accepts only kernels: move head/bias to one of"):
        muon.muon(0.1).init({"head": {"kernel": np.ones((2, 2)), "bias": np.ones(2)}})
