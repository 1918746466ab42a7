"""Text laid out for a console, and names that cannot upset one."""

import os
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path


def printable(text: str) -> str:
    """Returns a text with everything that is no visible letter written as an escape, as in \\n."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def width(text: str) -> int:
    """Returns the columns that a printable text takes on a terminal."""
    wide = sum(unicodedata.east_asian_width(c) in "WF" for c in text)
    return len(text) + wide - sum(unicodedata.combining(c) > 0 for c in text)


def format_table(rows: Sequence[Sequence[str]], right: Collection[int] = ()) -> str:
    """Lays out cells of printable text in columns.

    Args:
      rows: the header, then the rows, each with as many cells.
      right: numbers of the columns that are set to the right.
    """
    widths = [max(map(width, column)) for column in zip(*rows, strict=True)]

    def line(row: Sequence[str]) -> str:
        gaps = [" " * (most - width(cell)) for cell, most in zip(row, widths, strict=True)]
        cells = enumerate(zip(row, gaps, strict=True))
        return "  ".join(gap + x if n in right else x + gap for n, (x, gap) in cells).rstrip()

    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    return "\n".join([line(rows[0]), rule, *map(line, rows[1:])])


def short_names(paths: Iterable[str | Path]) -> list[str]:
    """Returns the printable end of each path: as many of its parts as tell it from the others."""
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
    """Returns a text of at most `most` letters; what is left out stood in the middle."""
    if len(text) <= most:
        return text
    tail = most // 2
    return text[: most - tail - 1] + "\N{HORIZONTAL ELLIPSIS}" + text[-tail:]
