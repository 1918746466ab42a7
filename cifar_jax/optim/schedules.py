"""Learning rate schedules, by optax: of the whole run, and of each group of parameters."""

import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from cifar_jax.config.durations import Durations
from cifar_jax.config.rules import LEAST_FLOAT, MOST_FLOAT
from cifar_jax.errors import UserError
from cifar_jax.optim import groups

Schedule = Callable[[Any], Any]


def batch_size_factor(config: ConfigDict) -> float:
    """Returns the factor by which the size of the batch multiplies the learning rates.

    "linear": Goyal et al., "Accurate, Large Minibatch SGD", 2017, for SGD, with a warm-up; "sqrt":
    Malladi et al., "On the SDEs and Scaling Rules for Adaptive Gradient Algorithms", 2022, for Adam
    and RMSprop.

    Args:
      config: the whole config; its rates are for `optimizer.base_batch_size` images per step, over
        all devices and all parts of an accumulation.
    """
    ratio = config.batch_size / config.optimizer.base_batch_size
    factors = {"none": 1.0, "linear": ratio, "sqrt": math.sqrt(ratio)}
    return factors[config.optimizer.learning_rate_scaling]


def find_rate_problems(config: ConfigDict) -> list[str]:
    """Returns a line for each learning rate that float32 cannot hold once it is scaled.

    Args:
      config: the whole config, whose values are in their ranges.
    """
    factor, schedule = batch_size_factor(config), config.schedule
    why = f"optimizer.learning_rate_scaling multiplies it by {factor:.3g}"
    after = len(schedule.milestones) if schedule.name == "step" else 0
    problems = []
    named = {"optimizer": config.optimizer, **groups.resolve_groups(config.optimizer)}
    for name, group in named.items():
        place = "optimizer" if group is config.optimizer else f"optimizer.groups.{name}"
        rate = group.learning_rate
        words = f"{place}.learning_rate is {rate} and {why}: the result"
        if factor * rate < LEAST_FLOAT:
            problems.append(f"{words} is 0 in float32: raise it")
        elif factor * rate > MOST_FLOAT:
            problems.append(f"{words} is more than a float32 can hold: lower it")
        elif factor * rate * schedule.factor**after < LEAST_FLOAT:
            problems.append(
                f"{place}.learning_rate is {rate}, which is 0 in float32 after {after} times "
                f"schedule.factor {schedule.factor}: raise one of them"
            )
    return list(dict.fromkeys(problems))


def create_schedule(config: ConfigDict, durations: Durations) -> Schedule:
    """Returns the learning rate of the parameters in no group, a function of the step from 0.

    Args:
      config: the whole config.
      durations: of the run, in steps.
    """
    peak = batch_size_factor(config) * config.optimizer.learning_rate
    return shape_schedule(config.schedule, peak, durations)


def create_group_schedules(config: ConfigDict, durations: Durations) -> dict[str, Schedule]:
    """Returns the learning rate of each group of parameters, by the group's name.

    Args:
      config: the whole config.
      durations: of the run, in steps.

    Raises:
      UserError: a group's epochs end within the warm-up.
    """
    schedules, factor = {}, batch_size_factor(config)
    for name, group in groups.resolve_groups(config.optimizer).items():
        end = _find_end(group, durations.steps_per_epoch)
        if end is not None and end <= durations.warmup:
            raise UserError(
                f"optimizer.groups.{name}.num_epochs is {group.num_epochs}, within the warm-up: "
                "raise it, or shorten schedule.warmup_epochs or schedule.warmup_steps"
            )
        own = durations if end is None else durations._replace(total=end)
        schedule = shape_schedule(config.schedule, factor * group.learning_rate, own)
        schedules[name] = schedule if end is None else _end(schedule, end)
    return schedules


def _find_end(group: ConfigDict, steps_per_epoch: int) -> int | None:
    if group.num_epochs is None:
        return None
    return max(1, round(group.num_epochs * steps_per_epoch))


def find_ends(optimizer: ConfigDict, steps_per_epoch: int) -> dict[str, int]:
    """Returns from which step on the parameters of a group stay as they are, by the group's name.

    A frozen group ends at step 0; a group without `num_epochs` is left out. An end may lie past the
    run's last step. The parameters in no group are `groups.REST`.

    Args:
      optimizer: the config's `optimizer`.
      steps_per_epoch: steps in an epoch.
    """
    ends = {groups.REST: 0} if optimizer.name == "frozen" else {}
    for name, group in groups.resolve_groups(optimizer).items():
        end = 0 if group.name == "frozen" else _find_end(group, steps_per_epoch)
        ends |= {} if end is None else {name: end}
    return ends


def _end(schedule: Schedule, end: int) -> Schedule:
    return lambda step: jnp.where(step < end, schedule(step), 0.0)


def shape_schedule(schedule: ConfigDict, peak: float, durations: Durations) -> Schedule:
    """Returns the function from the step (from 0) to the learning rate.

    Args:
      schedule: the config's `schedule`.
      peak: the highest learning rate.
      durations: of the run, in steps.
    """
    warmup, rest = durations.warmup, durations.total - durations.warmup
    final = peak * schedule.final_fraction
    if schedule.name == "one_cycle":
        return _one_cycle(peak, final, warmup, rest)
    if schedule.name == "constant":
        main = optax.constant_schedule(peak)
    elif schedule.name == "step":
        return _steps(peak, warmup, dict.fromkeys(durations.milestones, schedule.factor))
    elif schedule.name == "cosine":
        main = optax.cosine_decay_schedule(peak, rest, schedule.final_fraction)
    else:
        main = optax.linear_schedule(peak, final, rest)
    if not warmup:
        return main
    rise = optax.linear_schedule(0.0, peak, warmup)
    return optax.join_schedules([rise, main], [warmup])


def _steps(peak: float, warmup: int, factors: dict[int, float]) -> Schedule:
    """Multiplies the rate by a factor after each of some steps, in the warm-up too."""
    main = optax.piecewise_constant_schedule(peak, factors)
    if not warmup:
        return main
    rise = optax.linear_schedule(0.0, peak, warmup)
    factor = optax.piecewise_constant_schedule(1.0, factors)
    return lambda step: jnp.where(step < warmup, rise(step) * factor(step), main(step))


def _one_cycle(peak: float, final: float, rise: int, fall: int) -> Schedule:
    """Cosine-shaped rise from peak / 25 and fall (Smith and Topin, "Super-Convergence", 2018)."""
    up = optax.cosine_decay_schedule(peak / 25 - peak, max(rise, 1))
    down = optax.cosine_decay_schedule(peak - final, fall)
    return optax.join_schedules(
        [lambda step: peak + up(step), lambda step: final + down(step)], [rise]
    )
