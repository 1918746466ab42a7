"""`--mode=export`: writes a trained model in formats of other programs, and checks each of them."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cifar_jax import files
from cifar_jax.errors import UserError
from cifar_jax.export import onnx_file, stablehlo, web, weights_file
from cifar_jax.export.subject import Format, Subject, measure_speed, read_subject
from cifar_jax.runs import weights
from cifar_jax.text import format_table, printable

FORMATS: dict[str, Format] = {
    "onnx": onnx_file.FORMAT,
    "stablehlo": stablehlo.FORMAT,
    "safetensors": weights_file.FORMAT,
    "web": web.FORMAT,
}
# Two logits that are closer than this may change places by the order of sums.
TIE = 1e-4
_MOST_APART = 1e-3  # of two probabilities


class Written(NamedTuple):
    """A file that was written and checked.

    Attributes:
      path: the file.
      num_bytes: its size.
      num_images: how many images it was applied to.
      num_different: how many of its answers differ from the model's.
      num_close: for how many images they may: the two best logits lie within `TIE`.
      images_per_second: of the file.
      images_per_second_here: of the model itself.
    """

    path: Path
    num_bytes: int
    num_images: int
    num_different: int
    num_close: int
    images_per_second: float
    images_per_second_here: float


def export_model(
    workdir: Path,
    formats: Sequence[str],
    output: Path | None = None,
    runtime: Path | None = None,
    **options: Any,
) -> None:
    """Writes a model's files into a folder; prints a table of what was written and checked.

    Each file is applied to the test images before it gets its name.

    Args:
      workdir: the run's folder, or what else `trained.load` takes.
      formats: names of `FORMATS`.
      output: the folder to write to; None: WORKDIR/export.
      runtime: the folder of the npm package onnxruntime-web, for the format web to copy its files;
        None: the page loads them from a public address.
      **options: as for `read_subject`.

    Raises:
      UserError: a format is unknown or lacks its library; the model cannot be read; the folder
        cannot be written; or a file's answers differ from the model's.
    """
    chosen = find_formats(formats)
    if runtime is not None:
        if "web" not in chosen:
            raise UserError("--runtime is only for --formats=web")
        chosen["web"] = web.with_runtime(runtime)
    if "safetensors" in chosen and options.get("stored_code"):
        raise UserError(
            "--stored_code cannot be combined with --formats=safetensors, a file that holds no "
            "code: start where your own model is, or leave out safetensors"
        )
    weights.read_config(workdir)
    output = output or weights.output_folder_of(workdir) / "export"
    with files.output_folder(output):
        subject = read_subject(workdir, **options)
        rows: list[tuple[str, ...]] = [
            ("format", "file", "MB", "images", "differ", "close", "images/s", "here")
        ]
        for name, kind in chosen.items():
            rows.append((name, *_cells(write_checked(kind, subject, output))))
    print(format_table(rows, right=range(2, 8)))
    print(
        f"{printable(str(output))}: {subject.trained.describe()}; differ: answers "
        f"that differ from the model's; close: images whose two best logits lie within {TIE:g}, "
        "which may differ; here: the model's own images/s"
    )


def find_formats(names: Sequence[str]) -> dict[str, Format]:
    """Returns the formats of these names.

    Raises:
      UserError: there is no such format, or its library is not installed.
    """
    known = ", ".join(FORMATS)
    if not names:
        raise UserError(f"--formats is missing: one or more of {known}, separated by commas")
    for name in names:
        if name not in FORMATS:
            raise UserError(f"--formats: {name!r} is none of {known}")
        for library in FORMATS[name].libraries:
            if importlib.util.find_spec(library) is None:
                raise UserError(
                    f"--formats={name} needs {library}: install the extra with "
                    "`pip install -c constraints.txt -e '.[export]'`"
                )
    return {name: FORMATS[name] for name in names}


def write_checked(kind: Format, subject: Subject, output: Path) -> Written:
    """Writes one format's files and checks them.

    Raises:
      UserError: the file's answers differ from the model's; it is left as NAME.unchecked.
    """
    path = output / kind.file
    unchecked = path.with_name(f"{path.name}.unchecked")
    subject = kind.adapt(subject)
    path.parent.mkdir(exist_ok=True)
    kind.write(subject, unchecked)
    answer = kind.open(unchecked)
    logits, probabilities = answer(subject.images)
    differ, close = compare_answers(subject, logits, probabilities, kind.file)
    unchecked.replace(path)
    kind.finish(subject, path)
    speed = measure_speed(answer, subject.images)
    size, count = path.stat().st_size, len(subject.images)
    return Written(path, size, count, differ, close, speed, subject.speed)


def _cells(written: Written) -> tuple[str, ...]:
    speeds = (written.images_per_second, written.images_per_second_here)
    counts = (written.num_images, written.num_different, written.num_close, *speeds)
    size = f"{written.num_bytes / 1e6:.2f}"
    return (written.path.name, size, *(f"{number:,.0f}" for number in counts))


def compare_answers(
    subject: Subject, logits: np.ndarray, probabilities: np.ndarray, name: str
) -> tuple[int, int]:
    """Returns how many answers differ, and for how many images they may.

    Raises:
      UserError: another answer differs, or a probability does.
    """
    best = np.sort(subject.logits, axis=1)[:, -2:]
    close = best[:, 1] - best[:, 0] <= TIE
    differ = logits.argmax(axis=1) != subject.logits.argmax(axis=1)
    apart = np.abs(probabilities - subject.probabilities).max(initial=0)
    if (differ & ~close).any() or not apart <= _MOST_APART:  # nan is not
        raise UserError(
            f"{name} was not exported: {int((differ & ~close).sum())} of {len(differ)} answers "
            f"differ from the model's, and probabilities by up to {apart:.2g}; it is left as "
            f"{name}.unchecked",
            exit_code=1,
        )
    return int(differ.sum()), int(close.sum())
