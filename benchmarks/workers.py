"""Starts the workers of `peers/` and talks to them."""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cifar_jax.parallel import cpu
from cifar_jax.runs import provenance

ROOT = Path(__file__).resolve().parents[1]

# What would change how a framework behaves, had the user set it for something else.
_FORGOTTEN = (
    "GLIBC_TUNABLES",
    "XLA_FLAGS",
    "JAX_NUM_CPU_DEVICES",
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
)


class WorkerError(Exception):
    """A worker could not do what it was asked, in one line."""


class Worker:
    """A process that measures one framework; it sleeps between its requests.

    Attributes:
      name: of the framework.
      versions: what it said at its start.
      idle_cpu_seconds: processor time that it used between its requests.
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
          name: of the framework.
          python: an interpreter that has it.
          arguments: the program, a module of `peers`, and its own arguments.
          keep_memory: with the settings of `allocator`, as main.py has them.
          accelerator: whether it may see one.

        Raises:
          WorkerError: the framework cannot be imported there, or there is no such interpreter.
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
        with contextlib.suppress(BrokenPipeError):  # `_answer` finds out why
            print(json.dumps({"do": do, **arguments}), file=self._process.stdin, flush=True)

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            words = self._last_words()
            self.close()
            raise WorkerError(words or f"it ended with {self._process.returncode}")
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
        """Ends the process; returns the largest memory that it had resident, in bytes."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        size = self._wait()
        self._process.stdout.close()
        self._errors.close()
        return size


def ask_all(workers: Mapping[str, Worker], do: str, **arguments: Any) -> dict[str, Any]:
    """Sends all workers the same request, which they work on at once; returns their results."""
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
    """Returns the environment of a worker: this project importable, processors only or not."""
    new = {name: value for name, value in old.items() if name not in _FORGOTTEN}
    new["PYTHONPATH"] = str(ROOT)
    return new if accelerator else new | {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}


def describe_machine() -> dict[str, Any]:
    """Returns what a result says of where it was measured, which is not the machine's name."""
    found = provenance.environment()
    hardware = f"{found['cores']} cores of {found['processor']}"
    return {"hardware": hardware, "commit": found["commit"], "versions": found["versions"]}


def write_tables() -> None:
    """Writes the README's tables anew."""
    subprocess.run([sys.executable, "-m", "results.tables"], cwd=ROOT, check=True)


def resident_bytes(usage: Any) -> int:
    """Returns the largest resident memory of a `struct_rusage`, in bytes."""
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
