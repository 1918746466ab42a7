"""A run's parts, its progress, and what it logs."""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh
from ml_collections import ConfigDict

from cifar_jax.config.durations import Durations
from cifar_jax.data.datasets import Dataset
from cifar_jax.evaluation.scores import Scores
from cifar_jax.models.layer_table import format_layers, layer_table
from cifar_jax.optim.schedules import create_schedule
from cifar_jax.parallel import devices, processes, seeds
from cifar_jax.runs.checkpoint import Checkpoints
from cifar_jax.runs.history import average
from cifar_jax.runs.logs import Logs
from cifar_jax.text import format_duration
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
      sums: those of the metrics since the last line of the log.
      stepping: seconds spent in the steps of these sums.
    """

    step: int = 0
    seconds: float = 0.0
    sums: metrics_lib.Sums = dataclasses.field(default_factory=dict)
    stepping: float = 0.0

    def __post_init__(self) -> None:
        self._started = time.monotonic()
        self.resume({})

    def resume(self, saved: Mapping[str, Any]) -> None:
        """Continues from what `saved` returned in an earlier start; this start's clock runs on."""
        for name in ("step", "seconds", "sums", "stepping"):
            setattr(self, name, saved.get(name, getattr(self, name)))
        self._before, self._from_step, self._from = self.seconds, self.step, 0.0

    def add(self, num_steps: int, seconds: float, metrics: metrics_lib.Metrics) -> None:
        """Counts some steps.

        Args:
          num_steps: the number of steps.
          seconds: the time that they took.
          metrics: those after these steps.
        """
        self._from = self._from or time.monotonic() - seconds
        self.step += num_steps
        self.stepping += seconds
        self.seconds = self._before + time.monotonic() - self._started
        self.sums = metrics_lib.to_sums(jax.device_get(metrics))

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
    epochs = durations.total / durations.steps_per_epoch
    run.logs.say(f"{durations.total} steps ({epochs:g} epochs) in {run.workdir}")
    for remark in dataset.remarks:
        run.logs.say(remark)
    if (stride := getattr(run.model, "stem_stride", 1)) > 1:
        run.logs.say(f"the stem has a stride of {stride}, for images of {shape[0]}x{shape[1]}")
    if len(run.seeds) > 1:
        run.logs.say(seeds.describe_seeds(run.config, run.mesh))
    if progress.step:
        run.logs.say(f"resuming from the checkpoint of step {progress.step}")


def update_bar(run: Run, progress: Progress) -> None:
    """Updates the progress bar."""
    epoch, done = divmod(progress.step - 1, run.durations.steps_per_epoch)
    run.logs.progress(
        epoch + 1, done + 1, run.durations.steps_per_epoch, **metrics_lib.means(progress.sums)
    )


def log_metrics(run: Run, progress: Progress, scores: Sequence[Scores]) -> None:
    """Writes a line to the log and to the console, and resets the sums for the next line.

    With several seeds the log gets a line for each seed, the console one with their means.

    Args:
      run: the run.
      progress: its progress.
      scores: each seed's scores in the evaluation after this step; empty if there was none.
    """
    durations = run.durations
    rate = create_schedule(run.config, durations)(progress.step - 1)
    speed = float(np.sum(progress.sums["loss"][1])) / progress.stepping
    left = progress.pace() * (durations.total - progress.step)
    epoch = progress.step / durations.steps_per_epoch
    lines = []
    for place, sums in enumerate(metrics_lib.by_seed(progress.sums)):
        line = {"step": progress.step, "epoch": epoch}
        if len(run.seeds) > 1:
            line["seed"] = run.seeds[place]
        line |= {f"train_{name}": value for name, value in metrics_lib.means(sums).items()}
        if scores:
            line |= {"eval_loss": scores[place].loss, "eval_accuracy": scores[place].accuracy}
        line |= {"learning_rate": float(rate), "images_per_second": speed}
        lines.append(line | {"seconds": progress.seconds})
    processes.run_on_first(lambda: run.logs.write(*lines))
    mean = average(lines)
    words = f"epoch {epoch:g}/{durations.total / durations.steps_per_epoch:g}"
    split = "validation" if "validation" in run.dataset.splits else "test"
    for kind, name in (("train", "train"), ("eval", split)):
        if f"{kind}_loss" in mean:
            words += f"  {name} loss {mean[f'{kind}_loss']:.4f}"
            words += f" accuracy {mean[f'{kind}_accuracy']:.2%}"
    run.logs.say(f"{words}  {speed:.0f} images/s  {format_duration(left)} left")
    progress.sums, progress.stepping = {}, 0.0
