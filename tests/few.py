"""Tests of many cases, of which the fast ones try a few."""

from collections.abc import Iterable
from typing import Any

import pytest


def slow(*values: Any) -> Any:
    """Returns parameters that only the slow tests try."""
    return pytest.param(*values, marks=pytest.mark.slow)


def some(fast: Iterable[Any], rows: Iterable[Any]) -> list[Any]:
    """Returns all rows of parameters (tuples, or one each); those not among `fast` are slow."""
    fast = list(fast)
    return [
        row if row in fast else slow(*(row if isinstance(row, tuple) else (row,))) for row in rows
    ]
