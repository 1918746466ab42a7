"""The style of all pictures: colours, fonts, sizes, and how a figure becomes a PNG.

It starts from matplotlib's defaults, whatever the user's matplotlibrc says, and draws by Agg.
"""

import functools
import io
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cifar_jax.reports.backend import Axes, Figure, FT2Font, Text, font_manager, matplotlib, rcsetup

_FONT = "DejaVu Sans"
# For letters that it lacks, such as Chinese ones, these come first, then whatever is installed.
_PREFERRED = (
    *("Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans SC", "Source Han Sans SC"),
    *("WenQuanYi Zen Hei", "WenQuanYi Micro Hei", "Droid Sans Fallback", "Noto Sans"),
    *("PingFang SC", "Hiragino Sans GB", "Arial Unicode MS", "Microsoft YaHei"),
)
# Narrow, so that the text is still readable on a phone.
WIDTH = 3.7  # inches
_DPI = 240
_LIGHT = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#6B6B6B")
_DARK = ("#56B4E9", "#E69F00", "#2DBE95", "#E39AC3", "#9BD1F5", "#F0E442", "#A8A8A8")
NUM_COLOURS = len(_LIGHT)
# For a light and for a dark page: background, text, lines.
_TONES = (("#ffffff", "#22262b", "#d9dce0"), ("#1b1e23", "#e4e6e9", "#3d434b"))


def _style(dark: bool) -> dict[Any, Any]:
    ground, ink, faint = _TONES[dark]
    return {
        **{f"{part}.facecolor": ground for part in ("figure", "axes", "savefig")},
        **{f"{part}.color": ink for part in ("text", "xtick", "ytick")},
        **{"axes.labelcolor": ink, "axes.edgecolor": faint, "grid.color": faint},
        **{"axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False},
        **{"axes.grid": True, "axes.axisbelow": True, "grid.linewidth": 0.6},
        **{"xtick.major.size": 0, "ytick.major.size": 0, "lines.linewidth": 1.6},
        **{"font.family": _FONT, "font.size": 9, "axes.titlesize": 9},
        "axes.prop_cycle": rcsetup.cycler(color=_DARK if dark else _LIGHT),
        "text.parse_math": False,  # the name of a class or a file may contain "$"
    }


def _add_fonts(figure: Figure) -> None:
    """Adds fonts for the letters that the usual one lacks, to all texts of a figure."""
    for axes in figure.axes:  # which makes the labels of the ticks
        axes.get_xticklabels(), axes.get_yticklabels()
    texts = [text for text in figure.findobj(Text) if isinstance(text, Text)]
    letters = {x for text in texts for x in text.get_text() if not x.isascii() and x.isprintable()}
    fonts = [name for name in map(_find_font, sorted(letters)) if name != _FONT]
    for text in texts if fonts else ():
        text.set_fontfamily(list(dict.fromkeys([*text.get_fontfamily(), *fonts])))


@functools.cache
def _find_font(letter: str) -> str:
    """Returns the name of an installed font that has a letter; the usual one if none has."""
    if ord(letter) in _read_letters(font_manager.findfont(_FONT)):
        return _FONT
    # Those that come with matplotlib are for formulas, and for the boxes of missing letters.
    others = [
        font
        for font in font_manager.fontManager.ttflist
        if font.style == "normal" and not font.fname.startswith(matplotlib.get_data_path())
    ]
    order = {name: number for number, name in enumerate(_PREFERRED)}
    others.sort(key=lambda font: (order.get(font.name, len(order)), font.weight != 400))
    found = (font.name for font in others if ord(letter) in _read_letters(font.fname))
    return next(found, _FONT)


@functools.cache
def _read_letters(path: str) -> frozenset[int]:
    try:
        return frozenset(FT2Font(path).get_charmap())
    except (OSError, RuntimeError):  # it has been removed, or is damaged
        return frozenset()


@contextmanager
def _defaults() -> Iterator[None]:
    """Sets matplotlib's defaults in place of the user's settings, which come back at the end."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        yield


def styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Adds the argument `dark` to a function that draws."""

    @functools.wraps(draw)
    def styled(*args: Any, dark: bool = False, **kwargs: Any) -> Figure:
        with _defaults():
            matplotlib.rcParams.update(_style(dark))
            return draw(*args, **kwargs)

    return styled


def colour_of(number: int) -> str:
    """Returns a colour of the current style; the seventh is grey."""
    cycle = matplotlib.rcParams["axes.prop_cycle"].by_key()["color"]
    return cycle[number % len(cycle)]


def render(figure: Figure) -> bytes:
    """Returns a figure as a PNG."""
    file = io.BytesIO()
    with _defaults(), warnings.catch_warnings():
        _add_fonts(figure)
        # A letter that the font lacks is drawn as a box.
        warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)
        figure.savefig(file, format="png", dpi=_DPI)
    return file.getvalue()


def save_figure(figure: Figure, path: str | Path) -> None:
    """Writes a figure to a PNG file."""
    Path(path).write_bytes(render(figure))


def new_figure(height: float) -> Figure:
    """Returns an empty figure of a height in inches, which makes room for its labels."""
    return Figure(figsize=(WIDTH, height), layout="constrained")


def new_canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """Returns a figure of a size in inches, and invisible axes that fill it."""
    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    return figure, axes
