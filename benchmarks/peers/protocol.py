"""What every worker of the benchmarks has in common: requests and answers, one JSON a line.

A worker is a long-lived process, so that frameworks can take turns within a second. It needs
nothing but its own framework and NumPy; this project need not be installed beside it.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

# The images' shape; models without a row take CIFAR's.
SHAPES = {"mlp": (28, 28, 1)}
NUM_CLASSES = 10
# Every framework normalises by these, in units of pixel / 255.
MEAN, STD = 0.5, 0.25
# The same optimizer everywhere: plain SGD with momentum.
LEARNING_RATE, MOMENTUM = 0.001, 0.9
# Dropout: after the hidden layer of simple_cnn; after each pooling and the first dense layer of
# vgg_bn.
DROPOUT = {"simple_cnn": (0.5,), "vgg_bn": (0.25, 0.5)}
NUM_EXAMPLES = 10_000

Variables = list[dict[str, np.ndarray]]


class Runner(NamedTuple):
    """A model that is ready to be timed.

    Attributes:
      train: makes that many training steps and returns the seconds they took.
      infer: computes the logits of that many batches and returns the seconds.
    """

    train: Callable[[int], float]
    infer: Callable[[int], float]


class Case(NamedTuple):
    """Equal weights and one batch, on which all must compute the same losses.

    Attributes:
      layers: for each layer in the order of calls, name -> array: "kernel" (HWIO, or [in, out]),
        "bias", "scale", "mean", "var".
      images: uint8 [batch, height, width, channels].
      labels: int32 [batch].
    """

    layers: Variables
    images: np.ndarray
    labels: np.ndarray


def image_shape(model: str) -> tuple[int, ...]:
    """Returns (height, width, channels) of a model's images."""
    return SHAPES.get(model, (32, 32, 3))


def make_data(model: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns random images uint8 [n, height, width, channels] and labels int32 [n]."""
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (NUM_EXAMPLES, *image_shape(model)), np.uint8)
    return images, generator.integers(0, NUM_CLASSES, NUM_EXAMPLES).astype(np.int32)


def normalize(images: np.ndarray) -> np.ndarray:
    """Returns the images as float32."""
    return ((images.astype(np.float32) / 255) - MEAN) / STD


def index_batches(batch_size: int) -> Iterator[np.ndarray]:
    """Yields the images of one step after the other, int64 [batch], shuffled in each epoch."""
    generator = np.random.default_rng(1)
    while True:
        order = generator.permutation(NUM_EXAMPLES)
        for first in range(0, NUM_EXAMPLES - batch_size + 1, batch_size):
            yield order[first : first + batch_size]


def write_case(path: str, case: Case) -> None:
    """Writes a case as .npz."""
    arrays = {
        f"{index}/{name}": array
        for index, layer in enumerate(case.layers)
        for name, array in layer.items()
    }
    np.savez(path, images=case.images, labels=case.labels, **arrays)  # type: ignore[arg-type]


def read_case(path: str) -> Case:
    """Reads what `write_case` wrote."""
    with np.load(path, allow_pickle=False) as file:
        arrays = dict(file)
    images, labels = arrays.pop("images"), arrays.pop("labels")
    layers: Variables = [{} for _ in {key.partition("/")[0] for key in arrays}]
    for key, array in arrays.items():
        index, _, name = key.partition("/")
        layers[int(index)][name] = array
    return Case(layers, images, labels)


def serve(handlers: dict[str, Callable[..., Any]], versions: dict[str, str]) -> None:
    """Answers requests until standard input ends.

    A request is {"do": NAME, ...arguments}; its answer is {"result": ...} or {"error": ...}, with
    the processor time that this process had used when it began and when it ended. What libraries
    print goes to standard error.

    Args:
      handlers: from the name to the function.
      versions: said first, unasked: the worker is ready.
    """
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    print(json.dumps({"result": versions}), file=answers)
    for line in sys.stdin:
        request = json.loads(line)
        begun = time.process_time()
        try:
            answer = {"result": handlers[request.pop("do")](**request)}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer | {"cpu": [begun, time.process_time()]}), file=answers)


def timing_handlers(
    prepare: Callable[[str, int], Runner],
    compute_losses: Callable[[str, Case], dict[str, Any]],
) -> dict[str, Callable[..., Any]]:
    """Returns the handlers of a worker that measures throughput.

    Args:
      prepare: from (model, batch size) to what can be timed; may compile at the first call.
      compute_losses: from (model, case) to {"parameters", "variables", "losses"}: how many
        trainable numbers the model has, how many with the moving statistics, and the training
        losses of three steps from the case's weights.
    """
    current: dict[str, Any] = {}

    def compile_all(model: str, batch_size: int) -> float:
        """Returns the seconds until a step and a batch of inference have been made."""
        current.clear()
        begun = time.perf_counter()
        runner = prepare(model, batch_size)
        for run in runner:
            run(1)
        current.update(runner=runner, batch_size=batch_size, seconds={})
        return time.perf_counter() - begun

    def calibrate() -> None:
        """Learns how long a step takes."""
        for what, run in current["runner"]._asdict().items():
            seconds = run(1)
            if seconds < 0.2:  # too short to be exact
                number = round(0.2 / seconds) + 1
                seconds = run(number) / number
            current["seconds"][what] = seconds

    def measure(what: str, seconds: float) -> float:
        """Runs for about that many seconds; returns images per second."""
        steps = max(1, round(seconds / current["seconds"][what]))
        return steps * current["batch_size"] / getattr(current["runner"], what)(steps)

    def check(model: str, path: str) -> dict[str, Any]:
        return compute_losses(model, read_case(path))

    return {"prepare": compile_all, "calibrate": calibrate, "measure": measure, "check": check}
