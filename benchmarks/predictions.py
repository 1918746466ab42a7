"""Whether a trained model predicts the same with every batch size and number of devices.

    python -m benchmarks.predictions --workdir=runs/simple_cnn [--write]

For each setting: the number of correct images, how many predictions differ from those of batches of
500 on one device, and the largest gap between the two best logits of these images.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.workers import ROOT, add_output_flags, write_result
from cifar_jax.data import datasets
from cifar_jax.evaluation import trained
from cifar_jax.parallel import devices
from cifar_jax.runs import provenance

# (batch size, CPU devices, images; batches of one take long, so they get only some images)
SETTINGS = (
    *((500, 1, 10_000), (1, 1, 1000), (7, 1, 10_000), (128, 1, 10_000), (10_000, 1, 10_000)),
    *((1, 2, 1000), (7, 2, 10_000), (128, 2, 10_000), (10_000, 2, 10_000)),
    *((1, 8, 1000), (7, 8, 10_000), (128, 8, 10_000), (10_000, 8, 10_000)),
)
# Rounding may swap two best logits that are closer together than this.
TIE = 1e-4
PREDICT = """
import sys
from benchmarks.predictions import predict

workdir, batch_size, num_images, output = sys.argv[1:]
predict(workdir, int(batch_size), int(num_images), output)
"""


def predict(workdir: str, batch_size: int, num_images: int, output: str) -> None:
    """Writes the logits of the first test images; the environment sets the number of devices."""
    devices.configure_jax()
    run = trained.load(workdir)
    images = datasets.load_dataset(run.config.data.name).splits["test"].images[:num_images]
    np.save(output, run.predict_logits(images, batch_size))


def measure(workdir: str) -> list[dict[str, Any]]:
    """Predicts with each setting in a process of its own; returns a row for each."""
    labels = datasets.load_dataset(trained.load(workdir).config.data.name).splits["test"].labels
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        expected: np.ndarray | None = None
        for batch_size, num_devices, num_images in SETTINGS:
            output = str(Path(folder) / "logits.npy")
            command = [
                sys.executable,
                "-c",
                PREDICT,
                workdir,
                str(batch_size),
                str(num_images),
                output,
            ]
            environment = os.environ | {"JAX_NUM_CPU_DEVICES": str(num_devices)}
            environment["PYTHONPATH"] = str(ROOT)
            subprocess.run(command, env=environment, check=True)
            logits = np.load(output, allow_pickle=False)
            expected = logits if expected is None else expected
            predictions, wanted = logits.argmax(axis=1), expected[:num_images].argmax(axis=1)
            best = np.sort(expected[:num_images], axis=1)
            gaps = (best[:, -1] - best[:, -2])[predictions != wanted]
            row = {
                "batch_size": batch_size,
                "num_devices": num_devices,
                "num_images": len(logits),
                "num_correct": int((predictions == labels[: len(logits)]).sum()),
                "num_different": len(gaps),
                "num_different_beyond_ties": int((gaps > TIE).sum()),
                "largest_logit_difference": float(np.abs(logits - expected[:num_images]).max()),
            }
            print(json.dumps(row), flush=True)
            rows.append(row)
    return rows


def main(argv: list[str]) -> int:
    """Runs the benchmark; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", required=True, help="of the trained run")
    add_output_flags(parser, "bench_predictions")
    options = parser.parse_args(argv)
    machine = provenance.environment()
    result = {
        "run": Path(options.workdir).name,
        "rows": measure(options.workdir),
        "hardware": {"processor": machine["processor"], "cores": machine["cores"]},
        "versions": machine["versions"],
        "commit": machine["commit"],
    }
    write_result(options, "bench_predictions", result)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
