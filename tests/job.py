"""Runs the program in several processes that train together on this machine."""

import contextlib
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests import program
from tests.loopback import unanswered_port


@contextlib.contextmanager
def started(
    num_processes: int, devices_each: int, *arguments: str, folder: Path | None = None
) -> Iterator[list[subprocess.Popen[str]]]:
    """Starts `python main.py --distributed ARGUMENTS` in some processes and yields them.

    Args:
      num_processes: how many.
      devices_each: CPU devices per process.
      *arguments: of main.py.
      folder: the current directory of the processes.
    """
    port = unanswered_port()
    environment = {"JAX_NUM_CPU_DEVICES": str(devices_each), "XLA_FLAGS": ""}
    processes = [
        program.start(
            *arguments,
            "--distributed",
            f"--coordinator=127.0.0.1:{port}",
            f"--num_processes={num_processes}",
            f"--process_id={number}",
            environment=environment,
            cwd=folder,
        )
        for number in range(num_processes)
    ]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def ends(processes: Sequence[subprocess.Popen[str]]) -> list[tuple[int, str, str]]:
    """Returns (exit code, stdout, stderr) of each process."""
    found = []
    for process in processes:
        out, err = process.communicate(timeout=program.SECONDS)
        found.append((process.returncode, out.rstrip("\n"), err))
    return found


def run(num_processes: int, devices_each: int, *arguments: str) -> list[tuple[int, str, str]]:
    """Returns (exit code, stdout, stderr) of each process of a job."""
    with started(num_processes, devices_each, *arguments) as processes:
        return ends(processes)
