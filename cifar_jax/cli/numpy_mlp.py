"""The command `python -m cifar_jax.numpy_mlp`: trains the NumPy network."""

import argparse
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from cifar_jax import files, numpy_mlp
from cifar_jax.data import datasets
from cifar_jax.errors import UserError
from cifar_jax.runs import provenance


def train_dataset(
    name: str, num_epochs: int, learning_rate: float, batch_size: int, seed: int
) -> list[dict[str, float]]:
    """Trains on a set's train split, and prints the scores on its test split after each epoch.

    Returns:
      For each epoch its seed, epoch, train_loss, and eval_loss and eval_accuracy on the test split.

    Raises:
      UserError: the data cannot be read, or the loss is not finite.
    """
    splits = datasets.load_run_data(name).splits
    (images, labels), test = (
        (split.images.reshape(len(split.images), -1) / np.float32(255), split.labels)
        for split in (splits["train"], splits["test"])
    )
    curve = []

    def after_epoch(epoch: int, network: numpy_mlp.Network, train_loss: float) -> None:
        loss, accuracy = numpy_mlp.evaluate(network, *test)
        if not math.isfinite(train_loss + loss):
            raise UserError("the loss is not finite: lower --learning_rate", exit_code=1)
        names = ("seed", "epoch", "train_loss", "eval_loss", "eval_accuracy")
        curve.append(dict(zip(names, (seed, epoch, train_loss, loss, accuracy), strict=True)))
        print(
            f"epoch {epoch}/{num_epochs}  train loss {train_loss:.4f}  "
            f"test loss {loss:.4f}  test accuracy {accuracy:.2%}",
            flush=True,
        )

    network = numpy_mlp.initialize_network((images.shape[1], 500, 50, 10), seed)
    with np.errstate(over="ignore", invalid="ignore"):
        settings = (num_epochs, learning_rate, batch_size, seed)
        numpy_mlp.train(network, images, labels, *settings, after_epoch)
    return curve


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}\n")


def positive_number(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise ValueError
    return value


def positive_integer(text: str) -> int:
    return int(positive_number(str(int(text))))


def list_of_seeds(text: str) -> list[int]:
    seeds = [int(word) for word in text.split(",")]
    if min(seeds) < 0 or len(set(seeds)) < len(seeds):
        raise ValueError
    return seeds


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = _Parser(
        prog="python -m cifar_jax.numpy_mlp",
        description="Trains the NumPy network and prints its loss and accuracy after each epoch.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--dataset", choices=["mnist", "digits"], default="mnist", help="the images")
    add("--num_epochs", type=positive_integer, default=20, help="passes over the images")
    add("--learning_rate", type=positive_number, default=1.0, help="of the first step")
    add("--batch_size", type=positive_integer, default=32, help="images per step")
    add("--seed", type=list_of_seeds, default=[0], help="one seed or several: 0,1,2")
    add("--output", type=Path, help="the JSON file to write the result to")
    return parser.parse_args(arguments)


def _write_result(options: argparse.Namespace, curve: list[dict[str, Any]], seconds: float) -> None:
    last = [line for line in curve if line["epoch"] == options.num_epochs]
    environment = provenance.environment()
    chosen = ("dataset", "num_epochs", "learning_rate", "batch_size")
    result = {
        "name": options.output.stem,
        "config": {"module": "cifar_jax.numpy_mlp"} | {x: getattr(options, x) for x in chosen},
        "test_accuracy": float(np.mean([line["eval_accuracy"] for line in last])),
        "test_loss": float(np.mean([line["eval_loss"] for line in last])),
        "seeds": [
            {"seed": x["seed"], "test_accuracy": x["eval_accuracy"], "test_loss": x["eval_loss"]}
            for x in last
        ],
        "num_epochs": options.num_epochs,
        "wall_seconds": round(seconds / len(last), 1),  # of one seed
        "hardware": f"{environment['cores']} cores of {environment['processor']}",
        "versions": environment["versions"],
        "commit": environment["commit"],
        "curve": curve,
    }
    files.write_json(options.output, result)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    options, curve, start = _parse(arguments), [], time.perf_counter()
    try:
        options.output = options.output and files.user_path(options.output)
        if options.output and (options.output.is_dir() or not options.output.parent.is_dir()):
            raise UserError(f"--output={options.output} is not a file in an existing folder")
        for seed in options.seed:
            settings = (options.num_epochs, options.learning_rate, options.batch_size)
            curve += train_dataset(options.dataset, *settings, seed)
        if options.output:
            _write_result(options, curve, time.perf_counter() - start)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0
