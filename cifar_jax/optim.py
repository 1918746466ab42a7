"""Optimizers and learning rate schedules, by optax, for all parameters or for groups of them."""

import inspect
import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from cifar_jax import groups
from cifar_jax.durations import Durations
from cifar_jax.errors import UserError
from cifar_jax.fields import unknown
from cifar_jax.muon import muon

Schedule = Callable[[Any], Any]


def batch_size_factor(config: ConfigDict) -> float:
    """Returns what the learning rates are multiplied by, for the size of the batch.

    "linear": Goyal et al., "Accurate, Large Minibatch SGD", 2017, for SGD, with a warm-up; "sqrt":
    Malladi et al., "On the SDEs and Scaling Rules for Adaptive Gradient Algorithms", 2022, for Adam
    and RMSprop.

    Args:
      config: the whole config; its rates are those for `optimizer.base_batch_size` images a step,
        over all devices and all parts of an accumulation.
    """
    ratio = config.batch_size / config.optimizer.base_batch_size
    factors = {"none": 1.0, "linear": ratio, "sqrt": math.sqrt(ratio)}
    return factors[config.optimizer.learning_rate_scaling]


def frozen(learning_rate: Any) -> optax.GradientTransformation:
    """Returns the optimizer that leaves parameters as they are."""
    del learning_rate
    return optax.set_to_zero()


# Optimizers that optax does not have under `optax.NAME`.
RULES: dict[str, Callable[..., optax.GradientTransformation]] = {"muon": muon, "frozen": frozen}
# Fields that are passed on where they are set.
_OPTIONS = ("momentum", "nesterov", "b1", "b2")


def create_schedule(schedule: ConfigDict, learning_rate: float, durations: Durations) -> Schedule:
    """Returns the function from the step (from 0) to the learning rate.

    Args:
      schedule: the config's `schedule`.
      learning_rate: the peak.
      durations: of the run, in steps.
    """
    warmup, rest = durations.warmup, durations.total - durations.warmup
    final = learning_rate * schedule.final_fraction
    if schedule.name == "one_cycle":
        return _one_cycle(learning_rate, final, warmup, rest)
    if schedule.name == "constant":
        main = optax.constant_schedule(learning_rate)
    elif schedule.name == "step":
        boundaries = {step - warmup: schedule.factor for step in durations.milestones}
        main = optax.piecewise_constant_schedule(learning_rate, boundaries)
    elif schedule.name == "cosine":
        main = optax.cosine_decay_schedule(learning_rate, rest, schedule.final_fraction)
    else:
        main = optax.linear_schedule(learning_rate, final, rest)
    if not warmup:
        return main
    rise = optax.linear_schedule(0.0, learning_rate, warmup)
    return optax.join_schedules([rise, main], [warmup])


def _one_cycle(peak: float, final: float, rise: int, fall: int) -> Schedule:
    """Cosine-shaped rise from peak / 25 and fall (Smith and Topin, "Super-Convergence", 2018)."""
    up = optax.cosine_decay_schedule(peak / 25 - peak, max(rise, 1))
    down = optax.cosine_decay_schedule(peak - final, fall)
    return optax.join_schedules(
        [lambda step: peak + up(step), lambda step: final + down(step)], [rise]
    )


def create_group_schedules(config: ConfigDict, durations: Durations) -> dict[str, Schedule]:
    """Returns the learning rate schedules of the groups of parameters, by their names.

    Args:
      config: the whole config.
      durations: of the run, in steps.
    """
    schedules, factor = {}, batch_size_factor(config)
    for name, group in groups.resolve(config.optimizer).items():
        end = None
        if group.num_epochs is not None:
            end = max(1, round(group.num_epochs * durations.steps_per_epoch))
            if end <= durations.warmup:
                raise UserError(
                    f"optimizer.groups.{name}.num_epochs is {group.num_epochs}, which the warm-up "
                    "takes up: raise it, or shorten schedule.warmup_epochs or schedule.warmup_steps"
                )
        own = durations if end is None else durations._replace(total=end)
        schedule = create_schedule(config.schedule, factor * group.learning_rate, own)
        schedules[name] = schedule if end is None else _ending(schedule, end)
    return schedules


def _ending(schedule: Schedule, end: int) -> Schedule:
    return lambda step: jnp.where(step < end, schedule(step), 0.0)


def create_optimizer(
    optimizer: ConfigDict, schedule: Schedule, group_schedules: Mapping[str, Schedule] | None = None
) -> optax.GradientTransformation:
    """Returns the optimizer: clipping by the norm of all gradients, then each group's rule.

    Args:
      optimizer: the config's `optimizer`.
      schedule: from the step to the learning rate of the parameters that are in no group.
      group_schedules: those of the groups, by their names.
    """
    clipping = [optax.clip_by_global_norm(optimizer.clip_norm)] if optimizer.clip_norm else []
    rule = _create_rule(optimizer, schedule)
    if not optimizer.groups:
        return optax.chain(*clipping, *rule)
    rules = {groups.REST: optax.chain(*rule)}
    for name, group in groups.resolve(optimizer).items():
        rules[name] = optax.chain(*_create_rule(group, (group_schedules or {})[name]))
    patterns = {name: group.params for name, group in optimizer.groups.items()}
    return optax.chain(*clipping, optax.partition(rules, lambda tree: groups.label(tree, patterns)))


def _create_rule(options: ConfigDict, schedule: Schedule) -> list[optax.GradientTransformation]:
    """The parts of the optimizer of one group: the rule by its name, with its decay."""
    rule = _find_rule(options.name)
    if rule is frozen:
        return [rule(schedule)]
    parameters = inspect.signature(rule).parameters
    given = {field: options[field] for field in _OPTIONS if options[field] is not None}
    decay = options.weight_decay
    mask = None if options.decay_norm_and_bias else is_kernel
    has_decay = "weight_decay" in parameters and "mask" in parameters
    decoupled = has_decay if options.decoupled_decay is None else options.decoupled_decay
    if has_decay:
        given |= {"weight_decay": decay if decoupled else 0.0, "mask": mask}
    main = rule(learning_rate=schedule, **given)
    if not decay or (decoupled and has_decay):
        return [main]
    if not decoupled:
        return [optax.add_decayed_weights(decay, mask), main]
    return [main, optax.add_decayed_weights(lambda step: -decay * schedule(step), mask)]


def _find_rule(name: str) -> Callable[..., optax.GradientTransformation]:
    return RULES.get(name) or getattr(optax, name)


def is_kernel(params: Any) -> Any:
    """Returns a tree of bools: True for kernels, False for biases and the parameters of norms."""
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


def find_problems(optimizer: ConfigDict) -> list[str]:
    """Returns what is wrong with the config's `optimizer` in words; nothing is computed."""
    problems = _find_problems("optimizer", optimizer)
    for name, group in groups.resolve(optimizer).items():
        problems += groups.find_problems(name, group.params)
        problems += _find_problems(f"optimizer.groups.{name}", group)
    return problems


def _find_problems(where: str, options: ConfigDict) -> list[str]:
    """Looks at the fields of one group, which are called `where`.NAME."""
    name = options.name
    known = [*RULES, *(name for name in dir(optax) if _is_optimizer(name))]
    if name not in known:
        return [f"{where}.name is {unknown(name, known)}"]
    parameters = inspect.signature(_find_rule(name)).parameters
    problems = [
        f"{where}.{field} is set but {name} does not take it"
        for field in _OPTIONS
        if options[field] is not None and field not in parameters
    ]
    if problems:
        return problems
    params = {"kernel": jax.ShapeDtypeStruct((2, 2), "float32")}
    try:
        with warnings.catch_warnings(action="ignore"):
            rule = optax.chain(*_create_rule(options, lambda step: 1e-3))
            jax.eval_shape(rule.update, params, jax.eval_shape(rule.init, params), params)
    except (TypeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        return [f"{where}.name is {name!r}, which cannot train like this: {reason}"]
    return []


def _is_optimizer(name: str) -> bool:
    """Whether it is a function of optax that needs nothing but a learning rate."""
    function = getattr(optax, name)
    if not callable(function) or inspect.isclass(function) or name.startswith(("_", "scale_by_")):
        return False
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except ValueError:
        return False
    needed = {p.name for p in parameters if p.default is p.empty and p.kind is not p.VAR_KEYWORD}
    return "learning_rate" in {p.name for p in parameters} and needed <= {"learning_rate"}
