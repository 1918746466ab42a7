"""The log of a run: lines and a progress bar on the console, metrics.jsonl, TensorBoard."""

import contextlib
import errno
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from cifar_jax.runs import history
from cifar_jax.runs import workdir as workdir_lib
from cifar_jax.text import SILENT_SECONDS, bar_stream, say_every_minute

# tensorboardX imports PyTorch if it is installed, which takes seconds and is not needed here.
_had_torch = "torch" in sys.modules
if not _had_torch:
    sys.modules["torch"] = None  # type: ignore[assignment]
try:
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto.event_pb2 import Event, SessionLog
    from tensorboardX.summary import scalar
finally:
    if not _had_torch:
        del sys.modules["torch"]

# How long lines wait that need not be written at once.
_WAIT_SECONDS = 1.0

_log = logging.getLogger(__name__)


class Logs:
    """The log of one run.

    A full disk does not stop a run: lines that cannot be written are kept until they can be. Nor
    does a terminal that was closed.

    Attributes:
      unread: SIGPIPE once nobody reads what is printed (`| head`); the run saves and ends.
    """

    unread: int | None = None

    def __init__(self, workdir: Path, step: int, tensorboard: bool, active: bool = True):
        """Opens the log at a step and deletes the lines that an earlier start wrote past it.

        Args:
          workdir: the run's folder.
          step: the step that this start of the run continues from.
          tensorboard: whether to write curves.
          active: whether to write and print anything: False in all processes of a job but one.
        """
        self._path = workdir / workdir_lib.METRICS
        self._active = active
        self._bar: tqdm | None = None
        self._waiting: list[str] = []
        self._written = 0.0
        self._said = time.monotonic()
        self._curves_folder = workdir / "tensorboard" if tensorboard else None
        self._curves: Curves | None = None
        self._step = step
        if active:
            workdir_lib.check_lease(workdir)
            history.rewind(self._path, step)

    def say(self, text: str) -> None:
        """Prints a line, above the bar if there is one."""
        if self._active:
            self.close_bar()
            self._said = time.monotonic()
            try:
                print(text, flush=True)
            except BrokenPipeError:
                self.unread = signal.SIGPIPE
                # What is left in the buffer goes nowhere, rather than into each later line.
                with contextlib.suppress(OSError):
                    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            except (OSError, ValueError) as error:  # ValueError: the stream has been closed
                _log.warning("a line could not be printed: %s", error)

    def write(self, *lines: Mapping[str, Any], at_once: bool = True) -> None:
        """Adds lines to metrics.jsonl, and their means to the curves.

        Args:
          *lines: objects with "step" and metrics: one, or one per seed, all of the same step.
          at_once: whether they are written now, or by the next `flush` or `keep_up`: a write takes
            the time that the disk needs.
        """
        if not self._active:
            return
        self._waiting.append("".join(json.dumps(dict(line)) + "\n" for line in lines))
        if at_once:
            self.flush()
        if self._curves_folder:
            points = history.average(lines)
            step = points.pop("step")
            points.pop("epoch", None)
            try:
                self._curves = self._curves or Curves(self._curves_folder, self._step)
                self._curves.write(int(step), points)
                self._step = int(step)  # where the curves go on after a write that fails
            except OSError as error:
                _log.warning("TensorBoard: step %d is skipped: %s", step, error.strerror)
                self._close_curves()

    def keep_up(self) -> None:
        """Writes the lines that wait, unless some were written just now; checks the lease."""
        workdir_lib.check_lease(self._path.parent)
        if time.monotonic() - self._written > _WAIT_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Writes the lines that wait."""
        if not self._waiting:
            return
        self._written = time.monotonic()
        workdir_lib.check_lease(self._path.parent)
        try:
            _append(self._path, "".join(self._waiting))
            self._waiting.clear()
        except OSError as error:
            _log.warning(
                "%s cannot be written now, lines are kept for later: %s", self._path, error.strerror
            )

    def progress(self, epoch: int, done: int, total: int, **metrics: float) -> None:
        """Updates the progress bar of an epoch, on a terminal or in a notebook.

        Elsewhere it prints a line if nothing was printed for a minute.
        """
        stream = bar_stream()
        if self._active and stream is None and time.monotonic() - self._said > SILENT_SECONDS:
            words = " ".join(f"{name} {value:.4f}" for name, value in metrics.items())
            self.say(f"epoch {epoch}: step {done} of {total}  {words}")
        if not self._active or stream is None:
            return
        if self._bar is None:
            self._bar = tqdm(total=total, leave=False, unit="step", dynamic_ncols=True, file=stream)
        self._bar.set_description(f"epoch {epoch}", refresh=False)
        self._bar.set_postfix({name: f"{value:.4f}" for name, value in metrics.items()}, False)
        self._bar.n = done
        self._bar.refresh()  # nothing, once the terminal has been closed

    def during(self, what: str) -> contextlib.AbstractContextManager[None]:
        """Returns a block in which a line a minute says what is done, where there is no bar."""
        return say_every_minute(what, self.say) if self._active else contextlib.nullcontext()

    def close_bar(self) -> None:
        """Removes the bar from the terminal."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def close(self) -> None:
        """Removes the bar and closes the files."""
        self.close_bar()
        self.flush()
        self._close_curves()

    def _close_curves(self) -> None:
        if self._curves:
            with contextlib.suppress(OSError):
                self._curves.close()
            self._curves = None


def _append(path: Path, text: str) -> None:
    """Appends all of a text to a file, or nothing."""
    with path.open("ab", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        try:
            if file.write(text.encode()) != len(text):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(file.fileno())
        except OSError:
            file.truncate(size)
            raise


class Curves:
    """A TensorBoard event file, written without TensorFlow; each start of a run has its own.

    tensorboardX's SummaryWriter is not used: on a full disk its thread dies and then blocks the
    run. Here a write that fails raises OSError.
    """

    def __init__(self, folder: Path, step: int):
        """Opens a file that replaces what earlier starts wrote past `step`."""
        folder.mkdir(exist_ok=True)
        earlier = any(folder.iterdir())
        # The name has only the second; a file of that name would be written over.
        self._writer = EventsWriter(str(folder / "events"), f".{time.time_ns()}")
        if step or earlier:
            self._add(step=step + 1, session_log=SessionLog(status=SessionLog.START))

    def write(self, step: int, values: dict[str, float]) -> None:
        """Adds a point to each named curve."""
        for name, value in values.items():
            self._add(step=step, summary=scalar(name, value))
        self._writer.flush()

    def close(self) -> None:
        """Closes the file."""
        self._writer.close()

    def _add(self, **fields: Any) -> None:
        self._writer.write_event(Event(wall_time=time.time(), **fields))
