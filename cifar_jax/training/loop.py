"""The training loop: restore, step, evaluate, log, save."""

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from cifar_jax.config import custom
from cifar_jax.config import durations as durations_lib
from cifar_jax.data import datasets
from cifar_jax.evaluation import scores as scores_lib
from cifar_jax.evaluation import views
from cifar_jax.models.own import check_outputs
from cifar_jax.models.registry import create_model
from cifar_jax.optim.schedules import create_schedule
from cifar_jax.parallel import cpu, devices, processes, seeds
from cifar_jax.runs import signals as signals_lib
from cifar_jax.runs.checkpoint import Checkpoints
from cifar_jax.runs.logs import Logs
from cifar_jax.training import resume, saving, start
from cifar_jax.training import run as run_lib
from cifar_jax.training.program import Feed, TrainPrograms, fits_on_device
from cifar_jax.training.run import Progress, Run
from cifar_jax.training.state import TrainState
from cifar_jax.training.step import resolve_class_weights


def train_model(
    config: ConfigDict,
    workdir: Path,
    signals: signals_lib.Signals,
    config_text: str | None = None,
    watch: run_lib.Watch | None = None,
) -> int:
    """Trains, resuming from the workdir's last checkpoint if there is one.

    Args:
      config: a checked config.
      workdir: the run's folder, locked by this process.
      signals: notes the signals that ask to stop; at one, the run saves and ends.
      config_text: of the config file, which is kept in the workdir.
      watch: called with the step and each seed's scores after an evaluation, once it is logged and
        saved; it may raise an exception, which ends the run.

    Returns:
      The exit code.

    Raises:
      UserError: the data cannot be loaded, the config does not fit the workdir or the data, the
        loss is not finite, or the last checkpoint could not be saved.
      BrokenPipeError: the reader of what is printed has gone; the run is saved.
    """
    progress = Progress()
    part = config.batch_size // config.optimizer.accumulation_steps
    devices.configure_jax(part, config.num_cpu_devices, config.deterministic)
    processes.run_on_first(lambda: resume.check_workdir(config, workdir))
    mesh = devices.make_mesh(part, config.num_seeds)
    dataset = processes.first_then_others(lambda: datasets.load_for(config))
    split = dataset.splits["train"]
    durations = durations_lib.resolve_durations(config, len(split.labels))
    num_classes = len(dataset.class_names)
    weights = resolve_class_weights(config.loss.class_weights, split.labels, num_classes)
    resident = config.data.placement == "device" or (
        config.data.placement == "auto" and processes.run_on_first(lambda: fits_on_device(split))
    )
    model = create_model(config, num_classes)
    if custom.is_reference(config.model.name):
        check_outputs(model, split.images.shape[1:])
    checkpoints = processes.first_then_others(lambda: Checkpoints(workdir, processes.is_first()))
    with jax.set_mesh(mesh), contextlib.ExitStack() as ending:
        ending.callback(checkpoints.close)
        state, saved = start.start(config, dataset, durations, mesh, model, checkpoints)
        progress.resume(saved)
        processes.run_on_first(
            lambda: resume.record_start(config, workdir, progress.step, config_text)
        )
        feed = Feed(split, mesh, seeds.seed_list(config), config.batch_size, resident)
        ending.callback(feed.close)
        logs = Logs(workdir, progress.step, config.log.tensorboard, processes.is_first())
        ending.callback(logs.close)
        rate = jax.jit(create_schedule(config, durations))
        parts = (config, workdir, dataset, durations, mesh, model, checkpoints, feed, logs)
        return _loop(Run(*parts, rate, watch), state, progress, signals, weights)


def _loop(
    run: Run,
    state: TrainState,
    progress: Progress,
    signals: signals_lib.Signals,
    class_weights: np.ndarray | None,
) -> int:
    config, durations = run.config, run.durations
    run_lib.log_summary(run, progress)
    # Compilation can be long: until it is done, a signal ends the program at once.
    parts = (config, durations, run.model, run.dataset.mean, run.dataset.std)
    programs = TrainPrograms(*parts, run.mesh, run.feed.resident, class_weights)
    call = _make_call(run, programs, signals.defer)
    predict = _make_predict(run)
    on_cpu = jax.default_backend() == "cpu"
    most = config.steps_per_call or (1 if on_cpu else run.feed.capacity)
    scores: list[scores_lib.Scores] = []
    with _tracer(run) as trace:
        while progress.step < durations.total:
            first = progress.step
            room = min(_next_stop(run, first) - first, programs.most(first))
            num_steps = min(most, run.feed.capacity, room)
            trace(first)
            state, measured, seconds = call(state, first, num_steps)
            progress.add(num_steps, seconds)
            processes.run_on_first(run.logs.keep_up)
            finite = np.atleast_1d(np.isfinite(measured).all(axis=(-2, -1)))
            what = f"the loss is not finite in steps {first + 1} to {progress.step}"
            saving.check_finite(run, finite, what)
            run_lib.log_steps(run, progress, measured)
            run_lib.update_bar(run, progress)
            run.checkpoints.poll()
            scores = []
            if durations_lib.due(progress.step, durations.eval_every, durations.total):
                scores = _score_split(run, state, predict, "validation")
                finite = np.isfinite([own.loss for own in scores])
                what = f"the loss of the evaluation after step {progress.step} is not finite"
                saving.check_finite(run, finite, what)
            if durations.is_whole(progress.step):
                run_lib.log_metrics(run, progress, scores)
            stop = signals.received or run.logs.unread
            received, seconds = processes.agree_to_stop(stop, seconds)
            if on_cpu and not config.steps_per_call:
                most = max(1, round(cpu.CALL_SECONDS * num_steps / seconds))
            every = durations.checkpoint_every
            due = durations_lib.due(progress.step, every, durations.total)
            if received or due or saving.is_best(run, scores):
                saving.save_checkpoint(run, state, progress, scores)
            if run.watch and scores:
                run.watch(progress.step, scores)
            if received and progress.step < durations.total:
                saving.check_saved(run)
                words = f"saved at step {progress.step}; the same command resumes from there"
                run.logs.say(words)
                return signals.exit_code(received)
    if not scores or "validation" in run.dataset.splits or config.test_time.views != "plain":
        scores = _score_split(run, state, _make_predict(run, config.test_time), "test")
    saving.finish(run, progress, scores)
    return 0


def _make_call(
    run: Run, programs: TrainPrograms, ready: Callable[[], None]
) -> Callable[..., tuple[TrainState, Any, float]]:
    """Returns the function that makes some steps: (state, first step, number of steps) -> (state,
    the steps' metrics [steps, 2] or [seeds, steps, 2], their time in seconds).

    Once the first program is compiled, it calls `ready`.
    """
    key = seeds.stack(run.mesh, [jax.random.key(seed) for seed in run.seeds])

    def call(state: TrainState, first: int, num_steps: int) -> tuple[TrainState, Any, float]:
        data, indices = run.feed(first, num_steps)
        arguments = (state, data, indices, num_steps, key)
        # Compiled separately, so that its time does not count as that of steps.
        with run.logs.during("compiling the training step"):
            program = programs.compile(first, arguments)
        ready()
        begin = time.monotonic()
        state, metrics = jax.block_until_ready(program(*arguments))
        seconds = time.monotonic() - begin
        return state, np.asarray(metrics)[..., :num_steps, :], seconds

    return call


def _next_stop(run: Run, step: int) -> int:
    """Returns the next step after which the loop has something to do."""
    durations, log = run.durations, run.config.log
    stops = [durations.total]
    for every in (durations.steps_per_epoch, durations.eval_every, durations.checkpoint_every):
        if every:
            stops.append(step - step % every + every)
    if log.profile_steps:
        edges = (log.profile_start, log.profile_start + log.profile_steps)
        stops += [edge for edge in edges if edge > step]
    return min(stops)


def _make_predict(run: Run, test_time: Any = None) -> views.Predict:
    """Returns the function that computes logits, with test-time augmentation if given."""
    mean, std = run.dataset.mean, run.dataset.std
    several = (len(run.seeds), seeds.at_once(run.config))
    return views.make_predict(run.model, run.mesh, mean, std, test_time, *several)


def _score_split(
    run: Run, state: TrainState, predict: views.Predict, split_name: str
) -> list[scores_lib.Scores]:
    """Scores each seed on a split, or on the test split if the run has no such split."""
    splits = run.dataset.splits
    split_name = split_name if split_name in splits else "test"
    split = splits[split_name]
    with run.logs.during(f"evaluating on the {split_name} split"):
        logits = predict(state.variables(), split.images, run.config.eval_batch_size)
    return [scores_lib.score(own, split.labels) for own in logits.reshape(-1, *logits.shape[-2:])]


@contextlib.contextmanager
def _tracer(run: Run) -> Iterator[Callable[[int], None]]:
    """Yields a function to call before each call of the program; it traces `profile_steps`."""
    first = run.config.log.profile_start if processes.is_first() else run.durations.total
    last = first + run.config.log.profile_steps
    active = False

    def trace(step: int) -> None:
        nonlocal active
        if not active and first <= step < last:
            jax.profiler.start_trace(str(run.workdir / "profile"))
            active = True
        elif active and step >= last:
            jax.profiler.stop_trace()
            active = False

    try:
        yield trace
    finally:
        trace(last)
