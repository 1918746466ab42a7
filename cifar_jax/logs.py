"""What a run says: lines and a bar on the console, metrics.jsonl, TensorBoard."""

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter
from tqdm import tqdm

from cifar_jax import workdir as workdir_lib


class Logs:
    """The log of one run; with `active` False (other hosts) it does nothing."""

    def __init__(self, workdir: Path, step: int, tensorboard: bool, active: bool = True):
        """Opens the log at a step: what an earlier start wrote past it is taken back."""
        self._path = workdir / workdir_lib.METRICS
        self._active = active
        self._bar: tqdm | None = None
        self._writer: SummaryWriter | None = None
        if not active:
            return
        rewind(self._path, step)
        if tensorboard:
            folder = str(workdir / "tensorboard")
            self._writer = SummaryWriter(folder, purge_step=step + 1 if step else None)

    def say(self, text: str) -> None:
        """Prints a line, above the bar if there is one."""
        if self._active:
            self.close_bar()
            print(text, flush=True)

    def write(self, values: Mapping[str, Any]) -> None:
        """Adds an object with "step" and metrics to metrics.jsonl and to the curves."""
        if not self._active:
            return
        with self._path.open("a") as file:
            file.write(json.dumps(dict(values)) + "\n")
            file.flush()
            os.fsync(file.fileno())
        if self._writer:
            for name, value in values.items():
                if name != "step" and isinstance(value, int | float):
                    self._writer.add_scalar(name, value, values["step"])
            self._writer.flush()

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
        if self._writer:
            self._writer.close()


def rewind(path: Path, step: int) -> None:
    """Takes back the lines of a metrics.jsonl past a step, and a last line that is cut off."""
    if not path.exists():
        return
    kept = [line for line in read(path) if line["step"] <= step]
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text("".join(json.dumps(line) + "\n" for line in kept))
    temporary.replace(path)


def read(path: Path) -> list[dict[str, Any]]:
    """Returns the objects of a metrics.jsonl, without a last line that is cut off."""
    lines = []
    for text in path.read_text().splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            break
        lines.append(line)
    return lines


def duration(seconds: float) -> str:
    """Returns words for a time, such as "1:05" or "2:03:09"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
