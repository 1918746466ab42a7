"""Kills one of a job's two processes at a random moment, then starts the job again."""

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from cifar_jax.parallel import processes
from cifar_jax.runs import workdir as workdir_lib
from tests import program
from tests.faults.stops import SILENT, SURVIVED, Forked
from tests.loopback import unanswered_port

FIELDS = {"num_steps": 12, "steps_per_call": 1, "eval_every_steps": 4, "checkpoint__every_steps": 1}
NUM_PROCESSES = 2
# After a kill the others must end within the heartbeat's timeout, or that of the job's start, plus
# some time for a busy machine: whether the job had already started -> seconds.
_MOST_SECONDS = {True: processes.HEARTBEAT_TIMEOUT + 60, False: processes.JOIN_TIMEOUT + 60}


def start(folder: Path, *arguments: str) -> list[Forked]:
    """Starts a job's two processes on this machine, with one CPU device each.

    Args:
      folder: where their stderr is kept.
      *arguments: of `main.py`.
    """
    port = unanswered_port()
    flags = ["--distributed", f"--coordinator=127.0.0.1:{port}", f"--num_processes={NUM_PROCESSES}"]
    flags.append("--config.num_cpu_devices=1")
    return [
        Forked(folder / f"err{number}", *arguments, *flags, f"--process_id={number}")
        for number in range(NUM_PROCESSES)
    ]


def wait(processes: Sequence[Forked], seconds: int = 600) -> tuple[list[int], float]:
    """Waits until all have ended; returns the exit codes and the seconds that took.

    Time in which this process itself was paused does not count.

    Args:
      processes: of a job.
      seconds: how long to wait.

    Raises:
      TimeoutError: some still run after that.
    """
    for tick in range(20 * seconds):
        codes = [process.code() for process in processes]
        if None not in codes:
            return [int(code or 0) for code in codes], tick / 20
        time.sleep(0.05)
    raise TimeoutError(f"the processes did not end: {[process.err() for process in processes]}")


def _reached(workdir: Path, step: int) -> bool:
    """Returns whether a run has saved this step or a later one."""
    return any(int(p.name) >= step for p in (workdir / "checkpoints").glob("[0-9]*"))


class Killed:
    """Kills one process of each job and compares the job with an undisturbed one."""

    def __init__(self, folder: Path, seen: Counter[str]):
        """Trains the undisturbed job.

        Args:
          folder: where the runs are written.
          seen: counts which processes were killed and how the others ended.
        """
        folder.mkdir(exist_ok=True)
        self._folder, self.seen = folder, seen
        self._flag = program.write_config(folder / "job.py", **FIELDS)
        self._undisturbed, self._seconds = folder / "undisturbed", 0.0
        for name in ("cold", "undisturbed"):  # the first job fills the caches
            begin = time.monotonic()
            processes = start(folder, self._flag, f"--workdir={folder / name}")
            codes, _ = wait(processes)
            assert codes == [0] * NUM_PROCESSES, [process.err() for process in processes]
            self._seconds = time.monotonic() - begin

    def trial(self, number: int, rng: random.Random) -> str:
        """Kills a process of a job, waits for the other to end, and starts the job again.

        Args:
          number: the trial's number.
          rng: chooses the process and the step (0: before the first is saved).
        """
        workdir = self._folder / f"run{number}"
        arguments = (self._flag, f"--workdir={workdir}")
        processes = start(self._folder, *arguments)
        step, victim = rng.randrange(FIELDS["num_steps"]), rng.randrange(NUM_PROCESSES)
        later = rng.uniform(0, 0.5 * self._seconds) if step == 0 else rng.uniform(0, 0.05)
        for _ in range(60_000):
            if step == 0 or _reached(workdir, step):
                break
            time.sleep(0.002)
        time.sleep(later)
        pid = processes[victim].pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        codes, seconds = wait(processes)
        if codes[victim] == -signal.SIGKILL:
            self.seen[f"process {victim} killed"] += 1
            others = [code for place, code in enumerate(codes) if place != victim]
            words = processes[1 - victim].err()
            if 0 in others and not (workdir / "result.json").exists():
                return f"{SILENT}another process ended with 0, without a result"
            joined = (workdir / workdir_lib.CONFIG).exists()
            if seconds > _MOST_SECONDS[joined]:
                return f"the others took {seconds:.0f} s to end"
            self.seen["told by us"] += "error: another process of the job has ended" in words
            self.seen["told by XLA"] += "another task died" in words
            when = "ms to the end" if joined else "ms to the end, killed at the start"
            self.seen[when] = max(self.seen[when], round(1000 * seconds))
        processes = start(self._folder, *arguments)
        codes, _ = wait(processes)
        if any(codes):
            return f"exit codes {codes}: {[process.err() for process in processes]}"
        what = program.difference(workdir, self._undisturbed)
        return SILENT + what if what else SURVIVED
