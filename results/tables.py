"""Writes the tables of README.md and docs/*.md from the files of this folder.

  python -m results.tables            writes
  python -m results.tables --check    exit code 1 if a page is not what it would write

A table is between `<!-- table: NAME -->` and `<!-- end -->`. NAME is a file of this folder without
`.json`; or `training` (all trained models), `training_details` (the same with every column),
`speed` (two files of `benchmarks.step_time`), or `bench_studies_PART` (a part of that file). A
table whose file or part does not exist is left as it is.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from results import scale, systems
from results.markdown import markdown, origin
from results.speed import operations, project, speed, startup, step_time
from results.studies import PARTS, studies

FOLDER = Path(__file__).resolve().parent
_TABLE = re.compile(r"(<!-- table: (\w[\w.-]*) -->\n).*?(<!-- end -->)", re.DOTALL)

# What each fault of tests/faults is called here.
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
    text = markdown(["fault", "trials", "survived", "silent errors"], rows) + "\n"
    seen = result["faults"].get("kill", {}).get("seen", {})
    if seen:
        text += (
            f"Of the {seen['stops']:,} kills, {seen.get('during a save', 0)} came during a save "
            f"and {seen.get('during a deletion', 0)} during a deletion. "
        )
    return text + f"{origin(result)}\n"


def soak(result: dict[str, Any]) -> str:
    """What a process holds at the beginning and at the end of an hour."""
    rows = [
        [
            name,
            f"{one['first']:,.4g}",
            f"{one['last']:,.4g}",
            f"{round(one['per_hour'], 1) + 0:+,}",
        ]
        for name, one in result["trends"].items()
    ]
    header = [f"{result['minutes']:g} minutes", "after warm-up", "at the end", "trend per hour"]
    return markdown(header, rows) + (
        f"\n{result['steps']:,} steps with {result['saves']:,} saves and "
        f"{result['evaluations']:,} evaluations. {origin(result)}\n"
    )


def exports(result: dict[str, Any]) -> str:
    """Size, answers and speed of exported files."""
    header = ["model", "format", "MB", "images", "different", "close", "images/s", "here"]
    rows = [
        [
            row["model"],
            row["format"],
            f"{row['num_bytes'] / 1e6:.2f}",
            *(f"{row[name]:,}" for name in ("num_images", "num_different", "num_close")),
            *(f"{row[name]:,.0f}" for name in ("images_per_second", "images_per_second_here")),
        ]
        for row in result["rows"]
    ]
    return markdown(header, rows) + f"\n{origin(result)}\n"


# By the beginning of a file's name, so that one benchmark can have several files.
BENCHMARKS: dict[str, Callable[[dict[str, Any]], str]] = {
    "bench_step_time": step_time,
    "bench_operations": operations,
    "bench_startup": startup,
    "bench_project": project,
    "bench_faults": faults,
    "bench_soak": soak,
    "bench_exports": exports,
    "bench_scaling": scale.scaling,
    "bench_seeds": scale.seeds,
    "bench_speedrun": scale.speedrun,
    "bench_gpu_ahead": scale.gpu_ahead,
}
STUDIES = {f"bench_studies_{part}": part for part in PARTS}
SPEED_FILES = ("bench_step_time_avx2.json", "bench_step_time.json")


def make_table(name: str, folder: Path) -> str | None:
    """Returns the table of that name, None if its file does not exist.

    Raises:
      ValueError: there is no such table.
    """
    if name in ("training", "training_details"):
        files = [p for p in sorted(folder.glob("*.json")) if not p.name.startswith("bench_")]
        results = [_read(file) for file in files]
        if not results:
            return None
        if name == "training":
            return markdown(systems.SUMMARY_HEADER, systems.summary_rows(results))
        return markdown(systems.HEADER, systems.rows(results))
    if name == "speed":
        files = [folder / file for file in SPEED_FILES]
        return speed(*map(_read, files)) if all(file.exists() for file in files) else None
    if part := STUDIES.get(name):
        file = folder / "bench_studies.json"
        rows = _read(file)["parts"].get(part) if file.exists() else None
        return studies(part, rows) if rows else None
    for beginning, function in BENCHMARKS.items():
        if name.startswith(beginning):
            file = folder / f"{name}.json"
            return function(_read(file)) if file.exists() else None
    known = ("training", "training_details", "speed", *BENCHMARKS, *STUDIES)
    raise ValueError(f"there is no table {name!r}; there are {', '.join(known)}")


def _read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text())


def fill(text: str, folder: Path) -> str:
    """Returns a page's text with its tables written again."""

    def replace(match: re.Match[str]) -> str:
        table = make_table(match[2], folder)
        return match[0] if table is None else f"{match[1]}{table}{match[3]}"

    return _TABLE.sub(replace, text)


def find_pages(root: Path) -> list[Path]:
    """Returns the pages of a checkout that may hold tables."""
    return [page for page in (root / "README.md", *sorted(root.glob("docs/*.md"))) if page.exists()]


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="only compare, write nothing")
    parser.add_argument("--root", type=Path, default=FOLDER.parent, help="the pages' checkout")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="instead of results")
    options = parser.parse_args(argv)
    outdated = 0
    for page in find_pages(options.root):
        old = page.read_text()
        try:
            new = fill(old, options.folder)
        except ValueError as error:
            print(f"error: {page}: {error}", file=sys.stderr)
            return 2
        if new == old:
            continue
        outdated += 1
        if options.check:
            print(f"{page} is out of date: python -m results.tables", file=sys.stderr)
        else:
            page.write_text(new)
    return int(options.check and outdated > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
