"""Image classifiers on CIFAR-10 in JAX and Flax."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cifar_jax.api import TrainedRun, get_config
    from cifar_jax.api import compare_folders as compare
    from cifar_jax.api import evaluate_run as evaluate
    from cifar_jax.api import train_run as train
    from cifar_jax.errors import UserError
    from cifar_jax.evaluation.trained import Trained, load

# Each public name: its module and its name there.
_PLACES = {
    "Trained": ("evaluation.trained", "Trained"),
    "TrainedRun": ("api", "TrainedRun"),
    "UserError": ("errors", "UserError"),
    "compare": ("api", "compare_folders"),
    "evaluate": ("api", "evaluate_run"),
    "get_config": ("api", "get_config"),
    "load": ("evaluation.trained", "load"),
    "train": ("api", "train_run"),
}
__all__ = [
    "Trained",
    "TrainedRun",
    "UserError",
    "compare",
    "evaluate",
    "get_config",
    "load",
    "train",
]


def __getattr__(name: str) -> Any:
    # JAX takes a second to import: `python main.py --help` does without.
    if name in _PLACES:
        module, inside = _PLACES[name]
        return getattr(importlib.import_module(f"cifar_jax.{module}"), inside)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
