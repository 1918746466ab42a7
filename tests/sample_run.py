"""Writes the small run in tests/data that a later version must still be able to read.

  python -m tests.sample_run tests/data/format-1

Use it once for each format of the checkpoints, with the version that writes it.
"""

import json
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

import cifar_jax
from cifar_jax.runs import signals as signals_lib
from cifar_jax.runs import workdir as workdir_lib
from cifar_jax.training.loop import train_model
from tests import tiny


def images() -> np.ndarray:
    """Returns four images that need no data set, uint8 [4, 32, 32, 1]."""
    rows = np.arange(4 * 32 * 32, dtype=np.int64)
    return (rows * rows // 7 % 251).astype(np.uint8).reshape(4, 32, 32, 1)


def config(num_steps: int) -> ConfigDict:
    """Returns the config of the run; apart from the number of steps, it must never change."""
    result = tiny.bn_config(
        num_steps=num_steps, optimizer__name="sgd", data__validation_examples=0, ema_decay=0.5
    )
    result.model.conv_features, result.model.dense_features = (2, 2), (4,)
    return result


def write(folder: Path) -> None:
    """Trains three steps of a very small network; keeps the files that are read, and its logits."""
    with tempfile.TemporaryDirectory() as name:
        run = Path(name)
        train_model(config(3), run, signals_lib.Signals())
        folder.mkdir(parents=True)
        shutil.copy(run / workdir_lib.CONFIG, folder)
        shutil.copytree(run / "checkpoints", folder / "checkpoints")
    logits = cifar_jax.load(folder).predict_logits(images(), 4)
    (folder / "logits.json").write_text(json.dumps(logits.tolist()) + "\n")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
