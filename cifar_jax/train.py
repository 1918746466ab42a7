"""The loop: restore, step, log, evaluate, save."""

import dataclasses
import math
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
from flax import linen as nn
from jax.sharding import Mesh
from ml_collections import ConfigDict

from cifar_jax import config as config_lib
from cifar_jax import datasets, devices, evaluate, sampling, steps, summary
from cifar_jax import metrics as metrics_lib
from cifar_jax import state as state_lib
from cifar_jax import workdir as workdir_lib
from cifar_jax.checkpoint import Checkpoints
from cifar_jax.errors import UserError
from cifar_jax.logs import Logs, duration

# A call of the compiled program takes about that long on a CPU, so that a signal is soon heard.
_CPU_CALL_SECONDS = 1.0


class Run(NamedTuple):
    """What a run is made of; nothing in it changes."""

    config: ConfigDict
    workdir: Path
    dataset: datasets.Dataset
    durations: config_lib.Durations
    mesh: Mesh
    model: nn.Module
    checkpoints: Checkpoints
    feed: sampling.Feed
    logs: Logs


@dataclasses.dataclass
class Progress:
    """Where a run stands, as the host counts it; saved with each checkpoint.

    Attributes:
      step: steps made.
      seconds: time spent so far, earlier starts included.
      sums: of the metrics since the last line of the log.
    """

    step: int = 0
    seconds: float = 0.0
    sums: metrics_lib.Sums = dataclasses.field(default_factory=dict)


def train(config: ConfigDict, workdir: Path, signals: workdir_lib.Signals) -> int:
    """Trains, going on from the workdir's last checkpoint; returns the exit code.

    Args:
      config: a checked config.
      workdir: the run's folder, locked by this process.
      signals: notes SIGINT and SIGTERM; at one, the run saves and ends.

    Raises:
      UserError: the data cannot be had, the config does not fit the workdir or the data, or the
        loss is not finite.
    """
    started = time.monotonic()
    _record_config(config, workdir)
    part = config.batch_size // config.optimizer.accumulation_steps
    devices.configure(part, config.num_cpu_devices)
    mesh = devices.make_mesh(part)
    dataset = datasets.load(config.data.name, config.data.data_dir)
    if config.data.validation_examples:
        dataset = datasets.carve_validation(dataset, config.data.validation_examples, config.seed)
    split = dataset.splits["train"]
    durations = config_lib.resolve(config, len(split.labels))
    resident = config.data.placement == "device" or (
        config.data.placement == "auto" and sampling.fits_on_device(split)
    )
    model = state_lib.create_model(config, len(dataset.class_names))
    checkpoints = Checkpoints(workdir, best="validation" in dataset.splits)
    with devices.use_mesh(mesh):
        state, progress = _begin(config, dataset, durations, mesh, model, checkpoints)
        feed = sampling.Feed(split, mesh, config.seed, config.batch_size, resident)
        logs = Logs(workdir, progress.step, config.log.tensorboard)
        run = Run(config, workdir, dataset, durations, mesh, model, checkpoints, feed, logs)
        try:
            return _loop(run, state, progress, signals, started)
        finally:
            logs.close()
            feed.close()
            checkpoints.close()


def _record_config(config: ConfigDict, workdir: Path) -> None:
    """Compares the config with the workdir's, if it has one, and writes it down."""
    path = workdir / workdir_lib.CONFIG
    new = config_lib.to_json(config)
    if path.exists() and (differences := config_lib.conflicts(workdir_lib.read_json(path), new)):
        raise UserError(
            "\n".join(differences)
            + f"\n{workdir} holds a run with another config: choose another --workdir, or the old "
            "values to go on with it"
        )
    workdir_lib.write_json(path, new)
    workdir_lib.write_json(workdir / workdir_lib.ENVIRONMENT, workdir_lib.environment())


def _begin(
    config: ConfigDict,
    dataset: datasets.Dataset,
    durations: config_lib.Durations,
    mesh: Mesh,
    model: nn.Module,
    checkpoints: Checkpoints,
) -> tuple[state_lib.TrainState, Progress]:
    """Returns the state to go on from: the last checkpoint's, another run's weights, or new."""
    shape = dataset.splits["train"].images.shape[1:]
    create = state_lib.make_init(config, durations, model, shape)
    step = checkpoints.find("last")
    if step is not None:
        abstract = devices.abstract(mesh, jax.eval_shape(create, jax.random.key(config.seed)))
        state = checkpoints.restore(step, abstract)
        return state, Progress(**checkpoints.meta(step)["progress"])
    state = jax.jit(create)(jax.random.key(config.seed))
    if config.init_from:
        state = evaluate.transplant(Path(config.init_from), state)
    return devices.replicate(mesh, state), Progress()


def _loop(
    run: Run,
    state: state_lib.TrainState,
    progress: Progress,
    signals: workdir_lib.Signals,
    started: float,
) -> int:
    config, durations = run.config, run.durations
    _introduce(run, progress)
    optimizer = state_lib.create_optimizer(config, durations)
    mean, std = run.dataset.mean, run.dataset.std
    train_step = steps.make_train_step(run.model, optimizer, config, mean, std)
    train_program = steps.compile_train(train_step, run.mesh, run.feed.resident)
    predict_program = steps.compile_predict(run.model, run.mesh, mean, std)
    key = devices.replicate(run.mesh, jax.random.key(config.seed))
    call_steps = config.steps_per_call or (1 if jax.default_backend() == "cpu" else 10**9)
    metrics = devices.replicate(run.mesh, metrics_lib.from_sums(progress.sums))
    before, stepping = progress.seconds, 0.0
    looping, from_step = time.monotonic(), progress.step
    while progress.step < durations.total:
        first, last = progress.step, _next_stop(run, progress.step)
        num_steps = min(call_steps, run.feed.capacity, last - first)
        data, indices = run.feed(first, num_steps)
        if not isinstance(train_program, jax.stages.Compiled):
            train_program = train_program.lower(
                state, metrics, data, indices, num_steps, key
            ).compile()
        _trace(run, first)
        begin = time.monotonic()
        state, metrics = train_program(state, metrics, data, indices, num_steps, key)
        progress.sums = metrics_lib.to_sums(jax.device_get(metrics))
        seconds = time.monotonic() - begin
        stepping += seconds
        if not config.steps_per_call and jax.default_backend() == "cpu":
            call_steps = max(1, round(_CPU_CALL_SECONDS * num_steps / seconds))
        progress.step += num_steps
        progress.seconds = before + time.monotonic() - started
        if not math.isfinite(progress.sums["loss"][0]):
            raise _not_finite(
                run, f"the loss is not finite in steps {first + 1} to {progress.step}"
            )
        _show(run, progress)
        scores = None
        if _due(progress.step, durations.eval_every, durations.total):
            scores = _evaluate(run, state, predict_program, "validation")
        if scores or progress.step % durations.steps_per_epoch == 0:
            pace = (time.monotonic() - looping) / (progress.step - from_step)
            _report(run, progress, scores, stepping, pace)
            progress.sums, stepping = {}, 0.0
            metrics = devices.replicate(run.mesh, metrics_lib.from_sums({}))
        if signals.received or _due(progress.step, durations.checkpoint_every, durations.total):
            _save(run, state, progress, scores)
        if signals.received and progress.step < durations.total:
            run.checkpoints.wait()
            run.logs.say(f"saved at step {progress.step}; the same command goes on from there")
            return signals.EXIT_CODES[signals.received]
    _finish(run, state, progress, predict_program)
    return 0


def _next_stop(run: Run, step: int) -> int:
    """Returns the next step after which something is to be done."""
    durations, log = run.durations, run.config.log
    stops = [durations.total]
    for every in (durations.steps_per_epoch, durations.eval_every, durations.checkpoint_every):
        if every:
            stops.append(step - step % every + every)
    if log.profile_steps:
        edges = (log.profile_start, log.profile_start + log.profile_steps)
        stops += [edge for edge in edges if edge > step]
    return min(stops)


def _due(step: int, every: int, total: int) -> bool:
    return step == total or (every > 0 and step % every == 0)


def _trace(run: Run, step: int) -> None:
    """Begins and ends the profiler's trace of the steps that the config names."""
    log = run.config.log
    if not log.profile_steps:
        return
    if step == log.profile_start:
        jax.profiler.start_trace(str(run.workdir / "profile"))
    elif step == log.profile_start + log.profile_steps:
        jax.profiler.stop_trace()


def _introduce(run: Run, progress: Progress) -> None:
    dataset, durations = run.dataset, run.durations
    shape = dataset.splits["train"].images.shape[1:]
    run.logs.say(summary.format_table(summary.layer_table(run.model, shape)))
    sizes = ", ".join(f"{len(split.labels)} {name}" for name, split in dataset.splits.items())
    placed = "on the device" if run.feed.resident else "streamed from the host"
    run.logs.say(f"data: {dataset.name} ({sizes}), {placed}; {devices.describe()}")
    epochs = durations.total / durations.steps_per_epoch
    run.logs.say(f"{durations.total} steps ({epochs:g} epochs) in {run.workdir}")
    if progress.step:
        run.logs.say(f"going on from the checkpoint of step {progress.step}")


def _show(run: Run, progress: Progress) -> None:
    epoch, done = divmod(progress.step - 1, run.durations.steps_per_epoch)
    run.logs.progress(
        epoch + 1, done + 1, run.durations.steps_per_epoch, **metrics_lib.means(progress.sums)
    )


def _evaluate(
    run: Run, state: state_lib.TrainState, program: Any, split_name: str
) -> evaluate.Scores:
    """Scores a split, or the test split where that one was not carved."""
    splits = run.dataset.splits
    split = splits.get(split_name, splits["test"])
    logits = evaluate.predict_logits(
        program, state.variables(), split.images, run.config.eval_batch_size, run.mesh
    )
    return evaluate.score(logits, split.labels)


def _report(
    run: Run, progress: Progress, scores: evaluate.Scores | None, stepping: float, pace: float
) -> None:
    """Writes a line to the log and to the console.

    Args:
      run: what the run is made of.
      progress: where it stands.
      scores: of the evaluation, if there was one.
      stepping: seconds spent in the steps of this line.
      pace: seconds for a step, everything included.
    """
    durations = run.durations
    rate = state_lib.create_schedule(run.config, durations)(progress.step - 1)
    speed = progress.sums["loss"][1] / stepping
    left = pace * (durations.total - progress.step)
    epoch = progress.step / durations.steps_per_epoch
    values = {"step": progress.step, "epoch": epoch}
    values |= {f"train_{name}": value for name, value in metrics_lib.means(progress.sums).items()}
    words = f"epoch {epoch:g}/{durations.total / durations.steps_per_epoch:g}"
    words += "  train loss {train_loss:.4f} accuracy {train_accuracy:.2%}".format(**values)
    if scores:
        values |= {"eval_loss": scores.loss, "eval_accuracy": scores.accuracy}
        words += f"  eval loss {scores.loss:.4f} accuracy {scores.accuracy:.2%}"
    values |= {"learning_rate": float(rate), "images_per_second": speed}
    run.logs.write(values | {"seconds": progress.seconds})
    run.logs.say(f"{words}  {speed:.0f} images/s  {duration(left)} left")


def _save(
    run: Run,
    state: state_lib.TrainState,
    progress: Progress,
    scores: evaluate.Scores | None,
) -> None:
    if not bool(steps.all_finite(state)):
        raise _not_finite(run, f"a weight is not finite at step {progress.step}")
    metrics = None
    if scores and "validation" in run.dataset.splits:
        metrics = {"eval_accuracy": scores.accuracy, "eval_loss": scores.loss}
    dataset = run.dataset
    meta = {
        "config": config_lib.to_json(run.config),
        "progress": dataclasses.asdict(progress),
        "data": {
            "class_names": dataset.class_names,
            "mean": dataset.mean,
            "std": dataset.std,
            "image_shape": dataset.splits["train"].images.shape[1:],
        },
        "versions": workdir_lib.versions(),
    }
    run.checkpoints.save(progress.step, state, meta, metrics)


def _not_finite(run: Run, what: str) -> UserError:
    run.checkpoints.wait()
    step = run.checkpoints.find("last")
    kept = f"the checkpoint of step {step} is kept" if step else "there is no checkpoint yet"
    return UserError(f"{what}: {kept}; try a lower optimizer.learning_rate", exit_code=1)


def _finish(run: Run, state: state_lib.TrainState, progress: Progress, program: Any) -> None:
    """Scores the last state on the test split and writes the run's result."""
    run.checkpoints.wait()
    scores = _evaluate(run, state, program, "test")
    environment = workdir_lib.environment()
    result = {
        "name": run.workdir.name,
        "config": config_lib.to_json(run.config),
        "seed": run.config.seed,
        "step": progress.step,
        "num_epochs": progress.step / run.durations.steps_per_epoch,
        "test_accuracy": scores.accuracy,
        "test_loss": scores.loss,
        "num_correct": scores.num_correct,
        "num_images": scores.num_images,
        "wall_seconds": progress.seconds,
        "devices": devices.describe(),
        "environment": environment,
    }
    workdir_lib.write_json(run.workdir / workdir_lib.RESULT, result)
    run.logs.say(evaluate.describe("test", scores) + f"  in {duration(progress.seconds)}")
