"""A run's parts, its progress, and what it logs."""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flax import linen as nn
from jax.sharding import Mesh
from ml_collections import ConfigDict

from cifar_jax.config.durations import WARMUP_SHARE, Durations
from cifar_jax.data.datasets import Dataset
from cifar_jax.evaluation.scores import Scores
from cifar_jax.models.layer_table import format_layers, layer_table
from cifar_jax.optim.schedules import Schedule
from cifar_jax.parallel import devices, processes, seeds
from cifar_jax.runs.checkpoint import Checkpoints
from cifar_jax.runs.history import average
from cifar_jax.runs.logs import Logs
from cifar_jax.text import format_duration, format_number
from cifar_jax.training import metrics as metrics_lib
from cifar_jax.training.program import Feed

# Called with the step and each seed's scores.
Watch = Callable[[int, Sequence[Scores]], None]


class Run(NamedTuple):
    """The parts of a run; none of them is replaced while it trains."""

    config: ConfigDict
    workdir: Path
    dataset: Dataset
    durations: Durations
    mesh: Mesh
    model: nn.Module
    checkpoints: Checkpoints
    feed: Feed
    logs: Logs
    learning_rate: Schedule
    watch: Watch | None = None

    @property
    def seeds(self) -> list[int]:
        """The seeds that it trains."""
        return seeds.seed_list(self.config)


@dataclasses.dataclass
class Progress:
    """A run's progress, as the host counts it; each checkpoint holds the result of `saved`.

    Attributes:
      step: the number of steps made.
      seconds: time spent so far, earlier starts included.
      sums: those of the metrics since the last end of an epoch or evaluation.
      stepping: seconds spent in the steps of these sums.
      recent: those of the metrics since the last line of the log.
    """

    step: int = 0
    seconds: float = 0.0
    sums: metrics_lib.Sums = dataclasses.field(default_factory=dict)
    stepping: float = 0.0
    recent: metrics_lib.Sums = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        self._started = time.monotonic()
        self.resume({})

    def resume(self, saved: Mapping[str, Any]) -> None:
        """Continues from what `saved` returned in an earlier start; this start's clock runs on."""
        for field in dataclasses.fields(self):
            setattr(self, field.name, saved.get(field.name, getattr(self, field.name)))
        self._before, self._from_step, self._from = self.seconds, self.step, 0.0

    def add(self, num_steps: int, seconds: float) -> None:
        """Counts some steps, and the time that they took."""
        self._from = self._from or time.monotonic() - seconds
        self.step += num_steps
        self.stepping += seconds
        self.seconds = self._before + time.monotonic() - self._started

    def pace(self) -> float:
        """Returns this start's seconds per step, including the time between the calls.

        The time before the first step, such as for compilation, does not count.
        """
        return (time.monotonic() - self._from) / max(1, self.step - self._from_step)

    def saved(self) -> dict[str, Any]:
        """Returns the argument of `resume`, as JSON values."""
        return dataclasses.asdict(self)


def log_summary(run: Run, progress: Progress) -> None:
    """Prints the layers, the data, the devices and the progress so far."""
    dataset, durations = run.dataset, run.durations
    shape = dataset.splits["train"].images.shape[1:]
    run.logs.say(format_layers(layer_table(run.model, shape)))
    sizes = ", ".join(f"{len(split.labels)} {name}" for name, split in dataset.splits.items())
    placed = "on the device" if run.feed.resident else "streamed from the host"
    run.logs.say(f"data: {dataset.name} ({sizes}), {placed}; {devices.describe_devices()}")
    epochs = format_number(durations.total / durations.steps_per_epoch)
    epochs += " epoch" if epochs == "1" else " epochs"
    run.logs.say(f"{durations.total} steps ({epochs}) in {run.workdir}")
    for remark in dataset.remarks:
        run.logs.say(remark)
    if (stride := getattr(run.model, "stem_stride", 1)) > 1:
        run.logs.say(f"the stem has a stride of {stride}, for images of {shape[0]}x{shape[1]}")
    if durations.warmup < durations.full_warmup:
        run.logs.say(
            f"the warm-up of {durations.full_warmup} steps is as long as the run or longer: it "
            f"takes {durations.warmup} steps, {WARMUP_SHARE:.0%} of the run"
        )
    if len(run.seeds) > 1:
        run.logs.say(seeds.describe_seeds(run.config, run.mesh))
    if progress.step:
        run.logs.say(f"resuming from the checkpoint of step {progress.step}")
    elif run.config.init_from:
        run.logs.say(f"starting from the weights of {run.config.init_from}")


def update_bar(run: Run, progress: Progress) -> None:
    """Updates the progress bar."""
    epoch, done = divmod(progress.step - 1, run.durations.steps_per_epoch)
    run.logs.progress(
        epoch + 1, done + 1, run.durations.steps_per_epoch, **metrics_lib.means(progress.sums)
    )


def log_steps(run: Run, progress: Progress, measured: np.ndarray) -> None:
    """Adds the steps of a call to the sums, and writes a line after every `log_every` of them.

    The step after which an epoch or an evaluation ends has its line from `log_metrics`.

    Args:
      run: the run.
      progress: its progress, which counts these steps already.
      measured: the steps' metrics, [steps, 2] or [seeds, steps, 2].
    """
    every, batch_size = run.durations.log_every, run.config.batch_size
    first = done = progress.step - measured.shape[-2]
    for step in range(first - first % every + every, progress.step + 1, every) if every else ():
        part = measured[..., done - first : step - first, :]
        progress.recent, done = metrics_lib.add_steps(progress.recent, part, batch_size), step
        if not run.durations.is_whole(step):
            run.logs.write(*_make_lines(run, step, progress.recent), at_once=False)
            progress.recent = {}
    part = measured[..., done - first :, :]
    progress.recent = metrics_lib.add_steps(progress.recent, part, batch_size)
    progress.sums = metrics_lib.add_steps(progress.sums, measured, batch_size)


def log_metrics(run: Run, progress: Progress, scores: Sequence[Scores]) -> None:
    """Writes a line to the log and to the console, and resets the sums for the next line.

    The log's is of the steps since its last line, the console's of those since its own. With
    several seeds the log gets a line for each seed, the console one with their means.

    Args:
      run: the run.
      progress: its progress.
      scores: each seed's scores in the evaluation after this step; empty if there was none.
    """
    durations = run.durations
    speed = float(np.sum(progress.sums["loss"][1])) / progress.stepping
    left = progress.pace() * (durations.total - progress.step)
    lines = _make_lines(run, progress.step, progress.recent)
    for place, line in enumerate(lines):
        if scores:
            line |= {"eval_loss": scores[place].loss, "eval_accuracy": scores[place].accuracy}
        line |= {"images_per_second": speed, "seconds": progress.seconds}
    processes.run_on_first(lambda: run.logs.write(*lines))
    epochs = (step / durations.steps_per_epoch for step in (progress.step, durations.total))
    words = f"epoch {'/'.join(map(format_number, epochs))}"
    mean = metrics_lib.means(progress.sums)
    words += f"  train loss {mean['loss']:.4f} accuracy {mean['accuracy']:.2%}"
    if scores:
        mean = average(lines)
        words += "  validation" if "validation" in run.dataset.splits else "  test"
        words += f" loss {mean['eval_loss']:.4f} accuracy {mean['eval_accuracy']:.2%}"
    run.logs.say(f"{words}  {speed:.0f} images/s  {format_duration(left)} left")
    progress.sums, progress.recent, progress.stepping = {}, {}, 0.0


def _make_lines(run: Run, step: int, sums: metrics_lib.Sums) -> list[dict[str, Any]]:
    """Returns the log's lines of a step, one for each seed."""
    rate = float(run.learning_rate(step - 1))
    lines = []
    for place, own in enumerate(metrics_lib.by_seed(sums)):
        line: dict[str, Any] = {"step": step, "epoch": step / run.durations.steps_per_epoch}
        if len(run.seeds) > 1:
            line["seed"] = run.seeds[place]
        line |= {f"train_{name}": value for name, value in metrics_lib.means(own).items()}
        lines.append(line | {"learning_rate": rate})
    return lines
