"""What a run says: lines and a bar on the console, metrics.jsonl, TensorBoard."""

import contextlib
import errno
import itertools
import json
import logging
import math
import os
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from cifar_jax import workdir as workdir_lib
from cifar_jax.curves import Curves
from cifar_jax.errors import UserError

_log = logging.getLogger(__name__)


class Logs:
    """The log of one run; with `active` False (other hosts) it does nothing.

    A full disk does not stop a run: lines that find no room are kept and written with a later one.
    """

    def __init__(self, workdir: Path, step: int, tensorboard: bool, active: bool = True):
        """Opens the log at a step: what an earlier start wrote past it is taken back."""
        self._path = workdir / workdir_lib.METRICS
        self._active = active
        self._bar: tqdm | None = None
        self._waiting: list[str] = []
        self._curves_folder = workdir / "tensorboard" if tensorboard else None
        self._curves: Curves | None = None
        self._step = step
        if active:
            rewind(self._path, step)

    def say(self, text: str) -> None:
        """Prints a line, above the bar if there is one."""
        if self._active:
            self.close_bar()
            try:
                print(text, flush=True)
            except BrokenPipeError:
                raise
            except OSError as error:
                _log.warning("a line could not be printed: %s", error.strerror)

    def write(self, *lines: Mapping[str, Any]) -> None:
        """Adds objects with "step" and metrics to metrics.jsonl, and their means to the curves.

        Args:
          *lines: of one step: a single one, or one for each seed.
        """
        if not self._active:
            return
        self._waiting.append("".join(json.dumps(dict(line)) + "\n" for line in lines))
        self._append_waiting()
        if self._curves_folder:
            points = average(lines)
            step = points.pop("step")
            try:
                self._curves = self._curves or Curves(self._curves_folder, self._step)
                self._curves.write(int(step), points)
            except OSError as error:
                _log.warning("curves: step %d is left out: %s", step, error.strerror)
                self._curves = None

    def _append_waiting(self) -> None:
        try:
            _append(self._path, "".join(self._waiting))
            self._waiting.clear()
        except OSError as error:
            _log.warning("%s waits for room: %s", self._path, error.strerror)

    def progress(self, epoch: int, done: int, total: int, **metrics: float) -> None:
        """Moves the bar of an epoch, on a terminal only."""
        if not self._active or not sys.stderr.isatty():
            return
        if self._bar is None:
            self._bar = tqdm(total=total, leave=False, unit="step", dynamic_ncols=True)
        self._bar.set_description(f"epoch {epoch}", refresh=False)
        self._bar.set_postfix({name: f"{value:.4f}" for name, value in metrics.items()}, False)
        self._bar.n = done
        self._bar.refresh()

    def close_bar(self) -> None:
        """Takes the bar off the terminal."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def close(self) -> None:
        """Ends the bar and the curves."""
        self.close_bar()
        if self._waiting:
            self._append_waiting()
        if self._curves:
            with contextlib.suppress(OSError):
                self._curves.close()


def _append(path: Path, text: str) -> None:
    """Adds all of a text to a file, or nothing."""
    with path.open("ab", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        try:
            if file.write(text.encode()) != len(text):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(file.fileno())
        except OSError:
            file.truncate(size)
            raise


def rewind(path: Path, step: int) -> None:
    """Takes back the lines of a metrics.jsonl past a step, and a last line that is cut off."""
    if path.exists():
        kept = [line for line in read(path) if line["step"] <= step]
        workdir_lib.write_text(path, "".join(json.dumps(line) + "\n" for line in kept))


def read(path: Path) -> list[dict[str, Any]]:
    """Returns the objects of a metrics.jsonl, without a last line that is cut off.

    Any other line that cannot be read is left out with a warning.
    """
    lines = []
    texts = path.read_bytes().splitlines()
    for number, text in enumerate(texts, start=1):
        try:
            line = json.loads(text)
            if not isinstance(line["step"], int):
                raise TypeError
            lines.append(line)
        except (ValueError, TypeError, KeyError, RecursionError):
            if number < len(texts):
                _log.warning("line %d of %s is damaged and left out", number, path)
    return lines


def history(workdir: Path) -> list[dict[str, float]]:
    """Returns what a run has logged so far: for each line its values that are numbers.

    The lines of several seeds become one, with their means and, as NAME_low and NAME_high, the
    lowest and the highest of what differs between seeds.

    Raises:
      UserError: the log cannot be read, or a line of it has no epoch.
    """
    path = workdir / workdir_lib.METRICS
    try:
        lines = [numbers(line) for line in read(path)] if path.exists() else []
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    if any("epoch" not in line for line in lines):
        raise UserError(f"{path} is damaged: a line has no epoch")
    return [
        row
        for _, group in itertools.groupby(lines, key=lambda line: (line["step"], "seed" in line))
        for row in _merge(list(group))
    ]


def _merge(lines: list[dict[str, float]]) -> list[dict[str, float]]:
    if "seed" not in lines[0]:
        return lines
    edges = {
        f"{name}_{edge}": choose(line[name] for line in lines if name in line)
        for name in lines[0]
        if name.startswith(("train_", "eval_"))
        for edge, choose in (("low", min), ("high", max))
    }
    return [average(lines) | edges]


def average(lines: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Returns the mean of each value that is a number, over the seeds; a single line as it is."""
    every = [numbers(line) for line in lines]
    if len(every) == 1 and "seed" not in every[0]:
        return every[0]
    names = dict.fromkeys(name for line in every for name in line if name != "seed")
    means = {name: statistics.fmean(x[name] for x in every if name in x) for name in names}
    return means | {"step": every[0]["step"]}


def numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """Returns those of the values that are numbers."""
    return {
        name: value
        for name, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


def duration(seconds: float) -> str:
    """Returns words for a time, such as "1:05" or "2:03:09"; "-" if it is not finite."""
    if not math.isfinite(seconds):
        return "-"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
