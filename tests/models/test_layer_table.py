"""The layer table: VGG's rows as Keras counts them, and sums that agree with the variables."""

import jax
import jax.numpy as jnp
import pytest

from cifar_jax.models import layer_table, registry

CIFAR = (32, 32, 3)
# Counts with moving statistics, as a Keras summary prints them.
VGG_BN_LAYERS = [
    ("Conv_0", (1, 32, 32, 32), 896),
    ("BatchNorm_0", (1, 32, 32, 32), 128),
    ("Conv_1", (1, 32, 32, 32), 9_248),
    ("BatchNorm_1", (1, 32, 32, 32), 128),
    ("Conv_2", (1, 16, 16, 64), 18_496),
    ("BatchNorm_2", (1, 16, 16, 64), 256),
    ("Conv_3", (1, 16, 16, 64), 36_928),
    ("BatchNorm_3", (1, 16, 16, 64), 256),
    ("Conv_4", (1, 8, 8, 128), 73_856),
    ("BatchNorm_4", (1, 8, 8, 128), 512),
    ("Conv_5", (1, 8, 8, 128), 147_584),
    ("BatchNorm_5", (1, 8, 8, 128), 512),
    ("Dense_0", (1, 1024), 2_098_176),
    ("BatchNorm_6", (1, 1024), 4_096),
    ("Dense_1", (1, 100), 102_500),
    ("BatchNorm_7", (1, 100), 400),
    ("head", (1, 10), 1_010),
]


def test_layers_of_vgg_bn():
    rows = layer_table.layer_table(registry.create("vgg_bn", 10), CIFAR)
    assert [(row.path, row.output_shape, row.num_variables) for row in rows] == VGG_BN_LAYERS
    assert [row.num_trainable for row in rows if row.kind == "Conv"] == [
        size for path, _, size in VGG_BN_LAYERS if path.startswith("Conv")
    ]
    assert [2 * row.num_trainable for row in rows if row.kind == "BatchNorm"] == [
        size for path, _, size in VGG_BN_LAYERS if path.startswith("BatchNorm")
    ]


@pytest.mark.parametrize("name", registry.MODELS)
def test_layers_add_up_to_the_variables(name):
    model = registry.create(name, 10)
    images = jax.ShapeDtypeStruct((1, *CIFAR), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    trainable = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    total = sum(leaf.size for leaf in jax.tree.leaves(variables))
    rows = layer_table.layer_table(model, CIFAR)
    assert sum(row.num_trainable for row in rows) == trainable
    assert sum(row.num_variables for row in rows) == total
    assert len({row.path for row in rows}) == len(rows)
    assert (rows[-1].path, rows[-1].output_shape) == ("head", (1, 10))


def test_format_of_the_table():
    lines = layer_table.format_layers(
        layer_table.layer_table(registry.create("vgg_bn", 10), CIFAR)
    ).splitlines()
    assert lines[0].split() == ["layer", "output", "shape", "parameters"]
    assert lines[2].split("  ")[0] == "Conv_0 (Conv)"
    assert "(batch, 32, 32, 32)" in lines[2]
    assert lines[14].endswith("2,098,176")
    assert lines[-1] == "total: 2,494,982  trainable: 2,491,838  not trainable: 3,144"
    assert len({len(line) for line in lines[:-1]}) == 1


def test_the_table_of_the_largest_model_compiles_nothing(caplog):
    def count_compiled(function):
        caplog.clear()
        with jax.log_compiles():
            function()
        return sum("Finished XLA compilation" in message for message in caplog.messages)

    assert count_compiled(lambda: jax.jit(lambda key: key)(jax.random.key(0))) > 0
    model = registry.create("wide_resnet", 10)
    assert count_compiled(lambda: layer_table.layer_table(model, CIFAR)) == 0
