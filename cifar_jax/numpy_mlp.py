"""A fully connected network written by hand, with NumPy alone.

  python -m cifar_jax.numpy_mlp --dataset=mnist

A batch of b images is a matrix X [b, 784] with one flattened image per row. Three layers follow:

  Z1 = X  W1 + b1   [b, 500]    A1 = sigmoid(Z1)
  Z2 = A1 W2 + b2   [b, 50]     A2 = sigmoid(Z2)
  Z3 = A2 W3 + b3   [b, 10]     P  = softmax(Z3), the probability of each class

The targets T [b, 10] are 1 at each image's true class and 0 elsewhere. The loss is the
cross-entropy

  L = -1/b sum(T * log(P))

and the chain rule, applied from the last layer to the first, gives its gradient. Let D be the
derivative of L with respect to Z, in the shape of Z. For softmax and cross-entropy together it is

  D3 = (P - T) / b                          [b, 10]

The derivative of the sigmoid is A (1 - A), so the layers before have

  D2 = (D3 W3^T) * A2 * (1 - A2)            [b, 50]
  D1 = (D2 W2^T) * A1 * (1 - A1)            [b, 500]

A layer with inputs A has dL/dW = A^T D, in the shape of W, and dL/db is the sum of D's rows.
Stochastic gradient descent (SGD) takes a small step against both for each batch.
"""

import itertools
import math
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np


class Layer(NamedTuple):
    """The weights and biases of a layer, or their gradients.

    Attributes:
      weights: W [inputs, outputs].
      biases: b [outputs].
    """

    weights: np.ndarray
    biases: np.ndarray


Network = list[Layer]


def initialize_network(
    sizes: Sequence[int] = (784, 500, 50, 10), seed: int = 0, dtype: Any = np.float32
) -> Network:
    """Returns a network with random weights and biases of zero.

    The variance 2 / (inputs + outputs) gives the signals, and the gradients, a similar size in
    every layer: Glorot and Bengio, "Understanding the difficulty of training deep feedforward
    neural networks", 2010.

    Args:
      sizes: the number of inputs, the width of each hidden layer, the number of classes.
      seed: the seed of the random weights.
      dtype: the type of all arrays, in which everything else is computed too.
    """
    random = np.random.default_rng(seed)
    network = []
    for inputs, outputs in itertools.pairwise(sizes):
        weights = math.sqrt(2 / (inputs + outputs)) * random.standard_normal((inputs, outputs))
        network.append(Layer(weights.astype(dtype), np.zeros(outputs, dtype)))
    return network


def pre_activation(inputs: np.ndarray, layer: Layer) -> np.ndarray:
    """Returns Z = A W + b: [batch, inputs] by [inputs, outputs] gives [batch, outputs]."""
    return inputs @ layer.weights + layer.biases


def sigmoid_activation(z: np.ndarray) -> np.ndarray:
    """Returns 1 / (1 + exp(-z)) for each element, written with tanh, which cannot overflow."""
    return 0.5 * (1 + np.tanh(0.5 * z))


def softmax(z: np.ndarray) -> np.ndarray:
    """Turns each row of z [batch, classes] into probabilities: exp(z) divided by its sum."""
    # Subtracting the largest value does not change the quotient, and exp cannot overflow.
    powers = np.exp(z - z.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def forward_propagation(network: Network, images: np.ndarray) -> list[np.ndarray]:
    """Computes the outputs of all layers, which back-propagation needs.

    Args:
      network: a network of n layers.
      images: X [batch, pixels].

    Returns:
      n + 1 arrays: X [batch, pixels], A1 [batch, 500], A2 [batch, 50], P [batch, 10].
    """
    activations = [images]
    for layer in network[:-1]:
        activations.append(sigmoid_activation(pre_activation(activations[-1], layer)))
    return [*activations, softmax(pre_activation(activations[-1], network[-1]))]


def cross_entropy(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Returns L, the mean of -log(probability of the true class).

    Args:
      probabilities: P [batch, classes].
      labels: [batch], the number of each image's true class, which is the only element of its row
        of T * log(P) that is not zero.
    """
    true_class = probabilities[np.arange(len(labels)), labels]
    return float(-np.mean(np.log(np.maximum(true_class, np.finfo(true_class.dtype).tiny))))


def backward_propagate_error(
    network: Network, activations: list[np.ndarray], labels: np.ndarray
) -> Network:
    """Computes the gradient of the loss with respect to every weight and bias.

    Args:
      network: a network of n layers.
      activations: what `forward_propagation` returned.
      labels: [batch], the number of each image's true class.

    Returns:
      The gradients, in the shapes of the network's layers.
    """
    targets = np.eye(len(network[-1].biases), dtype=activations[-1].dtype)[labels]
    error = (activations[-1] - targets) / len(labels)
    gradients = []
    for i in reversed(range(len(network))):
        inputs = activations[i]
        gradients.append(Layer(inputs.T @ error, error.sum(axis=0)))
        if i > 0:
            error = (error @ network[i].weights.T) * inputs * (1 - inputs)
    return gradients[::-1]


def update_weights(network: Network, gradients: Network, learning_rate: float) -> Network:
    """Returns the network after a step of SGD: W - rate * dL/dW and b - rate * dL/db."""
    return [
        Layer(
            layer.weights - learning_rate * gradient.weights,
            layer.biases - learning_rate * gradient.biases,
        )
        for layer, gradient in zip(network, gradients, strict=True)
    ]


def shuffled_batches(num_images: int, batch_size: int, seed: int, epoch: int) -> list[np.ndarray]:
    """Returns the numbers of the images in each batch of an epoch; the last may be smaller."""
    order = np.random.default_rng([seed, epoch]).permutation(num_images)
    return np.split(order, range(batch_size, num_images, batch_size))


def train(
    network: Network,
    images: np.ndarray,
    labels: np.ndarray,
    num_epochs: int,
    learning_rate: float,
    batch_size: int,
    seed: int = 0,
    after_epoch: Callable[[int, Network, float], None] = lambda epoch, network, loss: None,
) -> Network:
    """Trains by SGD with a learning rate that decreases linearly from `learning_rate` to zero.

    Args:
      network: the network to start from, which is not changed.
      images: [n, pixels], of the network's dtype.
      labels: [n], the number of each image's true class.
      num_epochs: the number of passes over all images.
      learning_rate: the learning rate of the first step.
      batch_size: images per step.
      seed: the seed of the order of the images, which differs in each epoch.
      after_epoch: called with the epoch (from 1), the network, and the mean loss of the epoch's
        images, each computed just before the step that uses it.

    Returns:
      The trained network.
    """
    num_steps, step = num_epochs * math.ceil(len(images) / batch_size), 0
    for epoch in range(num_epochs):
        total = 0.0
        for batch in shuffled_batches(len(images), batch_size, seed, epoch):
            activations = forward_propagation(network, images[batch])
            total += len(batch) * cross_entropy(activations[-1], labels[batch])
            gradients = backward_propagate_error(network, activations, labels[batch])
            network = update_weights(network, gradients, learning_rate * (1 - step / num_steps))
            step += 1
        after_epoch(epoch + 1, network, total / len(images))
    return network


def evaluate(network: Network, images: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Returns the mean loss and the accuracy on images [n, pixels] with labels [n]."""
    probabilities = forward_propagation(network, images)[-1]
    accuracy = np.mean(probabilities.argmax(axis=1) == labels)
    return cross_entropy(probabilities, labels), float(accuracy)


if __name__ == "__main__":
    from cifar_jax.cli import numpy_mlp as numpy_mlp_command

    sys.exit(numpy_mlp_command.main())
