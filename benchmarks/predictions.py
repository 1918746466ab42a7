"""Whether a trained model predicts the same with every batch size and number of devices.

  python benchmarks/predictions.py --workdir=runs/simple_cnn

Writes results/bench_predictions.json: for each setting the number of correct images, how many
predictions differ from those of batches of 500 on one device, and how far apart the two best logits
of these images are.
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

ROOT = Path(__file__).resolve().parent.parent
# (batch size, CPU devices, images; batches of one take long, so they get a part)
SETTINGS = (
    *((500, 1, 10_000), (1, 1, 1000), (7, 1, 10_000), (128, 1, 10_000), (10_000, 1, 10_000)),
    *((1, 2, 1000), (7, 2, 10_000), (128, 2, 10_000), (10_000, 2, 10_000)),
    *((1, 8, 1000), (7, 8, 10_000), (128, 8, 10_000), (10_000, 8, 10_000)),
)
# Two best logits that lie closer together than this may change places by rounding.
TIE = 1e-4


def predict(workdir: str, batch_size: int, num_images: int, output: str) -> None:
    """Writes the logits of the first test images; the number of devices is the environment's."""
    from cifar_jax.data import datasets
    from cifar_jax.evaluation import trained
    from cifar_jax.parallel import devices

    devices.configure()
    run = trained.load(workdir)
    images = datasets.load(run.config.data.name).splits["test"].images[:num_images]
    np.save(output, run.predict_logits(images, batch_size))


def measure(workdir: str) -> list[dict[str, Any]]:
    """Predicts with each setting, in a process of its own; returns a row for each."""
    from cifar_jax.data import datasets
    from cifar_jax.evaluation import trained

    labels = datasets.load(trained.load(workdir).config.data.name).splits["test"].labels
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        expected: np.ndarray | None = None
        for batch_size, num_devices, num_images in SETTINGS:
            output = str(Path(folder) / "logits.npy")
            command = [sys.executable, __file__, f"--workdir={workdir}", f"--output={output}"]
            command += [f"--batch_size={batch_size}", f"--num_images={num_images}"]
            environment = os.environ | {
                "JAX_NUM_CPU_DEVICES": str(num_devices),
                "PYTHONPATH": str(ROOT),
            }
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


def main() -> None:
    """Runs the settings, or one of them in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--batch_size", type=int)
    parser.add_argument("--num_images", type=int)
    parser.add_argument("--output")
    flags = parser.parse_args()
    if flags.output:
        predict(flags.workdir, flags.batch_size, flags.num_images, flags.output)
        return
    from cifar_jax import files
    from cifar_jax.runs import provenance

    rows = measure(flags.workdir)
    environment = provenance.environment()
    content = {
        "name": "bench_predictions",
        "run": Path(flags.workdir).name,
        "rows": rows,
        "hardware": {"processor": environment["processor"], "cores": environment["cores"]},
        "versions": environment["versions"],
        "commit": environment["commit"],
    }
    files.write_json(ROOT / "results" / "bench_predictions.json", content)


if __name__ == "__main__":
    main()
