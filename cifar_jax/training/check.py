"""Checks a config as a whole, before any data is read or anything compiled."""

from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from cifar_jax.augment import batch as augment
from cifar_jax.augment import own as own_augment
from cifar_jax.config import custom, durations, fields, rules
from cifar_jax.data import foresight, names, sampling
from cifar_jax.data import splits as splits_lib
from cifar_jax.data.class_folders import FOLDER
from cifar_jax.data.foresight import Foreseen
from cifar_jax.errors import UserError
from cifar_jax.models import own, registry
from cifar_jax.optim import build, schedules
from cifar_jax.training.step import resolve_class_weights

# Of the images at which parameters are looked up if those of the data are not known.
_SHAPE = (32, 32, 3)


def check_config(config: Any, default: ConfigDict | None = None, trains: bool = True) -> None:
    """Checks a config: its values, its optimizer, its model, and whether they fit its data.

    Of the data only names and descriptions are read. Fields that are None get the value that turns
    them off, as by `fields.turn_off`.

    Args:
      config: the result of the config file's `get_config`, overrides included.
      default: the result of `get_config` of configs/default.py; if given, the fields and their
        types are compared with it first.
      trains: whether the config is to be trained, and not only its data to be read.

    Raises:
      UserError: one line for each mistake.
    """
    if default is not None:
        if isinstance(config, ConfigDict):
            fields.turn_off(config, default)
        fields.check_fields(config, default)
    problems = rules.find_problems(config)
    problems += [] if problems else schedules.find_rate_problems(config)
    problems += build.find_optimizer_problems(config.optimizer)
    known = Foreseen()
    try:
        known = _foresee(config)
    except UserError as error:
        problems.append(str(error))
    fitted = known if trains else Foreseen()
    shape = fitted.image_shape or _SHAPE
    problems += own_augment.find_custom_problems(config.augment.custom, shape)
    try:
        _check_model(fitted, **config.model.to_dict())
    except UserError as error:
        problems.append(str(error))
    if not problems:
        problems = _find_misfits(config, known, trains)
    if problems:
        raise UserError("\n".join(problems))


def _foresee(config: ConfigDict) -> Foreseen:
    """Returns what can be told of the data; checks their name and the splits' notation."""
    data = config.data
    names.check_name(data.name, data.path if data.name == FOLDER else data.data_dir)
    for split in filter(None, (data.train_split, data.test_split)):
        splits_lib.check_notation(split)
    return foresight.foresee(config)


def _check_model(known: Foreseen, name: str, **options: Any) -> None:
    model = registry.create(name, num_classes=known.num_classes or 10, **options)
    if custom.is_reference(name):
        shape = known.image_shape
        own.check_outputs(model, shape or _SHAPE, certain=shape is not None)


def _find_misfits(config: ConfigDict, known: Foreseen, trains: bool) -> list[str]:
    """Returns a line for each part of a config that does not fit its data."""
    problems = []
    every = (_check_counts, _check_weights, _check_augmentation, _check_params)
    for check in every if trains else (foresight.count_training,):
        try:
            check(config, known)
        except UserError as error:
            problems.append(str(error))
    return problems


def _check_counts(config: ConfigDict, known: Foreseen) -> None:
    """Checks what depends on the number of training images."""
    total = foresight.count_training(config, known)
    if total is None:
        return
    data = config.data
    if count := data.validation_examples:
        sampling.check_held_out(data.name, total, count, data.validation_fold)
        total -= min(count, total - count * data.validation_fold)
    if known.exact or total < config.batch_size:
        resolved = durations.resolve_durations(config, total)
        schedules.create_group_schedules(config, resolved)


def _check_weights(config: ConfigDict, known: Foreseen) -> None:
    weights = config.loss.class_weights
    if known.num_classes and weights != "balanced":
        resolve_class_weights(weights, np.zeros(0, np.int32), known.num_classes)


def _check_augmentation(config: ConfigDict, known: Foreseen) -> None:
    if known.image_shape:
        augment.check_shape(config.augment, known.image_shape)


def _check_params(config: ConfigDict, known: Foreseen) -> None:
    """Checks that the model takes the images, and that the optimizer fits its parameters.

    The parameters' names do not depend on the data; if the images' shape is not known, a model that
    does not take those that are assumed is looked at when the data are known.
    """
    optimizer = config.optimizer
    has_groups = optimizer.groups or optimizer.name == "muon"
    shape = known.image_shape
    if size := config.data.image_size:
        shape = shape or (size, size, config.data.channels or 3)
    if not shape and not has_groups:
        return
    try:
        model = registry.create_model(config, known.num_classes or 10)
        create = registry.make_variables(model, shape or _SHAPE)
        # The key too is only traced: JAX's devices must not start before `configure_jax`.
        variables = jax.eval_shape(lambda: create(jax.random.key(0)))
    except Exception as error:  # whatever a model of the user's own raises
        if shape and isinstance(error, UserError):
            raise
        return
    if not has_groups:
        return

    def schedule(step: Any) -> Any:
        return 0.0 * step

    named = dict.fromkeys(optimizer.groups, schedule)
    jax.eval_shape(build.combine_rules(optimizer, schedule, named).init, variables["params"])
