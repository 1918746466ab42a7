"""Optimizers and learning rate schedules, by optax."""

import inspect
import math
import warnings
from collections.abc import Callable
from typing import Any

import jax
import optax
from ml_collections import ConfigDict

from cifar_jax.durations import Durations
from cifar_jax.fields import unknown

Schedule = Callable[[Any], Any]


def scale_learning_rate(optimizer: ConfigDict, batch_size: int) -> float:
    """Returns the peak learning rate for a batch size.

    "linear": Goyal et al., "Accurate, Large Minibatch SGD", 2017, for SGD, with a warm-up; "sqrt":
    Malladi et al., "On the SDEs and Scaling Rules for Adaptive Gradient Algorithms", 2022, for Adam
    and RMSprop.

    Args:
      optimizer: the config's `optimizer`; its rate is that for `base_batch_size` images.
      batch_size: images of a step, over all devices and all parts of an accumulation.
    """
    ratio = batch_size / optimizer.base_batch_size
    factors = {"none": 1.0, "linear": ratio, "sqrt": math.sqrt(ratio)}
    return optimizer.learning_rate * factors[optimizer.learning_rate_scaling]


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


def create_optimizer(optimizer: ConfigDict, schedule: Schedule) -> optax.GradientTransformation:
    """Returns the optimizer: clipping, coupled decay where needed, then the rule by its name.

    Args:
      optimizer: the config's `optimizer`.
      schedule: from the step to the learning rate.
    """
    rule = getattr(optax, optimizer.name)
    parameters = inspect.signature(rule).parameters
    options = {
        field: optimizer[field]
        for field in ("momentum", "nesterov", "b1", "b2")
        if optimizer[field] is not None
    }
    mask = None if optimizer.decay_norm_and_bias else is_kernel
    parts = []
    if optimizer.clip_norm:
        parts.append(optax.clip_by_global_norm(optimizer.clip_norm))
    if "weight_decay" in parameters and "mask" in parameters:
        options |= {"weight_decay": optimizer.weight_decay, "mask": mask}
    elif optimizer.weight_decay:
        parts.append(optax.add_decayed_weights(optimizer.weight_decay, mask))
    return optax.chain(*parts, rule(learning_rate=schedule, **options))


def is_kernel(params: Any) -> Any:
    """Returns a tree of bools: True for kernels, False for biases and the parameters of norms."""
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


def find_problems(optimizer: ConfigDict) -> list[str]:
    """Returns what is wrong with the config's `optimizer` in words; nothing is computed."""
    name = optimizer.name
    known = [name for name in dir(optax) if _is_optimizer(name)]
    if name not in known:
        return [f"optimizer.name is {unknown(name, known)}"]
    parameters = inspect.signature(getattr(optax, name)).parameters
    problems = [
        f"optimizer.{field} is set but {name} does not take it"
        for field in ("momentum", "nesterov", "b1", "b2")
        if optimizer[field] is not None and field not in parameters
    ]
    if problems:
        return problems
    params = {"kernel": jax.ShapeDtypeStruct((2, 2), "float32")}
    try:
        with warnings.catch_warnings(action="ignore"):
            rule = create_optimizer(optimizer, lambda step: 1e-3)
            jax.eval_shape(rule.update, params, jax.eval_shape(rule.init, params), params)
    except (TypeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        return [f"optimizer.name is {name!r}, which cannot train like this: {reason}"]
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
