"""Optimizers, by optax, for all parameters or for groups of them."""

import inspect
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from cifar_jax.config import custom
from cifar_jax.config.durations import Durations
from cifar_jax.config.fields import OPTIMIZER_OPTIONS, unknown
from cifar_jax.errors import UserError
from cifar_jax.optim import groups
from cifar_jax.optim.muon import muon
from cifar_jax.optim.schedules import Schedule, create_group_schedules, create_schedule


def frozen(learning_rate: Any) -> optax.GradientTransformation:
    """Returns the optimizer that leaves parameters unchanged."""
    del learning_rate
    return optax.set_to_zero()


# Optimizers that are not `optax.NAME`.
RULES: dict[str, Callable[..., optax.GradientTransformation]] = {"muon": muon, "frozen": frozen}


def create_optimizer(config: ConfigDict, durations: Durations) -> optax.GradientTransformation:
    """Returns the optimizer of a config.

    Args:
      config: the whole config.
      durations: of the run, in steps.
    """
    schedules = create_group_schedules(config, durations)
    rule = combine_rules(config.optimizer, create_schedule(config, durations), schedules)
    if not (radius := config.optimizer.sam_radius):
        return rule
    # Around everything else: clipping and decay apply to the gradient at the worst weights.
    ascent = optax.chain(optax.stateless(_normalize), optax.sgd(radius))
    return optax.contrib.sam(rule, ascent, opaque_mode=True)


def _normalize(gradient: Any, params: Any) -> Any:
    """Returns a gradient of the global norm 1, as `optax.contrib.normalize` does, which makes nan
    of a gradient that is 0 everywhere: that one stays."""
    norm = optax.tree.norm(gradient)
    norm = jnp.where(norm == 0, 1, norm)
    return jax.tree.map(lambda leaf: leaf / norm, gradient)


def combine_rules(
    optimizer: ConfigDict, schedule: Schedule, group_schedules: Mapping[str, Schedule] | None = None
) -> optax.GradientTransformation:
    """Returns the optimizer: clipping by the norm of all gradients, then each group's rule.

    Args:
      optimizer: the config's `optimizer`.
      schedule: from the step to the learning rate of the parameters in no group.
      group_schedules: those of the groups, by their names.
    """
    clipping = optax.clip_by_global_norm(optimizer.clip_norm) if optimizer.clip_norm else None
    rule = _create_rule(optimizer, schedule)
    if not optimizer.groups:
        return optax.chain(*([clipping] if clipping else []), *rule)
    rules = {groups.REST: optax.chain(*rule)}
    resolved = groups.resolve_groups(optimizer)
    for name, group in resolved.items():
        rules[name] = optax.chain(*_create_rule(group, (group_schedules or {})[name]))
    patterns = {name: group.params for name, group in optimizer.groups.items()}
    resolved[groups.REST] = optimizer
    frozen_groups = {name for name, group in resolved.items() if group.name == "frozen"}

    def label(tree: Any) -> Any:
        return groups.label(tree, patterns)

    def is_trained(tree: Any) -> Any:
        return jax.tree.map(lambda name: name not in frozen_groups, label(tree))

    if clipping and frozen_groups:
        # The gradients of frozen parameters do not count: they would shrink the others' updates.
        masked = optax.masked(clipping, is_trained)
        # Without a state, as in earlier versions, whose checkpoints are read.
        clipping = optax.stateless(
            lambda updates, params: masked.update(updates, masked.init(updates), params)[0]
        )
    return optax.chain(*([clipping] if clipping else []), optax.partition(rules, label))


def _create_rule(options: ConfigDict, schedule: Schedule) -> list[optax.GradientTransformation]:
    """Returns the parts of one group's optimizer: the rule by its name, with its decay."""
    rule = _find_rule(options.name)
    if rule is frozen:
        return [rule(schedule)]
    parameters = inspect.signature(rule).parameters
    given = {field: options[field] for field in OPTIMIZER_OPTIONS if options[field] is not None}
    decay = options.weight_decay
    mask = None if options.decay_norm_and_bias else is_kernel
    has_decay = "weight_decay" in parameters and "mask" in parameters
    decoupled = has_decay if options.decoupled_decay is None else options.decoupled_decay
    if has_decay:
        given |= {"weight_decay": decay if decoupled else 0.0, "mask": mask}
    main = rule(learning_rate=schedule, **given)
    if not hasattr(main, "update"):
        raise TypeError(f"it returns {main!r}, which is no optax transformation")
    if not decay or (decoupled and has_decay):
        return [main]
    if not decoupled:
        return [optax.add_decayed_weights(decay, mask), main]
    return [main, optax.add_decayed_weights(lambda step: -decay * schedule(step), mask)]


def _find_rule(name: str) -> Callable[..., optax.GradientTransformation]:
    if custom.is_reference(name):
        return custom.load_object("optimizer.name", name)
    return RULES.get(name) or getattr(optax, name)


def is_kernel(params: Any) -> Any:
    """Returns a tree of bools: True for kernels, False for biases and the parameters of norms."""
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


def find_optimizer_problems(optimizer: ConfigDict) -> list[str]:
    """Returns what is wrong with the config's `optimizer`; nothing is computed."""
    problems = _find_problems("optimizer", optimizer)
    for name, group in groups.resolve_groups(optimizer).items():
        problems += groups.find_group_problems(name, group.params)
        problems += _find_problems(f"optimizer.groups.{name}", group)
    return problems


def _find_problems(where: str, options: ConfigDict) -> list[str]:
    """Checks the fields of one group, which are called `where`.NAME."""
    name = options.name
    if own := custom.is_reference(name):
        try:
            rule = custom.load_object(f"{where}.name", name)
            takes_rate = "learning_rate" in inspect.signature(rule).parameters
        except UserError as error:
            return [str(error)]
        except (TypeError, ValueError):  # not a function, or one without a signature
            takes_rate = False
        if not takes_rate:
            words = "is not a function with the argument learning_rate"
            return [f"{where}.name is {name!r}, which {words}"]
    known = [*RULES, *(name for name in dir(optax) if _is_optimizer(name))]
    if not own and name not in known:
        return [f"{where}.name is {unknown(name, known)}"]
    parameters = inspect.signature(_find_rule(name)).parameters
    problems = [
        f"{where}.{field} is set but {name} does not take it: unset it by None"
        for field in OPTIMIZER_OPTIONS
        if options[field] is not None and field not in parameters
    ]
    if problems:
        return problems
    params = {"kernel": jax.ShapeDtypeStruct((2, 2), "float32")}
    try:
        with warnings.catch_warnings(action="ignore"):
            rule = optax.chain(*_create_rule(options, lambda step: 1e-3))
            jax.eval_shape(rule.update, params, jax.eval_shape(rule.init, params), params)
    except Exception as error:
        if not own and not isinstance(error, TypeError | ValueError):
            raise
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
