"""Markdown: tables, and the words that say where a result was measured."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Returns a table; the first column is aligned to the left, the others to the right."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def short_commit(result: Mapping[str, Any]) -> str:
    """Returns the first seven digits of a result's commit; "+": the checkout had other changes."""
    commit = result.get("commit") or ""
    return commit[:7] + ("+" if commit.endswith("+") else "")


def place(result: Mapping[str, Any], devices: str = "") -> str:
    """Returns on what hardware and at which commit a result was measured.

    Args:
      result: the content of a results file.
      devices: JAX's devices, where they matter, such as "2 CPU devices".
    """
    commit = short_commit(result)
    words = f"{devices}, {result['hardware']}" if devices else result["hardware"]
    return f"{words}, commit {commit}" if commit else words


def origin(result: Mapping[str, Any], devices: str = "") -> str:
    """Returns the sentence that says where a result was measured, as for `place`."""
    return f"Measured on {place(result, devices)}."
