"""What the installation takes and how long the fast tests run, by the commands of the README.

    python -m benchmarks.project [--write]

Everything happens in a copy of the last commit, in a temporary folder. The tests run twice: first
with an empty cache of compiled programs, then with what the first time has left there. The time of
the installation includes downloading.
"""

import argparse
import json
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

# Variables of the user that would change the new environment or its tests.
_DROPPED = re.compile("PYTHONPATH|VIRTUAL_ENV|TFDS_DATA_DIR|GLIBC_TUNABLES|PYTEST_.*|JAX_.*|XLA_.*")
_VERSIONS = (
    "import json; from cifar_jax.runs import provenance as p; print(json.dumps(p.versions()))"
)


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
      text: the README's text.
      folder: holds the copy; receives the environment, .venv. The cache is in `FOLDER-cache`.

    Returns:
      seconds of each part, and the bytes of the environment.
    """
    environment = {name: v for name, v in os.environ.items() if not _DROPPED.fullmatch(name)}
    environment["XDG_CACHE_HOME"] = f"{folder}-cache"
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
        folder = Path(name) / "project"
        archive = subprocess.run(["git", "archive", "HEAD"], cwd=ROOT, capture_output=True)
        if archive.returncode:
            print(f"error: git archive: {archive.stderr.decode().strip()}", file=sys.stderr)
            return 1
        folder.mkdir()
        subprocess.run(["tar", "-x"], input=archive.stdout, cwd=folder, check=True)
        measured = run((folder / "README.md").read_text(), folder)
        command = [".venv/bin/python", "-c", _VERSIONS]
        versions = json.loads(subprocess.check_output(command, cwd=folder, text=True))
    print(measured)
    result = describe_machine() | {"versions": versions} | measured
    write_result(options, "bench_project", result)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
