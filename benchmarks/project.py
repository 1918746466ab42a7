"""What the installation takes and how long the fast tests run, by the commands of the README.

    python -m benchmarks.project [--write]

Everything happens in a copy of the committed files, in a temporary folder. The tests run twice:
first with an empty cache of compiled programs, then with what the first time has left there.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.workers import ROOT, add_output_flags, describe_machine, write_result

# What this benchmark's own environment would change in those that it makes.
_DROPPED = ("PYTHONPATH", "VIRTUAL_ENV", "TFDS_DATA_DIR", "JAX_COMPILATION_CACHE_DIR")


def read_commands(text: str, name: str) -> list[str]:
    """Returns the lines of the README's shell block after the comment <!-- ci: NAME -->.

    Raises:
      ValueError: there is no such block.
    """
    found = re.search(rf"<!-- ci: {re.escape(name)} -->\n```bash\n(.*?)```", text, re.DOTALL)
    if not found:
        raise ValueError(f"README.md has no block of commands after <!-- ci: {name} -->")
    return found[1].splitlines()


def folder_bytes(folder: Path) -> int:
    """Returns the bytes of all files in a folder; links are not followed."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())


def timed(command: str, folder: Path, environment: Mapping[str, str]) -> float:
    """Runs a shell command in a folder; returns its seconds.

    Raises:
      SystemExit: it failed.
    """
    begun = time.monotonic()
    done = subprocess.run(["bash", "-euo", "pipefail", "-c", command], cwd=folder, env=environment)
    if done.returncode:
        raise SystemExit(f"error: exit code {done.returncode} of: {command}")
    return time.monotonic() - begun


def run(text: str, folder: Path) -> dict[str, Any]:
    """Installs and tests a copy of the project.

    Args:
      text: of the README.
      folder: has the copy, and gets the environment in .venv and a cache in .cache.

    Returns:
      seconds of each part, and the bytes of the environment.
    """
    environment = {key: value for key, value in os.environ.items() if key not in _DROPPED}
    environment["XDG_CACHE_HOME"] = str(folder / ".cache")
    (install, *_), (install_tests, test) = (read_commands(text, name) for name in ("main", "test"))
    result: dict[str, Any] = {"install_seconds": timed(install, folder, environment)}
    result["install_bytes"] = folder_bytes(folder / ".venv")
    timed(install_tests, folder, environment)
    for name in ("first", "again"):
        result[f"test_seconds_{name}"] = timed(test, folder, environment)
    return {name: round(value, 1) for name, value in result.items()}


def main(argv: list[str]) -> int:
    """Runs the benchmark; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_output_flags(parser, "bench_project")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        copy = "git ls-files -z | xargs -0 cp --parents -t " + name
        subprocess.run(["bash", "-euo", "pipefail", "-c", copy], cwd=ROOT, check=True)
        measured = run((ROOT / "README.md").read_text(), Path(name))
    print(measured)
    write_result(options, "bench_project", {**describe_machine(), **measured})
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
