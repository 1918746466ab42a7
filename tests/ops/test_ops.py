"""Convolution and pooling agree with XLA's; on accelerators convolution is XLA's own."""

import functools
import itertools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from cifar_jax import ops
from cifar_jax.ops import cpu_conv, winograd
from cifar_jax.parallel import devices
from tests.few import slow, some

pytestmark = pytest.mark.numbers
NHWC = ("NHWC", "HWIO", "NHWC")
SAME_3X3 = ((1, 1), (1, 1))


def draw(seed, shape, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


def value_and_gradients(conv, images, kernel, strides=(1, 1), padding="SAME", **options):
    """The result, and the gradients of its product with fixed random numbers."""

    @jax.jit
    def run(images, kernel):
        result, pull = jax.vjp(
            lambda x, k: conv(x, k, strides, padding, dimension_numbers=NHWC, **options),
            images,
            kernel,
        )
        return result, *pull(draw(2, result.shape, result.dtype))

    return run(images, kernel)


def compare(found, expected, tolerance):
    """Each array agrees to `tolerance` of the largest value expected in it."""
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
        largest = np.abs(other).max(initial=1e-30)
        np.testing.assert_allclose(one, other, rtol=0, atol=tolerance * largest)


def xla_conv(images, kernel, strides, padding, **options):
    """XLA's own, padded by hand: on a CPU its gradient by the images reads past their end where a
    padding is as large as the kernel."""
    if not isinstance(padding, str):
        images = jnp.pad(images, ((0, 0), *padding, (0, 0)))
        padding = "VALID"
    return lax.conv_general_dilated(images, kernel, strides, padding, **options)


def compare_with_xla(images_shape, kernel_shape, dtype=jnp.float32, tolerance=1e-5, **options):
    images, kernel = draw(0, images_shape, dtype), draw(1, kernel_shape, dtype)
    found = value_and_gradients(ops.conv_general_dilated, images, kernel, **options)
    expected = value_and_gradients(xla_conv, images, kernel, **options)
    compare(found, expected, tolerance)


@pytest.mark.parametrize(
    ("images", "kernel", "options"),
    [
        ((5, 32, 32, 3), (3, 3, 3, 32), {}),
        ((3, 32, 32, 16), (3, 3, 16, 16), {}),
        ((5, 20, 19, 12), (3, 2, 12, 16), {"padding": ((0, 3), (4, 1))}),
        slow((3, 9, 9, 16), (3, 3, 16, 32), {}),
        ((5, 16, 16, 32), (3, 3, 32, 32), {}),
        ((2, 31, 31, 24), (3, 3, 24, 64), {}),
        slow((9, 15, 15, 64), (3, 3, 64, 64), {}),
        ((35, 7, 7, 64), (3, 3, 64, 256), {}),
        slow((20, 15, 16, 136), (3, 3, 136, 128), {}),
        slow((3, 4, 4, 512), (3, 3, 512, 256), {}),
        ((3, 2, 3, 64), (3, 3, 64, 64), {}),
        ((3, 16, 16, 16), (3, 3, 16, 32), {"strides": (2, 2), "padding": SAME_3X3}),
        slow((3, 15, 16, 64), (3, 3, 64, 64), {"strides": (2, 2)}),
        ((3, 16, 16, 64), (1, 1, 64, 128), {"strides": (2, 2)}),
        ((6, 32, 32, 3), (5, 5, 3, 6), {"padding": "VALID"}),
        ((6, 32, 32, 3), (2, 2, 3, 24), {"padding": "VALID"}),
        ((3, 8, 8, 40), (1, 1, 40, 20), {}),
    ],
)
def test_conv_of_the_models(images, kernel, options):
    compare_with_xla(images, kernel, **options)


@st.composite
def convolutions(draw_one):
    integer = lambda low, high: draw_one(st.integers(low, high))  # noqa: E731
    pair = lambda usual, low, high: draw_one(  # noqa: E731
        st.just((usual, usual)) | st.tuples(st.integers(low, high), st.integers(low, high))
    )
    rows, columns = pair(3, 1, 5)
    height, width = integer(rows, 12), integer(columns, 12)
    channels, features = draw_one(
        st.sampled_from(
            [
                *((1, 1), (3, 8), (8, 3), (12, 16), (17, 5)),
                *((20, 40), (64, 64), (24, 70), (30, 256), (256, 24)),
            ]
        )
    )
    explicit = tuple((integer(0, 6), integer(0, 6)) for _ in range(2))
    padding = draw_one(st.sampled_from(["SAME", "VALID", explicit]))
    return (
        (integer(1, 7), height, width, channels),
        (rows, columns, channels, features),
        {"strides": pair(1, 1, 3), "padding": padding},
    )


def check_any_shape(convolution, chunk):
    """With chunks so small that the loops over them run, and that most batches leave a rest."""
    images, kernel, options = convolution
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(winograd, "_CHUNK", chunk)
        patch.setattr(cpu_conv, "_PATCHES_CHUNK", chunk)
        patch.setattr(cpu_conv, "_TURNED_CHUNK", chunk)
        compare_with_xla(images, kernel, **options)


@hypothesis.settings(max_examples=10, deadline=None, derandomize=True)
@hypothesis.given(convolutions(), st.sampled_from([16, 100, 2048]))
def test_conv_of_any_shape(convolution, chunk):
    check_any_shape(convolution, chunk)


@pytest.mark.slow
@hypothesis.settings(max_examples=300, deadline=None)
@hypothesis.given(convolutions(), st.sampled_from([16, 100, 2048]))
def test_conv_of_many_shapes(convolution, chunk):
    check_any_shape(convolution, chunk)


# Each pair of sizes and each kind of window.
BFLOAT16 = [((3, 64), (3, 1)), ((12, 16), (3, 2)), ((64, 64), (3, 1)), ((64, 64), (1, 2))]


@pytest.mark.parametrize(
    ("sizes", "window"),
    some(BFLOAT16, itertools.product([(3, 64), (12, 16), (64, 64)], [(3, 1), (3, 2), (1, 2)])),
)
def test_conv_in_bfloat16(sizes, window):
    side, stride = window
    shapes = (9, 9, 8, sizes[0]), (side, side, *sizes)
    compare_with_xla(*shapes, jnp.bfloat16, tolerance=1e-2, strides=(stride, stride))


@pytest.mark.parametrize(("channels", "features"), [(3, 64), (12, 16), (64, 64)])
def test_conv_in_float64(channels, features):
    shapes = (4, 9, 9, channels), (3, 3, channels, features)
    with jax.enable_x64(True):
        compare_with_xla(*shapes, jnp.float64, tolerance=1e-13)


def test_other_convolutions_are_left_alone():
    images, kernel = draw(0, (2, 9, 9, 6)), draw(1, (3, 3, 3, 4))
    options = {"feature_group_count": 2, "rhs_dilation": (2, 1), "window_strides": (1, 1)}
    options |= {"padding": ((2, 2), (-1, 1)), "dimension_numbers": NHWC}
    found = ops.conv_general_dilated(images, kernel, **options)
    np.testing.assert_array_equal(found, lax.conv_general_dilated(images, kernel, **options))
    images, kernel = draw(0, (2, 6, 9)), draw(1, (4, 6, 3))
    found = ops.conv_general_dilated(images, kernel, (1,), "SAME")
    np.testing.assert_array_equal(found, lax.conv_general_dilated(images, kernel, (1,), "SAME"))


@pytest.mark.parametrize(
    ("images", "kernel", "padding", "dtype"),
    [
        ((2, 9, 9, 64), (3, 3, 64, 64), ((0, 0), (1, -1)), jnp.float32),
        ((2, 4, 9, 3), (5, 5, 3, 8), "VALID", jnp.float32),
        ((2, 9, 9, 3), (3, 3, 3, 0), "SAME", jnp.float32),
        ((2, 9, 9, 64), (3, 3, 64, 64), "SAME", jnp.int32),
    ],
    ids=["negative padding", "kernel larger than the images", "no features", "integers"],
)
def test_unusual_convolutions_are_xlas(images, kernel, padding, dtype):
    images, kernel = (10 * draw(i, shape) for i, shape in enumerate((images, kernel)))
    both = images.astype(dtype), kernel.astype(dtype)
    options = {"window_strides": (1, 1), "padding": padding, "dimension_numbers": NHWC}
    found = ops.conv_general_dilated(*both, **options)
    np.testing.assert_array_equal(found, lax.conv_general_dilated(*both, **options))


@pytest.mark.parametrize(("channels", "features"), [(12, 16), (32, 64), (64, 64)])
def test_conv_under_vmap(channels, features):
    images, kernels = draw(0, (4, 7, 7, channels)), draw(1, (2, 3, 3, channels, features))

    def loss(kernel, images, conv):
        return jnp.sum(conv(images, kernel, (1, 1), "SAME", dimension_numbers=NHWC) ** 2)

    def gradients(conv):
        return jax.jit(jax.vmap(jax.grad(loss, argnums=(0, 1)), (0, None, None)), static_argnums=2)(
            kernels, images, conv
        )

    compare(gradients(ops.conv_general_dilated), gradients(lax.conv_general_dilated), 1e-5)


class TinyNet(nn.Module):
    """Every way that a convolution can take, and pooling."""

    @nn.compact
    def __call__(self, images):
        conv = functools.partial(nn.Conv, conv_general_dilated=ops.conv_general_dilated)
        x = nn.relu(conv(16, (3, 3))(nn.relu(conv(16, (3, 3))(images))))
        x = ops.max_pool(nn.relu(conv(32, (3, 3), strides=2)(x)), (2, 2), (2, 2))
        return jnp.mean(conv(64, (3, 3))(x), (1, 2, 3))


def tiny_gradient(params, images):
    return jax.grad(lambda params: jnp.mean(jnp.sin(TinyNet().apply(params, images))))(params)


@pytest.fixture(scope="module")
def tiny():
    images = draw(0, (8, 16, 16, 3))
    return devices.jit_once(TinyNet().init)(jax.random.key(0), images), images


def test_two_devices_agree_with_one_and_reduce_once(tiny):
    params, images = tiny
    expected = jax.jit(tiny_gradient)(params, images)
    mesh = jax.make_mesh((1, 2), ("seed", "data"), axis_types=(AxisType.Auto,) * 2)
    with jax.set_mesh(mesh):
        args = (
            jax.device_put(params, NamedSharding(mesh, PartitionSpec())),
            jax.device_put(images, NamedSharding(mesh, PartitionSpec("data"))),
        )

        def repeat(params, images, times):
            start = jax.tree.map(jnp.zeros_like, params)
            add = lambda _, total: jax.tree.map(  # noqa: E731
                jnp.add, total, tiny_gradient(params, images)
            )
            return lax.fori_loop(0, times, add, start)

        run = jax.jit(repeat, out_shardings=NamedSharding(mesh, PartitionSpec()))
        program = run.lower(*args, 1).compile()
        found = program(*args, 1)
    compare(jax.tree.leaves(found), jax.tree.leaves(expected), 1e-5)
    text = program.as_text()
    assert text.count(" all-reduce(") == 1
    assert "all-gather" not in text


def test_batch_that_the_devices_do_not_divide():
    mesh = jax.make_mesh((1, 2), ("seed", "data"), axis_types=(AxisType.Auto,) * 2)
    with jax.set_mesh(mesh):
        compare_with_xla((5, 8, 8, 32), (3, 3, 32, 64))


@pytest.mark.parametrize("axis", [None, "seed"])
def test_seeds_over_devices(tiny, axis):
    params, images = tiny
    both = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf[..., ::-1]]), params)
    expected = [
        jax.jit(tiny_gradient)(jax.tree.map(lambda leaf, i=i: leaf[i], both), images)
        for i in range(2)
    ]
    mesh = jax.make_mesh((2, 1), ("seed", "data"), axis_types=(AxisType.Auto,) * 2)
    with jax.set_mesh(mesh):
        both = jax.device_put(both, NamedSharding(mesh, PartitionSpec("seed")))
        run = jax.jit(jax.vmap(tiny_gradient, (0, None), spmd_axis_name=axis))
        program = run.lower(both, images).compile()
        found = program(both, images)
    expected = jax.tree.map(lambda *leaves: jnp.stack(leaves), *expected)
    compare(jax.tree.leaves(found), jax.tree.leaves(expected), 1e-5)
    assert ("all-gather" in program.as_text()) == (axis is None)


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_accelerators_get_no_loops_and_no_scatter(tiny, platform):
    params, images = tiny
    mesh = jax.make_mesh((1, 2), ("seed", "data"), axis_types=(AxisType.Auto,) * 2)
    with jax.set_mesh(mesh):
        traced = jax.jit(tiny_gradient).trace(params, images)
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        cpu = traced.lower(lowering_platforms=("cpu",)).as_text()
    # Four forward, four for the kernels and three for the inputs: the images need none.
    assert text.count("stablehlo.convolution") == 11
    for foreign in ("manual_computation", "dot_general", "optimization_barrier"):
        assert foreign not in text
        assert foreign in cpu
    for operation in ("stablehlo.while", "stablehlo.select_and_scatter", "stablehlo.scatter"):
        assert operation not in text


@pytest.mark.usefixtures("platform_taken")
@pytest.mark.parametrize(
    ("window", "size", "dtype"),
    some(
        [
            *(((2, 2), (7, 9), jnp.float32), ((3, 3), (31, 8), jnp.float32)),
            *(((3, 2), (6, 6), jnp.float32), ((2, 2), (31, 8), jnp.bfloat16)),
        ],
        itertools.product(
            [(2, 2), (3, 3), (3, 2)], [(6, 6), (7, 9), (31, 8)], [jnp.float32, jnp.bfloat16]
        ),
    ),
)
def test_max_pool(window, size, dtype):
    # Few distinct values: most windows have ties, whose gradient goes to the first.
    inputs = jnp.round(draw(0, (3, *size, 5))).astype(dtype)

    def run(pool):
        result, pull = jax.vjp(lambda x: pool(x, window, window), inputs)
        return result, *pull(draw(1, result.shape, dtype))

    ours, theirs = (jax.jit(functools.partial(run, pool))() for pool in (ops.max_pool, nn.max_pool))
    for found, expected in zip(ours, theirs, strict=True):
        assert found.dtype == dtype
        np.testing.assert_array_equal(found, expected)


@pytest.mark.usefixtures("platform_taken")
def test_max_pool_passes_nan_on():
    inputs = jnp.zeros((1, 4, 2, 1)).at[0, 1, 0].set(jnp.nan)
    result, pull = jax.vjp(lambda x: ops.max_pool(x, (2, 2), (2, 2)), inputs)
    assert np.isnan(result[0, :, 0, 0]).tolist() == [True, False]
    assert np.isfinite(pull(jnp.ones_like(result))[0]).all()


@pytest.mark.usefixtures("platform_taken")
def test_max_pool_gives_a_tie_to_the_first():
    gradient = jax.grad(lambda x: ops.max_pool(x, (2, 2), (2, 2)).sum())(jnp.ones((1, 4, 2, 1)))
    np.testing.assert_array_equal(gradient[0, :, :, 0], [[1, 0], [0, 0], [1, 0], [0, 0]])


def test_max_pool_with_overlap_or_padding():
    inputs = draw(0, (2, 7, 7, 3))
    for options in ({"strides": (2, 2)}, {"strides": (3, 3), "padding": "SAME"}, {}):
        found = ops.max_pool(inputs, (3, 3), **options)
        np.testing.assert_array_equal(found, nn.max_pool(inputs, (3, 3), **options))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float64])
def test_dense_product_and_its_gradients(dtype):
    with jax.enable_x64(dtype == jnp.float64):
        inputs, kernel = draw(0, (7, 33), dtype), draw(1, (33, 5), dtype)

        def run(dot_general, inputs, kernel):
            layer = nn.Dense(5, dtype=dtype, param_dtype=dtype, dot_general=dot_general)
            bias = jnp.ones(5, dtype)

            def apply(x, k):
                return layer.apply({"params": {"kernel": k, "bias": bias}}, x)

            result, pull = jax.vjp(apply, inputs, kernel)
            return result, *pull(draw(2, result.shape, dtype))

        found, expected = (run(one, inputs, kernel) for one in (ops.dot_general, lax.dot_general))
        tolerance = {jnp.float32: 1e-6, jnp.bfloat16: 1e-2, jnp.float64: 1e-14}[dtype]
        compare(found, expected, tolerance)


def test_dense_gradient_has_the_kernels_layout():
    """The optimizer reads both together."""

    def loss(kernel, inputs):
        return jnp.sum(ops.dot_general(inputs, kernel, (((1,), (0,)), ((), ()))))

    gradient = jax.make_jaxpr(jax.grad(loss))(jnp.ones((8, 4)), jnp.ones((2, 8)))
    assert "transpose" not in str(gradient).replace("transpose(", "")
    assert gradient.out_avals[0].shape == (8, 4)


def test_other_products_are_left_alone():
    lhs, rhs = draw(0, (2, 3, 4)), draw(1, (4, 5))
    numbers = (((2,), (0,)), ((), ()))
    assert (ops.dot_general(lhs, rhs, numbers) == lax.dot_general(lhs, rhs, numbers)).all()
    turned = (((1,), (1,)), ((), ()))
    assert ops.dot_general(rhs, draw(2, (6, 5)), turned).shape == (4, 6)
