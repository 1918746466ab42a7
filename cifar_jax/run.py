"""What a run is made of, and what it does between the calls of its compiled program."""

import dataclasses
import errno
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import jax
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh
from ml_collections import ConfigDict

from cifar_jax import config as config_lib
from cifar_jax import datasets, devices, hosts, sampling, summary, views
from cifar_jax import metrics as metrics_lib
from cifar_jax import scores as scores_lib
from cifar_jax import seeds as seeds_lib
from cifar_jax import state as state_lib
from cifar_jax import workdir as workdir_lib
from cifar_jax.checkpoint import Checkpoints
from cifar_jax.durations import Durations
from cifar_jax.errors import UserError
from cifar_jax.logs import Logs, average, duration


class Run(NamedTuple):
    """What a run is made of; nothing in it changes."""

    config: ConfigDict
    workdir: Path
    dataset: datasets.Dataset
    durations: Durations
    mesh: Mesh
    model: nn.Module
    checkpoints: Checkpoints
    feed: sampling.Feed
    logs: Logs

    @property
    def seeds(self) -> list[int]:
        """The seeds that it trains."""
        return seeds_lib.of(self.config)


@dataclasses.dataclass
class Progress:
    """Where a run stands, as the host counts it; `saved` goes into each checkpoint.

    Attributes:
      step: steps made.
      seconds: time spent so far, earlier starts included.
      sums: of the metrics since the last line of the log.
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
        """Takes over what `saved` returned in an earlier start; the clock of this one goes on."""
        for name, value in saved.items():
            setattr(self, name, value)
        self._before, self._from_step, self._from = self.seconds, self.step, 0.0

    def add(self, num_steps: int, seconds: float, metrics: metrics_lib.Metrics) -> None:
        """Counts steps that took some seconds and brought the metrics to what they are now."""
        self._from = self._from or time.monotonic() - seconds
        self.step += num_steps
        self.stepping += seconds
        self.seconds = self._before + time.monotonic() - self._started
        self.sums = metrics_lib.to_sums(jax.device_get(metrics))

    def pace(self) -> float:
        """Returns the seconds for a step of this start, with all that is done between the calls.

        What was done before the first step, such as compiling, does not count.
        """
        return (time.monotonic() - self._from) / max(1, self.step - self._from_step)

    def saved(self) -> dict[str, Any]:
        """Returns what `resume` takes over, as JSON values."""
        return dataclasses.asdict(self)


def introduce(run: Run, progress: Progress) -> None:
    """Prints the layers, the data, the devices and where the run stands."""
    dataset, durations = run.dataset, run.durations
    shape = dataset.splits["train"].images.shape[1:]
    run.logs.say(summary.format_table(summary.layer_table(run.model, shape)))
    sizes = ", ".join(f"{len(split.labels)} {name}" for name, split in dataset.splits.items())
    placed = "on the device" if run.feed.resident else "streamed from the host"
    run.logs.say(f"data: {dataset.name} ({sizes}), {placed}; {devices.describe()}")
    epochs = durations.total / durations.steps_per_epoch
    run.logs.say(f"{durations.total} steps ({epochs:g} epochs) in {run.workdir}")
    if len(run.seeds) > 1:
        run.logs.say(seeds_lib.describe(run.config, run.mesh))
    if progress.step:
        run.logs.say(f"going on from the checkpoint of step {progress.step}")


def show(run: Run, progress: Progress) -> None:
    """Moves the bar."""
    epoch, done = divmod(progress.step - 1, run.durations.steps_per_epoch)
    run.logs.progress(
        epoch + 1, done + 1, run.durations.steps_per_epoch, **metrics_lib.means(progress.sums)
    )


def make_predict(run: Run, test_time: Any = None) -> views.Predict:
    """Returns the function that `score_split` takes, with test-time augmentation if given."""
    mean, std = run.dataset.mean, run.dataset.std
    runs = (len(run.seeds), seeds_lib.at_once(run.config))
    return views.make_predict(run.model, run.mesh, mean, std, test_time, *runs)


def score_split(
    run: Run, state: state_lib.TrainState, predict: views.Predict, split_name: str
) -> list[scores_lib.Scores]:
    """Scores each seed on a split, or on the test split where that one was not carved."""
    splits = run.dataset.splits
    split = splits.get(split_name, splits["test"])
    logits = predict(state.variables(), split.images, run.config.eval_batch_size)
    return [scores_lib.score(own, split.labels) for own in logits.reshape(-1, *logits.shape[-2:])]


def report(run: Run, progress: Progress, scores: Sequence[scores_lib.Scores]) -> None:
    """Writes a line to the log and to the console, and begins the next one's sums.

    Of several seeds the log gets a line each, the console their means.

    Args:
      run: what the run is made of.
      progress: where it stands.
      scores: of the evaluation, if there was one, for each seed.
    """
    durations = run.durations
    rate = state_lib.create_schedule(run.config, durations)(progress.step - 1)
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
    run.logs.write(*lines)
    mean = average(lines)
    words = f"epoch {epoch:g}/{durations.total / durations.steps_per_epoch:g}"
    for kind in ("train", "eval") if scores else ("train",):
        words += f"  {kind} loss {mean[f'{kind}_loss']:.4f} accuracy {mean[f'{kind}_accuracy']:.2%}"
    run.logs.say(f"{words}  {speed:.0f} images/s  {duration(left)} left")
    progress.sums, progress.stepping = {}, 0.0


def save(
    run: Run,
    state: state_lib.TrainState,
    progress: Progress,
    scores: Sequence[scores_lib.Scores],
) -> None:
    """Begins to save; `scores` on a validation split take part in the choice of the best.

    Raises:
      UserError: a weight is not finite; nothing is written then.
    """
    finite = state_lib.all_finite(state, len(run.seeds))
    check_finite(run, finite, f"a weight is not finite at step {progress.step}")
    metrics = None
    if scores and "validation" in run.dataset.splits:
        metrics = {"eval_accuracy": scores[0].accuracy, "eval_loss": scores[0].loss}
    dataset = run.dataset
    meta = {
        "config": config_lib.to_json(run.config),
        "progress": progress.saved(),
        "data": {
            "class_names": dataset.class_names,
            "mean": dataset.mean,
            "std": dataset.std,
            "image_shape": dataset.splits["train"].images.shape[1:],
        },
        "versions": workdir_lib.versions(),
    }
    if hosts.is_first():
        run.checkpoints.save(progress.step, state, meta, metrics)


def check_finite(run: Run, finite: Iterable[Any], what: str) -> None:
    """Goes on if all seeds are finite.

    Raises:
      UserError: it tells what is not finite, of which seeds, and which checkpoint is kept.
    """
    if all(finite):
        return
    if len(run.seeds) > 1:
        bad = [seed for seed, good in zip(run.seeds, finite, strict=True) if not good]
        what += f", seed {', '.join(map(str, bad))}"

    def stop() -> NoReturn:
        run.checkpoints.wait()
        step = run.checkpoints.find("last")
        kept = f"the checkpoint of step {step} is kept" if step else "there is no checkpoint yet"
        raise UserError(f"{what}: {kept}; try a lower optimizer.learning_rate", exit_code=1)

    hosts.ask_first(stop)


def check_saved(run: Run) -> None:
    """Waits for the save in the background.

    Raises:
      UserError: it failed.
    """

    def check() -> None:
        run.checkpoints.wait()
        if failure := run.checkpoints.failure:
            full = failure in map(os.strerror, (errno.ENOSPC, errno.EDQUOT))
            advice = "make room" if full else f"mend this ({failure})"
            raise UserError(
                f"the last checkpoint could not be saved: {advice}, then start the same command "
                "again; it goes on from the one that is kept",
                exit_code=1,
            )

    hosts.ask_first(check)


def finish(run: Run, progress: Progress, scores: Sequence[scores_lib.Scores]) -> None:
    """Writes the run's result: the last state's scores on the test split."""
    check_saved(run)
    result = {
        "name": run.workdir.name,
        "config": config_lib.to_json(run.config),
        "seed": run.config.seed,
        "step": progress.step,
        "num_epochs": progress.step / run.durations.steps_per_epoch,
        **scores_lib.result(run.seeds, scores),
        "wall_seconds": progress.seconds,
        "devices": devices.describe(),
        "environment": workdir_lib.environment(),
    }
    hosts.ask_first(lambda: workdir_lib.write_json(run.workdir / workdir_lib.RESULT, result))
    words = scores_lib.describe_seeds("test", run.seeds, scores)
    run.logs.say(f"{words}  in {duration(progress.seconds)}")
