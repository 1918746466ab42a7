"""Image classifiers on CIFAR-10 in JAX and Flax."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cifar_jax.evaluation.trained import Trained, load

__all__ = ["Trained", "load"]


def __getattr__(name: str) -> Any:
    # JAX takes a second to import: `python main.py --help` does without.
    if name in __all__:
        from cifar_jax.evaluation import trained

        return getattr(trained, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
