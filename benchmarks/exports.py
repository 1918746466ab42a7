"""Exported files beside the models that they come from: size, answers and speed on a CPU.

    python -m benchmarks.exports pretrained:mlp pretrained:resnet_20 [--write]

Needs the extra `export`. Each file is applied to all test images of the model's data, then the file
and the model classify a thousand images in turns.
"""

import argparse
import contextlib
import json
import multiprocessing
import statistics
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.workers import add_output_flags, describe_machine, write_result
from cifar_jax.errors import UserError
from cifar_jax.export import export
from cifar_jax.export.subject import (
    Answer,
    Subject,
    measure_model_speed,
    measure_speed,
    read_subject,
)
from cifar_jax.parallel import cpu

FORMATS = ("onnx", "stablehlo", "safetensors")


def measure(workdir: str, turns: int, formats: Sequence[str]) -> list[dict[str, Any]]:
    """Exports a model to a temporary folder; returns a row for each format."""
    subject = read_subject(Path(workdir))
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, kind in export.find_formats(formats).items():
            written = export.write_checked(kind, subject, Path(folder))
            here, there = time_in_turns(kind.adapt(subject), kind.open(written.path), turns)
            row = {"model": subject.name, "format": name, "file": written.path.name}
            row |= written._asdict() | {"images_per_second": there, "images_per_second_here": here}
            del row["path"]
            rows.append(row)
    return rows


def time_in_turns(subject: Subject, answer: Answer, turns: int) -> tuple[float, float]:
    """Returns the median images per second of the model and of the file."""
    rates = [
        (
            measure_model_speed(subject.trained, subject.images),
            measure_speed(answer, subject.images),
        )
        for _ in range(turns)
    ]
    here, there = zip(*rates, strict=True)
    return statistics.median(here), statistics.median(there)


def main(argv: list[str]) -> int:
    """Runs the benchmark; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("workdirs", nargs="+", help="of trained runs, or pretrained:NAME")
    parser.add_argument("--turns", type=int, default=5, help="how often each speed is measured")
    parser.add_argument("--formats", default=",".join(FORMATS), help="separated by commas")
    add_output_flags(parser, "bench_exports")
    options = parser.parse_args(argv)
    rows: list[dict[str, Any]] = []
    try:
        for workdir in options.workdirs:
            # In a process of its own, since the first model chooses the number of devices.
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                job = pool.submit(measure, workdir, options.turns, options.formats.split(","))
                found = job.result()
            print("\n".join(map(json.dumps, found)), flush=True)
            rows += found
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    result = {"rows": rows, **describe_machine()}
    with contextlib.suppress(metadata.PackageNotFoundError):
        result["versions"]["onnxruntime"] = metadata.version("onnxruntime")
    write_result(options, "bench_exports", result)
    return 0


if __name__ == "__main__":
    cpu.restart()
    sys.exit(main(sys.argv[1:]))
