"""A switch to XLA's own operations, for exporters that do not know ours."""

import contextlib
import contextvars
from collections.abc import Iterator

_is_on = contextvars.ContextVar("stock_operations", default=False)


@contextlib.contextmanager
def stock_operations() -> Iterator[None]:
    """Within it, whatever is traced uses XLA's and Flax's operations in the place of ours.

    They take a batch of unknown size, and are the same on every platform.
    """
    token = _is_on.set(True)
    try:
        yield
    finally:
        _is_on.reset(token)


def is_stock() -> bool:
    """Whether `stock_operations` is on."""
    return _is_on.get()
