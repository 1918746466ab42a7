"""Text for a console: tables, names, durations. Imports no JAX."""

import math
import os
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from rich.cells import cell_len


def printable(text: str) -> str:
    """Returns a text with every unprintable character escaped, such as a line break as "\\n"."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def format_table(rows: Sequence[Sequence[str]], right: Collection[int] = ()) -> str:
    """Returns cells of printable text in aligned columns.

    Args:
      rows: the header, then the rows, each with the same number of cells.
      right: numbers of the columns that are aligned to the right.
    """
    widths = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]

    def line(row: Sequence[str]) -> str:
        gaps = [" " * (most - cell_len(cell)) for cell, most in zip(row, widths, strict=True)]
        cells = enumerate(zip(row, gaps, strict=True))
        return "  ".join(gap + x if n in right else x + gap for n, (x, gap) in cells).rstrip()

    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    return "\n".join([line(rows[0]), rule, *map(line, rows[1:])])


def short_names(paths: Iterable[str | Path]) -> list[str]:
    """Returns for each path its shortest printable ending that tells it from the others."""
    parts = [Path(os.path.abspath(path)).parts for path in paths]
    names = [""] * len(parts)
    for length in range(1, max(map(len, parts)) + 1):
        ends = [own[-length:] for own in parts]
        alike = Counter(ends)
        for number, end in enumerate(ends):
            if not names[number] and (alike[end] == 1 or len(end) < length):
                names[number] = printable(os.path.join(*end))
    return [name or printable(os.path.join(*own)) for name, own in zip(names, parts, strict=True)]


def shorten_middle(text: str, most: int) -> str:
    """Returns a text of at most `most` characters, with an ellipsis for what is cut out."""
    if len(text) <= most:
        return text
    tail = most // 2
    return text[: most - tail - 1] + "\N{HORIZONTAL ELLIPSIS}" + text[-tail:]


def format_duration(seconds: float) -> str:
    """Returns a time such as "1:05" or "2:03:09"; "-" if it is not finite."""
    if not math.isfinite(seconds):
        return "-"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def first_line(error: BaseException) -> str:
    """Returns the type of an exception and the first line of its message."""
    lines = str(error).strip().splitlines()
    return ": ".join([type(error).__name__, *lines[:1]])
