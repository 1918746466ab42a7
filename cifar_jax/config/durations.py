"""The durations of a run, given in epochs or in steps, converted to steps once."""

from typing import NamedTuple

from ml_collections import ConfigDict

from cifar_jax.errors import UserError

# The state counts steps in an int32.
MOST_STEPS = 2**31 - 1
# The length of a warm-up that would be longer than the run, divided by the run's.
WARMUP_SHARE = 0.1
# Lines of metrics.jsonl per epoch, unless `log.every_steps` says otherwise.
_LINES_PER_EPOCH = 10


class Durations(NamedTuple):
    """Durations in steps; an interval of 0 means only at the end.

    `warmup` is shorter than `full_warmup`, the config's, if that is longer than the run.
    """

    steps_per_epoch: int
    total: int
    warmup: int
    eval_every: int
    checkpoint_every: int
    milestones: tuple[int, ...]
    full_warmup: int = 0
    log_every: int = 0

    def is_whole(self, step: int) -> bool:
        """Whether an epoch ends after a step, or an evaluation follows it."""
        return step % self.steps_per_epoch == 0 or due(step, self.eval_every, self.total)


def due(step: int, every: int, total: int) -> bool:
    """Whether something that is done every `every` steps, and at the end, is done after `step`."""
    return step == total or (every > 0 and step % every == 0)


def resolve_durations(config: ConfigDict, num_examples: int) -> Durations:
    """Returns the durations in steps for a training set of `num_examples` images."""
    steps_per_epoch = num_examples // config.batch_size
    if not steps_per_epoch:
        raise UserError(
            f"batch_size {config.batch_size} is larger than the {num_examples} training images"
        )

    def steps(epochs: float, given: int | None) -> int:
        if given is not None:
            return given
        return max(1, round(epochs * steps_per_epoch)) if epochs else 0

    total = steps(config.num_epochs, config.num_steps)
    warmup = steps(config.schedule.warmup_epochs, config.schedule.warmup_steps)
    if total > MOST_STEPS:
        raise UserError(f"a run of {total} steps is too long: the most is {MOST_STEPS}")
    milestones = tuple(steps(epoch, None) for epoch in config.schedule.milestones)
    if len(set(milestones)) < len(milestones):
        raise UserError(
            f"schedule.milestones {config.schedule.milestones}: two of them fall on the same step"
        )
    return Durations(
        steps_per_epoch=steps_per_epoch,
        total=total,
        warmup=warmup if warmup < total else int(WARMUP_SHARE * total),
        eval_every=steps(config.eval_every_epochs, config.eval_every_steps),
        checkpoint_every=steps(config.checkpoint.every_epochs, config.checkpoint.every_steps),
        milestones=milestones,
        full_warmup=warmup,
        log_every=steps(1 / _LINES_PER_EPOCH, config.log.every_steps),
    )
