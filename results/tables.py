"""Writes the README's tables from the files of this folder.

  python -m results.tables            writes
  python -m results.tables --check    exit code 1 if the README is not what it would write

A table stands between `<!-- table: NAME -->` and `<!-- end -->`. NAME is a file of this folder
without `.json`, or `training`, the table of all trained models; a file that is not there leaves its
table as it is.
"""

import argparse
import json
import re
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from results import scale, systems
from results.markdown import markdown

FOLDER = Path(__file__).resolve().parent
_TABLE = re.compile(r"(<!-- table: (\w[\w.-]*) -->\n).*?(<!-- end -->)", re.DOTALL)

# The columns of the benchmark: (words, the framework's name, or several of which the best counts).
PEERS = (
    ("stock JAX", ("jax",)),
    ("Keras", ("keras",)),
    ("PyTorch, its best", ("pytorch", "pytorch_compiled")),
)
MODEL_WORDS = {"resnet": "resnet-20", "speedrun": "speedrun net"}


def step_time(result: dict[str, Any]) -> str:
    """Images per second, the middle of the rounds, and how many times the others' that is."""
    rates: dict[tuple[str, int, str], dict[str, Any]] = {}
    # Of several batch sizes the table shows 128; the file has them all.
    shown = max((row["batch_size"] for row in result["measurements"]), key=lambda size: size == 128)
    for row in result["measurements"]:
        if row["batch_size"] != shown:
            continue
        cell = (row["model"], row["batch_size"], row["what"])
        rates.setdefault(cell, {})[row["framework"]] = row
    header = ["model", "batch", "this project", *[words for words, _ in PEERS]]
    text = ""
    for what, title in (("train", "Training"), ("infer", "Inference")):
        rows = [
            [MODEL_WORDS.get(model, model), str(batch_size), *_rate_cells(by_framework)]
            for (model, batch_size, kind), by_framework in rates.items()
            if kind == what
        ]
        text += f"{title}, images per second:\n\n" + markdown(header, rows) + "\n"
    versions = ", ".join(
        f"{words} {result['versions'][name][package]}"
        for words, name, package in (
            ("this project on jax", "ours", "jax"),
            ("stock jax", "jax", "jax"),
            ("Keras", "keras", "keras"),
            ("TensorFlow", "keras", "tensorflow"),
            ("PyTorch", "pytorch", "torch"),
        )
        if name in result["versions"]
    )
    shares = [
        100 * row["share_of_step"]
        for row in result.get("input_and_augmentation", ())
        if row["batch_size"] == shown
    ]
    if shares:
        text += (
            f"Taking a batch from the images, mirroring, cropping and normalizing it is "
            f"{min(shares):.1f} to {max(shares):.1f} % of a step. "
        )
    return text + (
        "The middle of several turns, in brackets the lowest and the highest; "
        "x: how many times the other's speed is ours. "
        f"{result['hardware']}; {versions}.\n"
    )


def _rate_cells(rows: dict[str, Any]) -> list[str]:
    def words(row: dict[str, Any]) -> str:
        low, high = min(row["rounds"]), max(row["rounds"])
        return f"{row['images_per_second']:,.0f} ({low:,.0f} to {high:,.0f})"

    ours = rows["ours"]
    cells = [words(ours)]
    for _, names in PEERS:
        found = [rows[name] for name in names if name in rows]
        if not found:
            cells.append("not run")
            continue
        best = max(found, key=lambda row: row["images_per_second"])
        ratio = ours["images_per_second"] / best["images_per_second"]
        compiled = ", compiled" if best["framework"].endswith("_compiled") else ""
        cells.append(f"{words(best)}{compiled}: **{ratio:.2f}x**")
    return cells


def operations(result: dict[str, Any]) -> str:
    """Milliseconds of single convolutions, and what the plain method takes at the matrix rate."""
    words = {"ours": "this project", "pytorch": "PyTorch"}
    names = [name for name in words if name in result["versions"]]
    rows = []
    for row in result["measurements"]:
        times = {name: statistics.median(row["milliseconds"][name]) for name in names}
        least = min(times.values())
        rows.append(
            [
                f"{row['size']}x{row['size']}, {row['channels']} to {row['features']}",
                row["what"],
                *(f"**{t:.1f}**" if t == least else f"{t:.1f}" for t in times.values()),
                f"{row['at_matrix_rate']:.1f}",
            ]
        )
    header = ["3x3 convolution", "of 64 images", *(words[name] for name in names), "matrix rate"]
    rates = ", ".join(
        f"{rate:.0f} by {words[name]}"
        for name, rate in result["matrix_gigaflops_per_second"].items()
    )
    return markdown(header, rows) + (
        f"\nMilliseconds on {result['hardware']}; products of 1024 x 1024 matrices: {rates} "
        "GFLOP/s.\n"
    )


def startup(result: dict[str, Any]) -> str:
    """Seconds to the first step, and the largest memory of a short training."""
    rows = [
        [f"first step, {kind} compilation cache", f"{result[f'{kind}_seconds']:.1f} s"]
        for kind in ("cold", "warm")
    ]
    words = {"ours": "this project", "keras": "Keras on TensorFlow", "pytorch": "PyTorch"}
    rows += [
        [f"memory, {words[name]}", f"{size / 2**20:,.0f} MiB"]
        for name, size in result["resident_bytes"].items()
    ]
    return markdown(["simple_cnn", ""], rows) + f"\n{result['hardware']}.\n"


# Words for the trials of benchmarks/faults.py.
FAULTS = {
    "kill": "kill -9, up to three times",
    "signal": "SIGTERM or Ctrl-C, up to three times",
    "damage": "a damaged checkpoint",
    "cache": "a damaged cache of decoded images",
    "disk": "a full disk",
    "config": "a random config",
    "training": "an accepted config, one step",
    "command": "a random config, the real command",
    "process": "kill -9 of one of two processes",
}


def faults(result: dict[str, Any]) -> str:
    """How many trials of each fault were survived, and how many errors were silent."""
    rows = [
        [FAULTS[fault], *(f"{record[name]:,}" for name in ("trials", "survived", "silent"))]
        for fault, record in result["faults"].items()
    ]
    text = markdown(["fault", "trials", "survived", "silent errors"], rows)
    seen = result["faults"].get("kill", {}).get("seen", {})
    if seen:
        text += (
            f"\nOf the {seen['stops']:,} kills, {seen.get('during a save', 0)} came during a save "
            f"and {seen.get('during a deletion', 0)} during a deletion.\n"
        )
    return text


def soak(result: dict[str, Any]) -> str:
    """What an hour's run holds at its beginning and its end."""
    rows = [
        [
            name,
            f"{one['first']:,.4g}",
            f"{one['last']:,.4g}",
            f"{round(one['per_hour'], 1) + 0:+,}",
        ]
        for name, one in result["trends"].items()
    ]
    header = [f"{result['minutes']:g} minutes", "after warm-up", "at the end", "trend an hour"]
    text = markdown(header, rows)
    return text + (
        f"\n{result['steps']:,} steps with {result['saves']:,} saves and "
        f"{result['evaluations']:,} evaluations. {result['hardware']}.\n"
    )


# By the beginning of a file's name, so that one benchmark can have several files.
BENCHMARKS: dict[str, Callable[[dict[str, Any]], str]] = {
    "bench_step_time": step_time,
    "bench_operations": operations,
    "bench_startup": startup,
    "bench_faults": faults,
    "bench_soak": soak,
    "bench_scaling": scale.scaling,
    "bench_seeds": scale.seeds,
    "bench_speedrun": scale.speedrun,
}


def make_table(name: str, folder: Path) -> str | None:
    """Returns the table of that name, None if its file is not there.

    Raises:
      ValueError: there is no such table.
    """
    if name == "training":
        files = [p for p in sorted(folder.glob("*.json")) if not p.name.startswith("bench_")]
        rows = systems.rows([_read(file) for file in files])
        return markdown(systems.HEADER, rows) if files else None
    for beginning, function in BENCHMARKS.items():
        if name.startswith(beginning):
            file = folder / f"{name}.json"
            return function(_read(file)) if file.exists() else None
    known = ("training", *BENCHMARKS)
    raise ValueError(f"README.md wants the table {name!r}; there are {', '.join(known)}")


def _read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text())


def fill(text: str, folder: Path) -> str:
    """Returns the README's text with its tables made anew."""

    def replace(match: re.Match[str]) -> str:
        table = make_table(match[2], folder)
        return match[0] if table is None else f"{match[1]}{table}{match[3]}"

    return _TABLE.sub(replace, text)


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="write nothing, compare only")
    parser.add_argument("--readme", type=Path, default=FOLDER.parent / "README.md")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="in place of results")
    options = parser.parse_args(argv)
    if not options.readme.exists():
        print(f"{options.readme} does not exist: no table written")
        return 0
    old = options.readme.read_text()
    try:
        new = fill(old, options.folder)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if options.check:
        if new != old:
            print(f"{options.readme} is not what results.tables writes", file=sys.stderr)
        return int(new != old)
    options.readme.write_text(new)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
