"""The loop: restore, step, log, evaluate, save."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh
from ml_collections import ConfigDict

from cifar_jax import config as config_lib
from cifar_jax import datasets, devices, hosts, sampling, steps, trained
from cifar_jax import durations as durations_lib
from cifar_jax import run as run_lib
from cifar_jax import scores as scores_lib
from cifar_jax import seeds as seeds_lib
from cifar_jax import signals as signals_lib
from cifar_jax import state as state_lib
from cifar_jax import workdir as workdir_lib
from cifar_jax.checkpoint import Checkpoints
from cifar_jax.errors import UserError
from cifar_jax.logs import Logs
from cifar_jax.run import Progress, Run
from cifar_jax.trace import tracer

# A call of the compiled program takes about that long on a CPU, so that a signal is soon heard.
_CPU_CALL_SECONDS = 1.0


def train(config: ConfigDict, workdir: Path, signals: signals_lib.Signals) -> int:
    """Trains, going on from the workdir's last checkpoint; returns the exit code.

    Args:
      config: a checked config.
      workdir: the run's folder, locked by this process.
      signals: notes SIGINT and SIGTERM; at one, the run saves and ends.

    Raises:
      UserError: the data cannot be had, the config does not fit the workdir or the data, the loss
        is not finite, or the last checkpoint could not be saved.
    """
    progress = Progress()
    part = config.batch_size // config.optimizer.accumulation_steps
    devices.configure(part, config.num_cpu_devices, config.deterministic)
    hosts.ask_first(lambda: _check_config(config, workdir))
    mesh = devices.make_mesh(part, config.num_seeds)
    dataset = hosts.first_then_others(lambda: datasets.load(config.data.name, config.data.data_dir))
    if config.data.validation_examples:
        dataset = datasets.carve_validation(dataset, config.data.validation_examples, config.seed)
    split = dataset.splits["train"]
    durations = durations_lib.resolve(config, len(split.labels))
    resident = config.data.placement == "device" or (
        config.data.placement == "auto" and hosts.ask_first(lambda: sampling.fits_on_device(split))
    )
    model = state_lib.create_model(config, len(dataset.class_names))
    checkpoints = hosts.first_then_others(lambda: Checkpoints(workdir, hosts.is_first()))
    with jax.set_mesh(mesh):
        state = _begin(config, dataset, durations, mesh, model, checkpoints, progress)
        hosts.ask_first(lambda: _record_config(config, workdir))
        feed = sampling.Feed(split, mesh, seeds_lib.of(config), config.batch_size, resident)
        logs = Logs(workdir, progress.step, config.log.tensorboard, hosts.is_first())
        run = Run(config, workdir, dataset, durations, mesh, model, checkpoints, feed, logs)
        try:
            with tracer(run) as trace:
                code = _loop(run, state, progress, signals, trace)
        finally:
            logs.close()
            feed.close()
            checkpoints.close()
    if code == 0 and config.log.report and hosts.is_first():
        signals.end()  # the same command makes it another time
        from cifar_jax import report  # only here: it brings matplotlib

        report.try_report(workdir)
    return code


def _check_config(config: ConfigDict, workdir: Path) -> None:
    """Compares the config with that of the run so far; looks for the run to start from."""
    path = workdir / workdir_lib.CONFIG
    new = config_lib.to_json(config)
    begun = any((workdir / "checkpoints").glob("[0-9]*"))
    if begun and (differences := config_lib.conflicts(workdir_lib.read_json(path), new)):
        raise UserError(
            "\n".join(differences)
            + f"\n{workdir} holds a run with another config: choose another --workdir, or the old "
            "values to go on with it"
        )
    if config.init_from and not begun:
        trained.check_run(Path(config.init_from))


def _record_config(config: ConfigDict, workdir: Path) -> None:
    """Writes down the config and what else the result depends on."""
    workdir_lib.write_json(workdir / workdir_lib.CONFIG, config_lib.to_json(config))
    workdir_lib.write_json(workdir / workdir_lib.ENVIRONMENT, workdir_lib.environment())


def _begin(
    config: ConfigDict,
    dataset: datasets.Dataset,
    durations: durations_lib.Durations,
    mesh: Mesh,
    model: nn.Module,
    checkpoints: Checkpoints,
    progress: Progress,
) -> state_lib.TrainState:
    """Returns the state to go on from: the last checkpoint's, another run's weights, or new."""
    shape = dataset.splits["train"].images.shape[1:]
    seeds = seeds_lib.of(config)
    saved = hosts.ask_first(lambda: _find_saved(checkpoints, durations))
    create = state_lib.make_init(config, durations, model, shape)
    shapes = jax.eval_shape(create, jax.random.key(config.seed))

    def make() -> state_lib.TrainState:
        own = devices.make_mesh(num_seeds=len(seeds))
        with jax.set_mesh(own):
            if saved:
                abstract = seeds_lib.abstract(own, shapes, len(seeds))
                return checkpoints.restore(saved["step"], abstract)
            given = state_lib.params_from_data(model, dataset)
            init = state_lib.make_init(config, durations, model, shape, given)
            create = devices.jit_once(init)
            states = [create(jax.random.key(seed)) for seed in seeds]
            if config.init_from:
                states = [trained.transplant(Path(config.init_from), state) for state in states]
            return seeds_lib.stack(own, states)

    if saved:
        progress.resume(saved)
    state = hosts.share(make, seeds_lib.abstract(mesh, shapes, len(seeds)))
    return devices.put(mesh, state, seeds_lib.spec(len(seeds)))


def _find_saved(
    checkpoints: Checkpoints, durations: durations_lib.Durations
) -> dict[str, Any] | None:
    """Returns the progress of the last checkpoint, if there is one."""
    step = checkpoints.find("last")
    if step is None:
        return None
    if step > durations.total:
        raise UserError(
            f"the run has made {step} steps already, more than the {durations.total} asked for: "
            "raise num_epochs or num_steps, or choose another --workdir"
        )
    saved = checkpoints.meta(step).get("progress")
    if not isinstance(saved, dict) or saved.get("step") != step:
        raise UserError(f"the checkpoint of step {step} does not say how far its run had come")
    return saved


def _loop(
    run: Run,
    state: state_lib.TrainState,
    progress: Progress,
    signals: signals_lib.Signals,
    trace: Callable[[int], None],
) -> int:
    durations = run.durations
    on_cpu = jax.default_backend() == "cpu"
    run_lib.introduce(run, progress)
    # A signal during the compilation, which may be long, stops the program at once.
    call = _make_call(run, signals.defer)
    num_seeds = len(run.seeds)
    predict = run_lib.make_predict(run)
    most = run.config.steps_per_call or (1 if on_cpu else run.feed.capacity)
    metrics = seeds_lib.lay_sums(run.mesh, progress.sums, num_seeds)
    scores: list[scores_lib.Scores] = []
    while progress.step < durations.total:
        first = progress.step
        num_steps = min(most, run.feed.capacity, _next_stop(run, first) - first)
        trace(first)
        state, metrics, seconds = call(state, metrics, first, num_steps)
        progress.add(num_steps, seconds, metrics)
        finite = np.isfinite(np.atleast_1d(progress.sums["loss"][0]))
        what = f"the loss is not finite in steps {first + 1} to {progress.step}"
        run_lib.check_finite(run, finite, what)
        run_lib.show(run, progress)
        run.checkpoints.poll()
        scores = []
        if durations_lib.due(progress.step, durations.eval_every, durations.total):
            scores = run_lib.score_split(run, state, predict, "validation")
            finite = np.isfinite([own.loss for own in scores])
            what = f"the evaluation after step {progress.step} gives a loss that is not finite"
            run_lib.check_finite(run, finite, what)
        if scores or progress.step % durations.steps_per_epoch == 0:
            run_lib.report(run, progress, scores)
            metrics = seeds_lib.lay_sums(run.mesh, progress.sums, num_seeds)
        received, seconds = hosts.agree(signals.received, seconds)
        if on_cpu and not run.config.steps_per_call:
            most = max(1, round(_CPU_CALL_SECONDS * num_steps / seconds))
        if received or durations_lib.due(
            progress.step, durations.checkpoint_every, durations.total
        ):
            run_lib.save(run, state, progress, scores)
        if received and progress.step < durations.total:
            run_lib.check_saved(run)
            run.logs.say(f"saved at step {progress.step}; the same command goes on from there")
            return signals.EXIT_CODES[received]
    test_time = run.config.test_time
    if not scores or "validation" in run.dataset.splits or test_time.views != "plain":
        predict = run_lib.make_predict(run, test_time)
        scores = run_lib.score_split(run, state, predict, "test")
    run_lib.finish(run, progress, scores)
    return 0


def _make_call(
    run: Run, ready: Callable[[], None]
) -> Callable[..., tuple[state_lib.TrainState, Any, float]]:
    """Returns the function that makes some steps and tells how many seconds they took.

    The first time, it compiles them and then calls `ready`.
    """
    optimizer = state_lib.create_optimizer(run.config, run.durations)
    mean, std = run.dataset.mean, run.dataset.std
    train_step = steps.make_train_step(
        run.model, optimizer, run.config, mean, std, run.durations.steps_per_epoch
    )
    at_once = seeds_lib.at_once(run.config)
    jitted = steps.compile_train(train_step, run.mesh, run.feed.resident, len(run.seeds), at_once)
    key = seeds_lib.stack(run.mesh, [jax.random.key(seed) for seed in run.seeds])
    compiled = None

    def call(state: state_lib.TrainState, metrics: Any, first: int, num_steps: int) -> Any:
        nonlocal compiled
        data, indices = run.feed(first, num_steps)
        arguments = (state, metrics, data, indices, num_steps, key)
        # Compiled apart from the first call, so that compilation is not timed as steps.
        if compiled is None:
            compiled = jitted.lower(*arguments).compile()
            ready()
        begin = time.monotonic()
        state, metrics = jax.block_until_ready(compiled(*arguments))
        return state, metrics, time.monotonic() - begin

    return call


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
