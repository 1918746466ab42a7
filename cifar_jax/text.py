"""Text for a console: tables, names, durations. Imports no JAX."""

import contextlib
import math
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TextIO

from rich.cells import cell_len

# Where there is no progress bar, a line says at least this often how far a run is.
SILENT_SECONDS = 60.0


def printable(text: str) -> str:
    """Returns a text with every unprintable character escaped, such as a line break as "\\n"."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def is_terminal(stream: TextIO | None) -> bool:
    """Whether a standard stream is a terminal; False if it is closed."""
    return stream is not None and not stream.closed and stream.isatty()


def bar_stream() -> TextIO | None:
    """Returns where a progress bar can be drawn: on a terminal or in a notebook; None: nowhere."""
    if type(sys.stdout).__module__ == "ipykernel.iostream":
        return sys.stdout  # what is printed besides stays in the same place
    return sys.stderr if is_terminal(sys.stderr) else None


@contextlib.contextmanager
def say_every_minute(what: str, say: Callable[[str], None] | None = None) -> Iterator[None]:
    """Says each minute what is being done and for how long, where there is no progress bar.

    Args:
      what: is being done, such as "evaluating".
      say: prints a line; None: on the standard output.
    """
    if bar_stream() is not None:
        yield
        return
    done, begin = threading.Event(), time.monotonic()

    def speak() -> None:
        while not done.wait(SILENT_SECONDS):
            words = f"{what}, for {format_duration(time.monotonic() - begin)} so far"
            with contextlib.suppress(OSError, ValueError):  # nobody reads it, or it is closed
                say(words) if say else print(words, flush=True)

    thread = threading.Thread(target=speak, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def format_table(rows: Sequence[Sequence[str]], right: Collection[int] = ()) -> str:
    """Returns a table of printable text with aligned columns.

    Args:
      rows: the header, then the rows, each with the same number of cells.
      right: the numbers of the columns to align to the right, counted from 0.
    """
    widths = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]

    def line(row: Sequence[str]) -> str:
        gaps = [" " * (most - cell_len(cell)) for cell, most in zip(row, widths, strict=True)]
        cells = enumerate(zip(row, gaps, strict=True))
        return "  ".join(gap + x if n in right else x + gap for n, (x, gap) in cells).rstrip()

    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    return "\n".join([line(rows[0]), rule, *map(line, rows[1:])])


def short_names(paths: Iterable[str | Path]) -> list[str]:
    """Returns for each path the shortest ending that differs from all others, made printable."""
    parts = [Path(os.path.abspath(path)).parts for path in paths]
    endings = [[own[-length:] for length in range(1, len(own) + 1)] for own in parts]
    counts = Counter(end for own in endings for end in own)
    shortest = (next((end for end in own if counts[end] == 1), own[-1]) for own in endings)
    return [printable(os.path.join(*end)) for end in shortest]


def shorten_middle(text: str, most: int) -> str:
    """Returns a text of at most `most` characters; a longer one gets an ellipsis in its middle."""
    if len(text) <= most:
        return text
    tail = most // 2
    return text[: most - tail - 1] + "\N{HORIZONTAL ELLIPSIS}" + text[-tail:]


def format_number(value: float) -> str:
    """Returns a number with at most two decimals, such as "1,000", "0.25" or, if small, "0.004"."""
    if 0 < abs(value) < 0.01:
        return f"{value:.1g}"
    return f"{value:,.2f}".rstrip("0").rstrip(".")


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
