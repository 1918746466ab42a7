"""Models: exact counts, initial values, and what a caller may ask for."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cifar_jax.errors import UserError
from cifar_jax.models import registry, resnet, speedrun
from cifar_jax.models.layer_table import layer_table
from cifar_jax.ops.stock import stock_operations
from cifar_jax.parallel import devices
from tests.few import slow, some

CIFAR = (32, 32, 3)
# name, options, image shape, parameters, moving statistics; every registered name has a row.
COUNTS = [
    ("mlp", {}, (28, 28, 1), 418_060, 0),
    ("mlp", {"hidden_sizes": [100], "activation": "relu"}, (28, 28, 1), 79_510, 0),
    ("simple_cnn", {}, CIFAR, 4_210_090, 0),
    ("bn_cnn", {}, CIFAR, 824_650, 2_048),
    ("bn_cnn", {"conv_features": [32, 64], "dense_features": [16]}, CIFAR, 85_338, 224),
    ("vgg_bn", {}, CIFAR, 2_491_838, 3_144),
    ("lenet", {}, CIFAR, 62_006, 0),
    ("resnet", {}, CIFAR, 11_173_962, 9_600),
    ("resnet", {"depth": 34}, CIFAR, 21_282_122, 17_024),
    ("resnet", {"depth": 20}, CIFAR, 269_722, 1_376),
    ("resnet", {"depth": 32}, CIFAR, 464_154, 2_272),
    ("resnet", {"depth": 44}, CIFAR, 658_586, 3_168),
    ("resnet", {"depth": 56}, CIFAR, 853_018, 4_064),
    ("resnet", {"depth": 110}, CIFAR, 1_727_962, 8_096),
    ("wide_resnet", {}, CIFAR, 36_479_194, 17_952),
    ("wide_resnet", {"depth": 16, "widen_factor": 4}, CIFAR, 2_748_890, 3_616),
    ("wide_resnet", {"depth": 40, "widen_factor": 2}, CIFAR, 2_243_546, 5_408),
    ("speedrun", {}, CIFAR, 1_971_640, 2_304),
    ("speedrun", {"group_features": [8, 16, 16], "group_convs": 3}, CIFAR, 16_144, 240),
]


def initial_shapes(model, image_shape):
    """The shapes of the model's variables, without computing them."""
    images = jax.ShapeDtypeStruct((2, *image_shape), jnp.float32)
    return jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), images)


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def rarely(*names):
    """The registered models; all but these only in the slow tests."""
    return [name if name in names else slow(name) for name in registry.MODELS]


def test_every_model_has_a_row_of_counts():
    assert {name for name, *_ in COUNTS} == set(registry.MODELS)


@pytest.mark.parametrize(
    ("name", "options", "image_shape", "params", "statistics"),
    [slow(*row) if row[1].get("depth") in (32, 44, 110) else row for row in COUNTS],
)
def test_counts(name, options, image_shape, params, statistics):
    variables = initial_shapes(registry.create(name, 10, **options), image_shape)
    assert count(variables["params"]) == params
    assert count(variables.get("batch_stats", {})) == statistics
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


def conv(inputs, features, size=3, bias=True):
    return size**2 * inputs * features + bias * features


def dense(inputs, features):
    return inputs * features + features


def pairs(layer, *widths):
    """The parameters of layers of one kind, `conv` or `dense`, from each width to the next."""
    return sum(layer(*pair) for pair in itertools.pairwise(widths))


# The parameters for 7 classes and images [h, w, c], by hand.
PARAMETERS = {
    "mlp": lambda h, w, c: pairs(dense, h * w * c, 500, 50, 7),
    "simple_cnn": lambda h, w, c: (
        pairs(conv, c, 32, 32) + pairs(dense, 32 * (h // 2) * (w // 2), 512, 7)
    ),
    "bn_cnn": lambda h, w, c: (
        pairs(conv, c, 64, 128, 128, 256)
        + pairs(dense, 256 * (h // 16) * (w // 16), 256, 128, 64, 7)
        + 2 * (64 + 128 + 128 + 256 + 256 + 128 + 64)
    ),
    "vgg_bn": lambda h, w, c: (
        pairs(conv, c, 32, 32, 64, 64, 128, 128)
        + pairs(dense, 128 * (h // 8) * (w // 8), 1024, 100, 7)
        + 2 * (32 + 32 + 64 + 64 + 128 + 128 + 1024 + 100)
    ),
    "lenet": lambda h, w, c: (
        conv(c, 6, 5)
        + conv(6, 16, 5)
        + pairs(dense, 16 * ((h - 12) // 4) * ((w - 12) // 4), 120, 84, 7)
    ),
    # The published counts, less three classes of the head and missing channels of the stem.
    "resnet": lambda h, w, c: 11_173_962 - 3 * 513 - (3 - c) * 9 * 64,
    "wide_resnet": lambda h, w, c: 36_479_194 - 3 * 641 - (3 - c) * 9 * 16,
    "speedrun": lambda h, w, c: (
        conv(c, 8 * c, 2)
        + sum(conv(*pair) for pair in ((8 * c, 64), (64, 64), (64, 256), *[(256, 256)] * 3))
        + 256 * 7
    ),
}


@pytest.mark.parametrize("name", registry.MODELS)
@pytest.mark.parametrize(
    ("image_shape", "dtype"),
    some(
        [((28, 28, 1), jnp.float32), ((48, 40, 3), jnp.bfloat16)],
        itertools.product([(32, 32, 1), (28, 28, 1), (48, 40, 3)], [jnp.float32, jnp.bfloat16]),
    ),
)
def test_any_shape_classes_and_dtype(name, image_shape, dtype):
    model = registry.create(name, 7, dtype)
    variables = initial_shapes(model, image_shape)
    assert count(variables["params"]) == PARAMETERS[name](*image_shape)
    images = jax.ShapeDtypeStruct((2, *image_shape), jnp.float32)
    logits, updates = jax.eval_shape(
        lambda v, x: model.apply(
            v, x, train=True, mutable=["batch_stats"], rngs={"dropout": jax.random.key(0)}
        ),
        variables,
        images,
    )
    assert logits.shape == (2, 7)
    assert logits.dtype == jnp.float32
    assert variables["params"]["head"]["kernel"].shape[1] == 7
    assert updates.get("batch_stats", {}) == variables.get("batch_stats", {})


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "resnt",
            {},
            "unknown model 'resnt', none of mlp, simple_cnn, .*speedrun; did you mean 'resnet'?",
        ),
        (
            "vgg_bn",
            {"dropout": 0.1},
            "no option 'dropout': it has dropout_rate, dense_dropout_rate",
        ),
        ("lenet", {"depth": 3}, "no option 'depth': it has none"),
        ("resnet", {"parent": 1}, "no option 'parent': it has depth"),
        ("resnet", {"depth": 19}, "no depth 19: choose one of 18, 34, 20"),
        ("resnet", {"depth": "18"}, "depth must be a positive integer, not '18'"),
        ("resnet", {"depth": True}, "depth must be a positive integer, not True"),
        ("wide_resnet", {"depth": 27}, "no depth 27: choose 10, 16, 22"),
        ("wide_resnet", {"depth": 4}, "no depth 4"),
        ("wide_resnet", {"widen_factor": 0}, "widen_factor must be a positive integer, not 0"),
        ("wide_resnet", {"dropout_rate": 1.0}, r"dropout_rate must be a number in \[0, 1\)"),
        ("simple_cnn", {"dropout_rate": float("nan")}, r"dropout_rate .* not nan"),
        ("mlp", {"activation": "step"}, "no activation 'step': choose one of sigmoid, tanh, relu"),
        ("mlp", {"activation": 1}, "activation must be a string, not 1"),
        ("speedrun", {"activation": "elu"}, "no activation 'elu': choose one of gelu, relu, silu"),
        ("speedrun", {"group_convs": 1}, "group_convs must be at least 2, not 1"),
        ("mlp", {"hidden_sizes": [10, -1]}, r"hidden_sizes must be a tuple of positive integers"),
        ("mlp", {"hidden_sizes": 10}, "hidden_sizes must be a tuple of positive integers, not 10"),
    ],
)
def test_errors(name, options, message):
    with pytest.raises(UserError, match=message):
        registry.create(name, 10, **options)


# What makes each model quick to compile; those without a row have no smaller form.
SMALL = {
    "mlp": {"hidden_sizes": (5,)},
    "bn_cnn": {"conv_features": (4, 4), "dense_features": (4,)},
    "resnet": {"depth": 20},
    "wide_resnet": {"depth": 10, "widen_factor": 1},
    "speedrun": {"group_features": (8, 8, 8)},
}


def make_derivatives(name):
    """Returns a model's init, and the function of its variables and a direction that differentiates
    a loss in training once and twice."""
    images = np.random.default_rng(0).standard_normal((4, 32, 32, 1)).astype(np.float32)
    model = registry.create(name, 3, **SMALL.get(name, {}))
    training = {"train": True, "mutable": ["batch_stats"], "rngs": {"dropout": jax.random.key(1)}}

    def derive(variables, direction):
        def loss(params):
            logits, _ = model.apply({**variables, "params": params}, images, **training)
            return jax.nn.logsumexp(logits, axis=1).mean() - logits[:, 0].mean()

        point = (variables["params"],)
        rate = jax.jvp(loss, point, (direction,))[1]
        linear = jax.linearize(loss, *point)[1](direction)
        return rate, linear, jax.jvp(jax.grad(loss), point, (direction,))[1]

    return functools.partial(model.init, jax.random.key(0), images), derive


# A ResNet has the blocks of a wide ResNet, the VGG-like network the layers of the BN CNN.
@pytest.mark.parametrize("name", rarely("bn_cnn", "wide_resnet"))
def test_forward_mode_and_hessian_products_of_every_model(name):
    init, derive = make_derivatives(name)
    variables = jax.eval_shape(init)
    rate, linear, product = jax.eval_shape(derive, variables, variables["params"])
    assert rate.shape == linear.shape == ()
    assert jax.tree.map(jnp.shape, product) == jax.tree.map(jnp.shape, variables["params"])


@pytest.mark.parametrize("name", rarely())
def test_the_derivatives_of_a_model_are_xlas(name):
    init, derive = make_derivatives(name)
    variables, rng = devices.jit_once(init)(), np.random.default_rng(1)
    direction = jax.tree.map(
        lambda x: rng.standard_normal(x.shape).astype(x.dtype) / 30, variables["params"]
    )
    rate, linear, product = jax.jit(derive)(variables, direction)
    with stock_operations():
        expected = jax.jit(lambda *both: derive(*both))(variables, direction)
    np.testing.assert_allclose((rate, linear), expected[:2], rtol=1e-3)
    size = sum(np.sum(np.square(leaf, dtype=np.float64)) for leaf in jax.tree.leaves(expected[2]))
    for one, other in zip(*map(jax.tree.leaves, (product, expected[2])), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-3 * size**0.5)


@pytest.mark.parametrize(
    ("name", "size", "least"),
    [
        *(("lenet", (15, 40), 16), ("bn_cnn", (12, 12), 16), ("vgg_bn", (7, 7), 8)),
        *(slow("speedrun", (24, 24), 25), slow("lenet", (8, 8), 16)),
        slow("speedrun", (16, 40), 25),
    ],
)
def test_images_that_are_too_small_are_refused_with_the_least_size(name, size, least):
    model = registry.create(name, 10)
    height, width = size
    words = (
        f"images of {height} x {width} pixels to nothing: it takes images of at least "
        f"{least} x {least} pixels; choose"
    )
    with pytest.raises(UserError, match=words):
        jax.eval_shape(registry.make_variables(model, (*size, 3)), jax.random.key(0))
    create = registry.make_variables(model, (least, least, 3))
    assert "head" in jax.eval_shape(create, jax.random.key(0))["params"]


def test_default_options():
    assert registry.default_options("wide_resnet") == {
        "depth": 28,
        "widen_factor": 10,
        "dropout_rate": 0.0,
        "stem_stride": 1,
    }
    assert registry.create("mlp", 10, hidden_sizes=[3, 4]).hidden_sizes == (3, 4)


def test_mlp_is_sigmoids_of_matrix_products():
    model = registry.create("mlp", 3, hidden_sizes=(5, 4))
    images = np.random.default_rng(0).normal(size=(6, 4, 4, 2)).astype(np.float32)
    variables = devices.jit_once(model.init)(jax.random.key(0), images)
    params = jax.tree.map(np.float64, variables["params"])
    x = images.reshape(6, 32).astype(np.float64)
    for layer in ("Dense_0", "Dense_1"):
        x = 1 / (1 + np.exp(-(x @ params[layer]["kernel"] + params[layer]["bias"])))
    expected = x @ params["head"]["kernel"] + params["head"]["bias"]
    np.testing.assert_allclose(model.apply(variables, images), expected, atol=1e-5)


def test_dropout_acts_in_training_only_and_by_its_key():
    model = registry.create("simple_cnn", 10)
    image = np.random.default_rng(0).normal(size=(1, 8, 8, 3)).astype(np.float32)
    images = np.repeat(image, 1000, axis=0)
    variables = devices.jit_once(model.init)(jax.random.key(0), image)

    @jax.jit
    def train(seed):
        return model.apply(variables, images, train=True, rngs={"dropout": jax.random.key(seed)})

    evaluated = jax.jit(model.apply)(variables, image)
    logits = train(1)
    assert np.array_equal(logits, train(1))
    assert not np.allclose(logits, train(2), atol=1e-2)
    assert not np.allclose(logits, evaluated, atol=1e-2)
    standard_error = logits.std(axis=0) / np.sqrt(1000)
    assert np.all(np.abs(logits.mean(axis=0) - evaluated) < 4.5 * standard_error)


def test_bfloat16_is_near_float32():
    images = np.random.default_rng(0).normal(size=(8, *CIFAR)).astype(np.float32)
    model = registry.create("lenet", 10)
    variables = devices.jit_once(model.init)(jax.random.key(0), images)
    expected = jax.jit(model.apply)(variables, images)
    logits = jax.jit(registry.create("lenet", 10, jnp.bfloat16).apply)(variables, images)
    error = np.abs(logits - expected).max() / np.abs(expected).max()
    assert 0 < error < 0.03


@pytest.mark.slow
def test_weights_compiled_with_little_optimization_are_the_same_bits():
    init = functools.partial(registry.create("lenet", 10).init, jax.random.key(0))
    images = np.zeros((1, *CIFAR), np.float32)
    expected, variables = jax.jit(init)(images), devices.jit_once(init)(images)
    jax.tree.map(np.testing.assert_array_equal, variables, expected)


def test_a_new_residual_block_passes_its_input_on():
    def norm(**kwargs):
        return resnet.BatchNorm(use_running_average=False, **kwargs)

    block = resnet.BasicBlock(4, 1, projection=False, conv=resnet.Conv3x3, norm=norm)
    x = np.random.default_rng(0).uniform(size=(2, 6, 6, 4)).astype(np.float32)
    output, _ = devices.jit_once(block.init_with_output)(jax.random.key(0), x)
    np.testing.assert_array_equal(output, x)


def test_parameter_free_shortcut():
    x = np.arange(2 * 4 * 4 * 3, dtype=np.float32).reshape(2, 4, 4, 3)
    shortcut = resnet._subsample_and_pad(jnp.asarray(x), 6, 2)
    np.testing.assert_array_equal(shortcut[..., :3], x[:, [0, 2]][:, :, [0, 2]])
    np.testing.assert_array_equal(shortcut[..., 3:], np.zeros((2, 2, 2, 3)))


def test_identity_conv_passes_channels_on():
    kernel = jax.jit(speedrun.identity_conv, static_argnums=1)(jax.random.key(0), (3, 3, 4, 6))
    x = np.random.default_rng(0).normal(size=(2, 5, 5, 4)).astype(np.float32)
    output = jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    np.testing.assert_allclose(output[..., :4], x, atol=1e-6)
    rest = np.asarray(kernel[..., 4:])
    bound = 1 / np.sqrt(9 * 4)
    assert 0.9 * bound < np.abs(rest).max() <= bound
    np.testing.assert_allclose(rest.std(), bound / np.sqrt(3), rtol=0.15)


def test_speedrun_head_has_unit_deviation():
    kernel = np.asarray(speedrun.unit_deviation(jax.random.key(0), (256, 10)))
    np.testing.assert_allclose(kernel.std(ddof=1), 1, rtol=1e-5)
    assert np.abs(kernel).max() < 1.8


def test_whitening_kernel_makes_patches_uncorrelated():
    rng = np.random.default_rng(0)
    images = np.cumsum(rng.normal(size=(50, 9, 8, 3)), axis=2) @ rng.normal(size=(3, 3)) + 0.5
    kernel = speedrun.whitening_kernel(images, eps=1e-8)
    assert kernel.shape == (2, 2, 3, 24)
    np.testing.assert_array_equal(kernel[..., :12], -kernel[..., 12:])
    output = np.asarray(
        jax.lax.conv_general_dilated(
            images.astype(np.float32),
            kernel,
            (1, 1),
            "VALID",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
    )[..., :12].reshape(-1, 12)
    np.testing.assert_allclose(output.T @ output / len(output), np.eye(12), atol=2e-3)


def test_whitening_kernel_bounds_directions_without_variance():
    kernel = np.asarray(speedrun.whitening_kernel(np.ones((3, 4, 4, 1)), eps=4e-4))
    norms = np.sort(np.linalg.norm(kernel.reshape(4, 8), axis=0))
    # Constant patches: one eigenvalue of 4, three of 0.
    np.testing.assert_allclose(norms, [0.5] * 2 + [50] * 6, rtol=1e-3)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *(("simple_cnn", {}), ("lenet", {}), ("wide_resnet", {"depth": 10, "widen_factor": 1})),
        *(slow("vgg_bn", {}), slow("speedrun", {}), slow("resnet", {"depth": 20})),
    ],
)
def test_gradients_are_fast_on_a_cpu_and_xlas_own_elsewhere(name, options):
    model = registry.create(name, 10, **options)
    variables = initial_shapes(model, CIFAR)

    def loss(params, rest, images):
        logits, _ = model.apply(
            {"params": params, **rest},
            images,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": jax.random.key(0)},
        )
        return logits.sum()

    images = jax.ShapeDtypeStruct((4, *CIFAR), jnp.float32)
    params, rest = variables["params"], {k: v for k, v in variables.items() if k != "params"}
    traced = jax.jit(jax.grad(loss)).trace(params, rest, images)
    cpu, cuda, tpu = (
        traced.lower(lowering_platforms=(platform,)).as_text()
        for platform in ("cpu", "cuda", "tpu")
    )
    # XLA's gradient by a kernel, the slow one, takes the images with their channels as the batch.
    slow = "[f, 0, 1, b]x[i, 0, 1, o]"
    num_convs = sum(leaf.ndim == 4 for leaf in jax.tree.leaves(params))
    assert slow not in cpu
    assert "select_and_scatter" not in cpu
    for text in (cuda, tpu):
        # The result and two gradients of each; the first one's images need none.
        assert text.count("stablehlo.convolution") == 3 * num_convs - 1
        assert text.count(slow) == num_convs
        # Only a norm's gradient is kept from sharing what the forward pass computed.
        num_norms = len(jax.tree.leaves(rest)) // 2
        assert text.count("optimization_barrier") <= 3 * num_norms, num_norms
        assert "stablehlo.while" not in text


@pytest.mark.parametrize(
    ("size", "stride"), [(28, 1), (32, 1), (63, 1), (64, 2), (127, 2), (128, 4), (224, 4)]
)
def test_the_stem_of_a_resnet_fits_the_size_of_the_images(size, stride):
    assert resnet.choose_stem_stride(size) == stride


@pytest.mark.parametrize("name", ["resnet", "wide_resnet"])
def test_a_stem_with_a_stride_has_the_same_parameters_and_fewer_positions(name):
    options = {"depth": 20} if name == "resnet" else {"depth": 10, "widen_factor": 1}
    models = [registry.create(name, 10, stem_stride=stride, **options) for stride in (1, 2, 4)]
    rows = [
        layer_table(model, (size, size, 3))
        for model, size in zip(models, (32, 64, 128), strict=True)
    ]
    shapes = [{row.path: row.output_shape for row in own if "stem" not in row.path} for own in rows]
    assert shapes[0] == shapes[1] == shapes[2]
    assert [own[0].output_shape[1] for own in rows] == [32, 32, 64]
    counts = {sum(row.num_variables for row in own) for own in rows}
    assert len(counts) == 1
    with pytest.raises(UserError, match="a stem cannot have a stride of 3: choose 1, 2 or 4"):
        registry.create(name, 10, stem_stride=3)
