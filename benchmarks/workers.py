"""What the benchmarks share: the workers of `peers/`, and where results are written."""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cifar_jax import files
from cifar_jax.parallel import cpu
from cifar_jax.runs import provenance

ROOT = Path(__file__).resolve().parents[1]

# Variables that the user may have set for something else and that change how a framework behaves.
_DROPPED = (
    "GLIBC_TUNABLES",
    "XLA_FLAGS",
    "JAX_NUM_CPU_DEVICES",
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
)


class WorkerError(Exception):
    """A worker failed; the message is one line."""


class Worker:
    """A process that measures one framework and sleeps between requests.

    Attributes:
      name: the framework's name.
      versions: the versions that it reported at its start.
      idle_cpu_seconds: processor time that it used between requests.
    """

    def __init__(
        self,
        name: str,
        python: str,
        arguments: list[str],
        keep_memory: bool = False,
        accelerator: bool = False,
    ):
        """Starts the process and waits until it is ready.

        Args:
          name: the framework's name.
          python: an interpreter that has the framework.
          arguments: a module of `peers` and its own arguments.
          keep_memory: whether to use the allocator settings that main.py uses.
          accelerator: whether the process may use a GPU or TPU.

        Raises:
          WorkerError: there is no such interpreter, or it cannot import the framework.
        """
        self.name = name
        self.idle_cpu_seconds = 0.0
        self._cpu: float | None = None
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  (closed in `close`)
        try:
            self._process = subprocess.Popen(
                [python, "-m", f"benchmarks.peers.{arguments[0]}", *arguments[1:]],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                text=True,
                env=environment(os.environ, accelerator)
                | (cpu.ALLOCATOR_ENVIRONMENT if keep_memory else {}),
            )
        except OSError as error:
            self._errors.close()
            raise WorkerError(f"{python}: {error.strerror}") from None
        self._resident_bytes: int | None = None
        self.versions: dict[str, str] = self._answer()

    def ask(self, do: str, **arguments: Any) -> Any:
        """Sends a request and returns its result; raises WorkerError."""
        self._send(do, arguments)
        return self._answer()

    def _send(self, do: str, arguments: Mapping[str, Any]) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # `_answer` reports the cause
            print(json.dumps({"do": do, **arguments}), file=self._process.stdin, flush=True)

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            words = self._last_words()
            self.close()
            raise WorkerError(words or f"it ended with exit code {self._process.returncode}")
        answer = json.loads(line)
        if "cpu" in answer:
            begun, ended = answer["cpu"]
            if self._cpu is not None:
                self.idle_cpu_seconds += begun - self._cpu
            self._cpu = ended
        if "error" in answer:
            raise WorkerError(answer["error"])
        return answer["result"]

    def _last_words(self) -> str:
        self._wait()
        self._errors.seek(0)
        return ([line for line in self._errors.read().splitlines() if line.strip()] or [""])[-1]

    def _wait(self) -> int:
        if self._resident_bytes is None:
            _, status, usage = os.wait4(self._process.pid, 0)
            self._process.returncode = os.waitstatus_to_exitcode(status)
            self._resident_bytes = resident_bytes(usage)
        return self._resident_bytes

    def close(self) -> int:
        """Ends the process; returns its largest resident memory in bytes."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        size = self._wait()
        self._process.stdout.close()
        self._errors.close()
        return size


def ask_all(workers: Mapping[str, Worker], do: str, **arguments: Any) -> dict[str, Any]:
    """Sends all workers the same request at once; returns their results by name."""
    for worker in workers.values():
        worker._send(do, arguments)
    results, errors = {}, []
    for name, worker in workers.items():
        try:
            results[name] = worker._answer()
        except WorkerError as error:
            errors.append(f"{name}: {error}")
    if errors:
        raise WorkerError("; ".join(errors))
    return results


def environment(old: Mapping[str, str], accelerator: bool = False) -> dict[str, str]:
    """Returns the environment of a worker, in which this project can be imported.

    Args:
      old: the environment to start from.
      accelerator: whether the worker may use a GPU or TPU.
    """
    new = {name: value for name, value in old.items() if name not in _DROPPED}
    new["PYTHONPATH"] = str(ROOT)
    return new if accelerator else new | {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}


def describe_machine() -> dict[str, Any]:
    """Returns where a result was measured: hardware, commit and versions, not the host's name."""
    found = provenance.environment()
    hardware = f"{found['cores']} cores of {found['processor']}"
    return {"hardware": hardware, "commit": found["commit"], "versions": found["versions"]}


def add_output_flags(parser: argparse.ArgumentParser, name: str) -> None:
    """Adds --output and --write; without them a benchmark only prints.

    Args:
      parser: of the benchmark.
      name: of its file in results/, without ".json".
    """
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the result there (JSON)")
    words = f"write it to results/{name}.json (or --output), then the tables made from results/"
    parser.add_argument("--write", action="store_true", help=words)


def output_path(options: argparse.Namespace, name: str) -> Path | None:
    """Returns the file that --output and --write ask for; None if the result is only printed."""
    return options.output or (ROOT / "results" / f"{name}.json" if options.write else None)


def write_result(options: argparse.Namespace, name: str, result: Mapping[str, Any]) -> None:
    """Writes a result, and the tables made from results/, as far as the flags ask for it."""
    if path := output_path(options, name):
        files.write_json(path, {"name": path.stem, **result})
        print(f"wrote {path}")
    if options.write:
        write_tables()


def write_tables() -> None:
    """Rewrites the tables that are made from results/."""
    subprocess.run([sys.executable, "-m", "results.tables"], cwd=ROOT, check=True)


def resident_bytes(usage: Any) -> int:
    """Returns the largest resident memory of a `struct_rusage`, in bytes."""
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
