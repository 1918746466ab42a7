"""Checks a config as a whole, before any data is read or anything compiled."""

from typing import Any

import jax
from ml_collections import ConfigDict

from cifar_jax.augment import own as own_augment
from cifar_jax.config import custom, fields, rules
from cifar_jax.data import datasets, names
from cifar_jax.data.class_folders import FOLDER
from cifar_jax.errors import UserError
from cifar_jax.models import own, registry
from cifar_jax.optim import build, schedules

# Of the images at which parameters are looked up before the data are known.
_SHAPE = (32, 32, 3)


def check_config(config: Any, default: ConfigDict | None = None) -> None:
    """Checks a config: its values, its optimizer, its model, and its data set's name and splits.

    Fields that are None get the value that turns them off, as by `fields.turn_off`.

    Args:
      config: the result of the config file's `get_config`, overrides included.
      default: the result of `get_config` of configs/default.py; if given, the fields and their
        types are compared with it first.

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
    problems += own_augment.find_custom_problems(config.augment.custom)
    model = config.model.to_dict()
    data = config.data
    place = data.path if data.name == FOLDER else data.data_dir
    for attempt in (
        lambda: _check_model(**model),
        lambda: _check_size(config),
        lambda: names.check_name(data.name, place),
        lambda: datasets.check_run_data(data.name, place, data.train_split, data.test_split),
    ):
        try:
            attempt()
        except UserError as error:
            problems += [str(error)] if str(error) not in problems else []
    if problems:
        raise UserError("\n".join(problems))
    if config.optimizer.groups or config.optimizer.name == "muon":
        _check_params(config)


def _check_model(name: str, **options: Any) -> None:
    model = registry.create(name, num_classes=10, **options)
    if custom.is_reference(name):
        own.check_outputs(model, _SHAPE, certain=False)


def _check_size(config: ConfigDict) -> None:
    """Raises UserError if the model does not take images of `data.image_size`, if that is set."""
    if (size := config.data.image_size) and not custom.is_reference(config.model.name):
        model = registry.create_model(config, num_classes=10)
        create = registry.make_variables(model, (size, size, config.data.channels or 3))
        jax.eval_shape(lambda: create(jax.random.key(0)))


def _check_params(config: ConfigDict) -> None:
    """Checks that the optimizer and its groups fit the model's parameters.

    Their names do not depend on the data; a model that does not take images of this size is looked
    at when the data are known.
    """
    try:
        model = registry.create_model(config, num_classes=10)
        create = registry.make_variables(model, _SHAPE)
        # The key too is only traced: JAX's devices must not start before `configure_jax`.
        variables = jax.eval_shape(lambda: create(jax.random.key(0)))
    except Exception:  # whatever a model of the user's own raises for these images
        return

    def schedule(step: Any) -> Any:
        return 0.0 * step

    schedules = dict.fromkeys(config.optimizer.groups, schedule)
    rule = build.combine_rules(config.optimizer, schedule, schedules)
    jax.eval_shape(rule.init, variables["params"])
