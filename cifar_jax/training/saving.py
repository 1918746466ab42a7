"""Saves a run's checkpoints and its result, and stops the run when it fails."""

import errno
import os
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

from cifar_jax import files
from cifar_jax.config import stored
from cifar_jax.errors import NotFiniteError, UserError
from cifar_jax.evaluation import scores as scores_lib
from cifar_jax.parallel import devices, processes
from cifar_jax.runs import provenance
from cifar_jax.runs import workdir as workdir_lib
from cifar_jax.text import format_duration, format_number
from cifar_jax.training.resume import describe_data, read_starts
from cifar_jax.training.run import Progress, Run
from cifar_jax.training.state import TrainState, all_finite


def save_checkpoint(
    run: Run, state: TrainState, progress: Progress, scores: Sequence[scores_lib.Scores]
) -> None:
    """Starts to save a checkpoint; `scores` on a validation split decide which is the best.

    Raises:
      UserError: a weight is not finite; then nothing is written.
    """
    finite = all_finite(state, len(run.seeds))
    check_finite(run, finite, f"a weight is not finite at step {progress.step}")
    metrics = None
    if scores and "validation" in run.dataset.splits:
        mean = scores_lib.pool(scores)
        metrics = {"eval_accuracy": mean.accuracy, "eval_loss": mean.loss}
    meta = {
        "config": stored.to_json(run.config),
        "progress": progress.saved(),
        "data": describe_data(run.dataset),
        "versions": provenance.versions(),
    }

    def save() -> None:
        run.logs.flush()
        run.checkpoints.save(progress.step, state, meta, metrics)

    processes.run_on_first(save)


def is_best(run: Run, scores: Sequence[scores_lib.Scores]) -> bool:
    """Whether these are scores on a validation split, and the best so far."""
    if not scores or "validation" not in run.dataset.splits:
        return False
    accuracy = scores_lib.pool(scores).accuracy
    return processes.run_on_first(lambda: run.checkpoints.is_best(accuracy))


def check_saved(run: Run) -> None:
    """Waits for the save in the background.

    Raises:
      UserError: it failed.
    """

    def check() -> None:
        run.checkpoints.wait()
        if failure := run.checkpoints.failure:
            full = failure in map(os.strerror, (errno.ENOSPC, errno.EDQUOT))
            advice = "make room" if full else f"fix this ({failure})"
            raise UserError(
                f"the last checkpoint could not be saved: {advice}, then start the same command "
                "again; it resumes from the checkpoint that was kept",
                exit_code=1,
            )

    processes.run_on_first(check)


def check_finite(run: Run, finite: Iterable[Any], what: str) -> None:
    """Stops the run unless all seeds are finite.

    Raises:
      NotFiniteError: something is not finite; the message says what, for which seeds, and which
        checkpoint is kept.
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
        raise NotFiniteError(f"{what}: {kept}; try a lower optimizer.learning_rate", exit_code=1)

    processes.run_on_first(stop)


def finish(run: Run, progress: Progress, scores: Sequence[scores_lib.Scores]) -> None:
    """Writes the run's result: the last state's scores on the test split."""
    check_saved(run)
    result = {
        "name": run.workdir.name,
        "config": stored.to_json(run.config),
        "seed": run.config.seed,
        "step": progress.step,
        "num_epochs": progress.step / run.durations.steps_per_epoch,
        **scores_lib.result_fields(run.seeds, scores),
        "wall_seconds": progress.seconds,
        "devices": devices.describe_devices(),
        "environment": provenance.environment(),
        "starts": read_starts(run.workdir) if processes.is_first() else [],
    }

    def write() -> None:
        workdir_lib.check_lease(run.workdir)
        if best := _find_best(run):
            result["best"] = best
            words = f"{format_number(best['epoch'])}, accuracy {best['eval_accuracy']:.2%}"
            run.logs.say(f"best on the validation split: epoch {words} (--checkpoint=best)")
        files.write_json(run.workdir / workdir_lib.RESULT, result)

    processes.run_on_first(write)
    words = scores_lib.format_seed_scores("test", run.seeds, scores)
    words += scores_lib.format_views(run.config.test_time)
    run.logs.say(f"{words}  in {format_duration(progress.seconds)}")


def _find_best(run: Run) -> dict[str, Any] | None:
    """Returns the step, epoch and scores of the checkpoint that is best on a validation split."""
    if "validation" not in run.dataset.splits:
        return None
    try:
        step = run.checkpoints.find("best")
    except UserError:  # no checkpoint was scored
        return None
    if step is None:
        return None
    scored = run.checkpoints.meta(step)["metrics"]
    return {"step": step, "epoch": step / run.durations.steps_per_epoch, **scored}
