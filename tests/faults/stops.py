"""Stops training at random moments with kill -9 and other signals, then starts it again.

Most trials fork the program from a server process that has already imported everything, which takes
one second rather than five. Every tenth trial runs the real command, its start included.
"""

import contextlib
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from cifar_jax.cli import main as program_main
from tests import program

SURVIVED = "survived"
# Prefix of the outcome of a trial that continued with wrong values and reported nothing.
SILENT = "silent: "
EXIT_CODES: dict[int, int] = {signal.SIGINT: 130, signal.SIGTERM: 143}
# What a killed process leaves behind shows what it was doing.
TRACES = {".saving-": "during a save", ".deleting-": "during a deletion"}

# The disturbed runs. One saves after every step, the other only on a signal.
SAVING = {
    "num_steps": 20,
    "steps_per_call": 1,
    "eval_every_steps": 4,
    "checkpoint__every_steps": 1,
}
LONG = SAVING | {"num_steps": 400, "eval_every_steps": 100, "checkpoint__every_steps": 1000}


def reference(folder: Path, **fields: Any) -> tuple[Path, str]:
    """Makes the undisturbed run; returns its workdir and the flag with its config.

    Args:
      folder: where both are written.
      **fields: of the config.
    """
    folder.mkdir(exist_ok=True)
    flag = program.write_config(folder / "disturbed.py", **fields)
    code, _, err = program.run_here(flag, f"--workdir={folder / 'undisturbed'}")
    assert (code, err) == (0, ""), err
    return folder / "undisturbed", flag


class Process(Protocol):
    """A running program."""

    pid: int | None

    def wait(self) -> int:
        """Waits for the end; returns the exit code, or minus the signal that ended the program."""

    def err(self) -> str:
        """Returns what the program wrote to stderr."""


class Command:
    """`python main.py ARGUMENTS`."""

    def __init__(self, log: Path, *arguments: str):
        self._log = log
        with log.open("w") as err:
            self._process = subprocess.Popen(
                [sys.executable, program.ROOT / "main.py", *arguments],
                env={**os.environ, "PYTHONPATH": str(program.ROOT)},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=err,
            )
        self.pid: int | None = self._process.pid

    def wait(self) -> int:
        return self._process.wait(timeout=program.SECONDS)

    def err(self) -> str:
        return self._log.read_text()


class Forked:
    """The same program, forked from a server that has already imported what it needs."""

    def __init__(self, log: Path, *arguments: str):
        self._log = log
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(
            ["tests.faults.stops", "cifar_jax.training.loop", "sklearn.datasets"]
        )
        # JAX warns about every fork, but its backend never starts in the server.
        warnings = "ignore::RuntimeWarning,ignore::DeprecationWarning"
        changes = {"PYTHONPATH": str(program.ROOT), "PYTHONWARNINGS": warnings}
        old = {name: os.environ.get(name) for name in changes}
        os.environ.update(changes)
        try:
            self._process = context.Process(target=_run, args=(log, arguments))
            self._process.start()
        finally:
            for name, value in old.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})
        self.pid = self._process.pid

    def wait(self) -> int:
        self._process.join(program.SECONDS)
        if self._process.exitcode is None:
            self._process.kill()
            raise TimeoutError("the program did not end in time")
        return self._process.exitcode

    def code(self) -> int | None:
        """Returns the exit code, None while it runs."""
        return self._process.exitcode

    def err(self) -> str:
        return self._log.read_text()


def _run(log: Path, arguments: tuple[str, ...]) -> None:
    """Runs the program in the forked process."""
    for number, path in ((1, os.devnull), (2, log)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    sys.argv = ["main.py", *arguments]  # ml_collections looks for overrides there
    code = program_main.main(sys.argv)
    for one in EXIT_CODES:  # only the interpreter's shutdown remains
        signal.signal(one, signal.SIG_IGN)
    sys.exit(code)


def _moment(kind: str, folder: Path, rng: random.Random, seconds: float) -> None:
    """Returns at a random moment of the run.

    Args:
      kind: "time" for any moment; one of TRACES for a moment during a save or a deletion.
      folder: the run's checkpoints.
      rng: chooses the moment.
      seconds: the length of an undisturbed run.
    """
    begin = time.monotonic()
    wait = rng.uniform(0, seconds if kind == "time" else 0.8 * seconds)
    later = rng.uniform(0, 0.02) if kind == ".saving-" else 0
    while time.monotonic() - begin < 2 * seconds:
        names: list[str] = []
        with contextlib.suppress(FileNotFoundError):
            names = os.listdir(folder)
        if time.monotonic() - begin > wait and (
            kind == "time" or any(name.startswith(kind) for name in names)
        ):
            time.sleep(later)
            return
        if kind == "time":
            time.sleep(0.002)


def _newest(workdir: Path) -> int:
    """Returns the step of the newest checkpoint; 0 if there is none."""
    return max((int(path.name) for path in (workdir / "checkpoints").glob("[0-9]*")), default=0)


class Disturbed:
    """Disturbs runs of one config and compares each with an undisturbed run."""

    def __init__(self, folder: Path, undisturbed: Path, flag: str, seen: Counter[str]):
        """Keeps the arguments; trains nothing yet.

        Args:
          folder: where the runs are written.
          undisturbed: the workdir of the finished run to compare with.
          flag: `--config=FILE` of that run.
          seen: counts what the processes were doing when they were stopped.
        """
        self._folder, self._undisturbed, self._flag = folder, undisturbed, flag
        self._seconds: dict[Any, float] = {}
        self.seen = seen

    def _measure(self, kind: Callable[..., Process]) -> float:
        """Returns the length of an undisturbed run in seconds."""
        if kind not in self._seconds:
            for _ in range(2):  # the first run also starts the server and fills the caches
                begin = time.monotonic()
                workdir = self._folder / f"measured{time.monotonic_ns()}"
                process = kind(self._folder / "err", self._flag, f"--workdir={workdir}")
                code = process.wait()
                assert code == 0, process.err()
                self._seconds[kind] = time.monotonic() - begin
        return self._seconds[kind]

    def trial(self, number: int, rng: random.Random, signals: tuple[int, ...]) -> str:
        """Stops a run with a signal up to three times, then lets it finish.

        Args:
          number: the trial's number.
          rng: chooses the signals and the moments.
          signals: one of them is sent each time, sometimes twice.
        """
        kind: Callable[..., Process] = Command if number % 10 == 9 else Forked
        seconds = self._measure(kind)
        workdir, log = self._folder / f"run{number}", self._folder / "err"
        arguments = [log, self._flag, f"--workdir={workdir}"]
        kinds = ("time", *TRACES) if signal.SIGKILL in signals else ("time",)
        for _ in range(rng.randint(1, 3)):
            before = _newest(workdir)
            one = rng.choice(signals)
            process = kind(*arguments)
            assert process.pid is not None
            _moment(rng.choice(kinds), workdir / "checkpoints", rng, seconds)
            twice = one in EXIT_CODES and rng.random() < 0.3
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, one)
                if twice:
                    time.sleep(rng.uniform(0, 0.1))
                    os.kill(process.pid, one)
            code = process.wait()
            if code not in (EXIT_CODES.get(one, -one), -one, 0):
                return f"exit code {code} after {signal.Signals(one).name}: {process.err()}"
            if "saving, then stopping" in process.err() and code and not twice:
                if _newest(workdir) <= before:
                    return f"{SILENT}it announced a save but did not save"
                self.seen["saved"] += 1
            self._note(code, workdir)
        process = kind(*arguments)
        if code := process.wait():
            return f"exit code {code}: {process.err()}"
        what = program.difference(workdir, self._undisturbed)
        return SILENT + what if what else SURVIVED

    def _note(self, code: int, workdir: Path) -> None:
        """Counts what the process was doing when it was stopped."""
        if code == 0:
            self.seen["after the end"] += 1
            return
        self.seen["stops"] += 1
        folder = workdir / "checkpoints"
        for name in os.listdir(folder) if folder.is_dir() else ():
            for beginning, words in TRACES.items():
                self.seen[words] += name.startswith(beginning)
