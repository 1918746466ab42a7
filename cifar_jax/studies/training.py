"""Trains the runs of a study, each an ordinary run in a folder of its own."""

import copy
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from cifar_jax.config import fields, shipped
from cifar_jax.errors import UserError
from cifar_jax.runs import history
from cifar_jax.runs.signals import Signals
from cifar_jax.runs.workdir import CONFIG
from cifar_jax.training import loop, resume
from cifar_jax.training.run import Watch


def change_config(config: ConfigDict, values: dict[str, Any]) -> ConfigDict:
    """Returns a copy of a config with other values, given by dotted names."""
    changed = copy.deepcopy(config)
    changed.update_from_flattened_dict(values)
    fields.turn_off(changed, shipped.default_config())
    return changed


def check_folder(folder: Path, what: str) -> None:
    """Raises UserError if the folder of a study holds a run."""
    if (folder / CONFIG).exists():
        raise UserError(f"{folder} holds a run: choose another folder for the {what}")


def train_in(
    config: ConfigDict,
    folder: Path,
    config_text: str | None,
    watch: Watch | None = None,
) -> int:
    """Trains a run to its end, or resumes it; returns the exit code.

    Args:
      config: a checked config.
      folder: the run's folder, locked by this process.
      config_text: as for `loop.train_model`.
      watch: as for `loop.train_model`.

    Raises:
      UserError: as for `loop.train_model`.
    """
    with Signals() as signals:
        if resume.find_result(config, folder):
            return 0
        code = loop.train_model(config, folder, signals, config_text, watch)
    jax.clear_caches()  # another run has other programs
    return code


def read_value(folder: Path, name: str) -> float:
    """Returns a number of the last line of a run's log, the mean over its seeds.

    Raises:
      UserError: the log has no such number.
    """
    rows = history.read_history(folder)
    if not rows or name not in rows[-1]:
        raise UserError(f"{folder} has not logged its {name}: delete the folder, and start again")
    return rows[-1][name]
