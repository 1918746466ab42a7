"""The network written by hand, compared with Flax, JAX's gradients and finite differences."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cifar_jax import numpy_mlp
from cifar_jax.models import mlp as flax_mlp
from cifar_jax.models import registry

SIZES = (784, 500, 50, 10)


@pytest.fixture
def double():
    with jax.enable_x64(True):
        yield


@pytest.fixture
def problem():
    """A network in float64 whose biases are not zero, images [40, 784] and labels [40]."""
    random = np.random.default_rng(3)
    network = [
        numpy_mlp.Layer(layer.weights, random.normal(size=layer.biases.shape))
        for layer in numpy_mlp.initialize_network(SIZES, seed=1, dtype=np.float64)
    ]
    return network, random.uniform(size=(40, 784)), random.integers(0, 10, 40)


@pytest.fixture
def flax_loss(double, monkeypatch):
    """The loss of the Flax network, a function of (params, images [b, 784], labels [b])."""
    # The model computes its logits in float32 whatever its dtype; here they must be doubles.
    monkeypatch.setattr(flax_mlp, "jnp", SimpleNamespace(float32=jnp.float64))
    model = registry.create("mlp", 10, dtype=jnp.float64, activation="sigmoid")

    def loss(params, images, labels):
        logits = model.apply({"params": params}, images.reshape(-1, 28, 28, 1), train=True)
        assert logits.dtype == jnp.float64
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    return loss


def to_flax(network):
    names = ("Dense_0", "Dense_1", "head")
    layers = zip(names, network, strict=True)
    return {name: {"kernel": layer.weights, "bias": layer.biases} for name, layer in layers}


def assert_layers_equal(network, params, tolerance):
    for layer, other in zip(network, params.values(), strict=True):
        for ours, theirs in ((layer.weights, other["kernel"]), (layer.biases, other["bias"])):
            theirs = np.asarray(theirs)
            assert theirs.dtype == ours.dtype == np.float64
            assert np.linalg.norm(ours - theirs) <= tolerance * np.linalg.norm(theirs)
            # Single elements too, except those that nearly cancel out.
            floor = tolerance * np.abs(theirs).max()
            np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=floor)


def gradients_of(network, images, labels):
    activations = numpy_mlp.forward_propagation(network, images)
    return numpy_mlp.backward_propagate_error(network, activations, labels)


def test_shapes_and_number_of_parameters():
    network = numpy_mlp.initialize_network()
    assert sum(layer.weights.size + layer.biases.size for layer in network) == 418_060
    activations = numpy_mlp.forward_propagation(network, np.ones((3, 784), np.float32))
    assert [a.shape for a in activations] == [(3, 784), (3, 500), (3, 50), (3, 10)]
    assert {a.dtype for a in activations} == {np.dtype(np.float32)}
    np.testing.assert_allclose(activations[-1].sum(axis=1), 1, rtol=1e-6)
    gradients = numpy_mlp.backward_propagate_error(network, activations, np.array([0, 1, 2]))
    for layer, gradient in zip(network, gradients, strict=True):
        assert layer.weights.shape == gradient.weights.shape
        assert layer.biases.shape == gradient.biases.shape


def test_initial_weights_have_the_stated_variance():
    first, _, last = numpy_mlp.initialize_network(seed=4)
    assert abs(first.weights.std() / (2 / 1284) ** 0.5 - 1) < 0.01
    assert abs(last.weights.std() / (2 / 60) ** 0.5 - 1) < 0.1
    again, *_ = numpy_mlp.initialize_network(seed=4)
    np.testing.assert_array_equal(first.weights, again.weights)


def test_activations_by_hand_and_at_the_extremes():
    layer = numpy_mlp.Layer(np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([10.0, 20.0]))
    z = numpy_mlp.pre_activation(np.array([[1.0, -1.0]]), layer)
    np.testing.assert_array_equal(z, [[8.0, 18.0]])
    z = np.array([-1e4, -2.0, 0.0, 2.0, 1e4])
    expected = [0, 1 / (1 + np.e**2), 0.5, 1 / (1 + np.e**-2), 1]
    np.testing.assert_allclose(numpy_mlp.sigmoid_activation(z), expected, rtol=1e-14)
    rows = numpy_mlp.softmax(np.array([[1e4, 0.0], [0.0, np.log(3)]]))
    np.testing.assert_allclose(rows, [[1, 0], [0.25, 0.75]], rtol=1e-14)
    assert np.isfinite(numpy_mlp.cross_entropy(rows, np.array([1, 1])))


def test_loss_and_gradients_equal_those_of_flax(problem, flax_loss):
    network, images, labels = problem
    value, expected = jax.jit(jax.value_and_grad(flax_loss))(to_flax(network), images, labels)
    probabilities = numpy_mlp.forward_propagation(network, images)[-1]
    ours = numpy_mlp.cross_entropy(probabilities, labels)
    np.testing.assert_allclose(ours, float(value), rtol=1e-12)
    assert_layers_equal(gradients_of(network, images, labels), expected, 1e-9)


def test_gradients_equal_finite_differences(problem):
    network, images, labels = problem
    gradients = gradients_of(network, images, labels)
    random = np.random.default_rng(0)

    def loss():
        return numpy_mlp.cross_entropy(numpy_mlp.forward_propagation(network, images)[-1], labels)

    for layer, gradient in zip(network, gradients, strict=True):
        for array, slope in zip(layer, gradient, strict=True):
            for index in random.integers(0, array.size, 5):
                place = np.unravel_index(index, array.shape)
                kept, losses = array[place], []
                for change in (1e-5, -1e-5):
                    array[place] = kept + change
                    losses.append(loss())
                array[place] = kept
                difference = (losses[0] - losses[1]) / 2e-5
                np.testing.assert_allclose(slope[place], difference, rtol=1e-6, atol=1e-10)


def test_an_epoch_of_flax_gives_the_same_weights(problem, flax_loss):
    network, images, labels = problem
    rate, size, seed = 0.5, 12, 7
    ours = numpy_mlp.train(network, images, labels, 1, rate, size, seed)
    batches = numpy_mlp.shuffled_batches(len(images), size, seed, epoch=0)
    assert [len(batch) for batch in batches] == [12, 12, 12, 4]
    params, gradient = to_flax(network), jax.jit(jax.grad(flax_loss))
    schedule = optax.linear_schedule(rate, 0.0, len(batches))
    optimizer = optax.sgd(schedule)
    state = optimizer.init(params)
    for batch in batches:
        updates, state = optimizer.update(gradient(params, images[batch], labels[batch]), state)
        params = optax.apply_updates(params, updates)
    assert_layers_equal(ours, params, 1e-9)
    moved = np.linalg.norm(ours[0].weights - network[0].weights)
    assert moved > 1e-3 * np.linalg.norm(network[0].weights)


def test_batches_hold_every_image_once_and_differ_by_epoch():
    first, second = (numpy_mlp.shuffled_batches(10, 4, 0, epoch) for epoch in range(2))
    for batches in (first, second):
        assert [len(batch) for batch in batches] == [4, 4, 2]
        assert sorted(np.concatenate(batches)) == list(range(10))
    assert (np.concatenate(first) != np.concatenate(second)).any()
    assert [len(batch) for batch in numpy_mlp.shuffled_batches(8, 4, 0, 0)] == [4, 4]


def test_the_mathematics_imports_numpy_alone():
    tree = ast.parse(Path(numpy_mlp.__file__).read_text())
    imports = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {alias.name for node in imports if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in imports if isinstance(node, ast.ImportFrom)}
    roots = {name.split(".")[0] for name in names}
    assert roots - set(sys.stdlib_module_names) == {"numpy"}


# The command.


def run_command(*arguments):
    # One thread: with small matrices, several would only wait for each other.
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "cifar_jax.numpy_mlp", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def test_the_command_learns_the_digits(tmp_path):
    output = tmp_path / "numpy_mlp.json"
    done = run_command("--dataset=digits", "--num_epochs=12", "--seed=0,3", f"--output={output}")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert len(lines) == 24
    result = json.loads(output.read_text())
    assert result["test_accuracy"] > 0.94
    assert [entry["seed"] for entry in result["seeds"]] == [0, 3]
    mean = np.mean([entry["test_accuracy"] for entry in result["seeds"]])
    assert result["test_accuracy"] == pytest.approx(mean)
    last = result["curve"][-1]
    assert (last["seed"], last["epoch"]) == (3, 12)
    assert last["eval_accuracy"] == result["seeds"][1]["test_accuracy"]
    assert f"test accuracy {last['eval_accuracy']:.2%}" in lines[-1]
    assert last["train_loss"] < result["curve"][12]["train_loss"] / 4
    missing = {"name", "config", "test_loss", "num_epochs", "wall_seconds", "hardware", "versions"}
    assert not missing - result.keys()
    assert "commit" in result


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("--dataset=cifar9", "--dataset"),
        ("--num_epochs=0", "--num_epochs"),
        ("--num_epochs=1.5", "--num_epochs"),
        ("--learning_rate=nan", "--learning_rate"),
        ("--learning_rate=-1", "--learning_rate"),
        ("--batch_size=many", "--batch_size"),
        ("--seed=1,1", "--seed"),
        ("--seed=-1", "--seed"),
        ("--epochs=3", "--epochs"),
        ("--output=/nowhere/at/all.json", "--output"),
    ],
)
def test_wrong_arguments_are_answered_in_one_line(argument, words, capsys):
    from cifar_jax.cli import numpy_mlp as numpy_mlp_command

    try:
        code = numpy_mlp_command.main(["--dataset=digits", argument])
    except SystemExit as stop:
        code = stop.code
    assert code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert words in error
    assert error.count("\n") == 1


def test_a_loss_that_is_not_finite_ends_the_run(capsys):
    from cifar_jax.cli import numpy_mlp as numpy_mlp_command

    arguments = ["--dataset=digits", "--num_epochs=1", "--learning_rate=1e300"]
    assert numpy_mlp_command.main(arguments) == 1
    assert capsys.readouterr().err == "error: the loss is not finite: lower --learning_rate\n"
