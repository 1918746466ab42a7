"""Draws arrays as matplotlib figures, without pyplot and its global state.

Every `plot_` function takes `dark=True` for a picture on a dark background. The colours can be told
apart with any colour vision (Okabe and Ito, https://jfly.uni-koeln.de/color).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from cifar_jax.reports.backend import Axes, Figure, Rectangle, matplotlib
from cifar_jax.reports.style import NUM_COLOURS, WIDTH, colour_of, new_canvas, new_figure, styled
from cifar_jax.text import shorten_middle

_MARKERS = "os^Dv"  # tell apart runs of the same colour

_AXES = {
    "loss": "loss (nats per image)",
    "accuracy": "accuracy (%)",
    "learning_rate": "learning rate (per step)",
}


@styled
def plot_curves(
    histories: Mapping[str, Sequence[Mapping[str, Any]]],
    quantities: Sequence[str] = ("loss", "accuracy"),
    split: str = "test",
) -> Figure:
    """Draws the curves of one or several runs over the epochs, with axes for each quantity.

    With one run, training and evaluation have a colour each. With several, each run has a colour
    (from the eighth on also a marker); evaluation is a solid line, training a dotted one.

    Args:
      histories: the rows of each run's metrics.jsonl, by the name to show; a row may lack a metric.
      quantities: some of "loss", "accuracy" and "learning_rate".
      split: what the runs were evaluated on, for the legend.
    """
    several = len(histories) > 1
    legend_height = 0.3 + 0.09 * len(histories) if several else 0
    figure = new_figure(0.4 + 2.5 * len(quantities) + legend_height)
    every = figure.subplots(len(quantities), squeeze=False)[:, 0]
    for axes, quantity in zip(every, quantities, strict=True):
        for number, (name, rows) in enumerate(histories.items()):
            marker = _MARKERS[number // NUM_COLOURS % len(_MARKERS)]
            options: dict[str, Any] = {"color": colour_of(number), "marker": marker}
            if quantity == "learning_rate":
                _draw_curve(axes, rows, quantity, label=name, **options)
                continue
            for part, kind in enumerate(("train", "eval")):
                if several:
                    options |= {"label": name, "linestyle": ":" if kind == "train" else "-"}
                else:
                    options |= {"label": split if part else kind, "color": colour_of(part)}
                _draw_curve(axes, rows, f"{kind}_{quantity}", **options)
        axes.set(xlabel="epoch", ylabel=_AXES[quantity], xlim=(0, None))
        if quantity == "accuracy":
            # matplotlib's PercentFormatter writes 80.0 where the axis is short.
            axes.yaxis.set_major_formatter(lambda value, _: f"{round(100 * value, 6):g}")
        elif quantity == "learning_rate":
            axes.set_ylim(bottom=0)
        if not several and quantity != "learning_rate":
            axes.legend()
    if several:
        # Outside the axes, so that many names hide no curve.
        lines = [x for x in figure.axes[0].get_lines() if x.get_linestyle() == "-"]
        words = f"solid: {split}, dotted: train"
        options = {"title": words, "title_fontsize": 7, "fontsize": 7, "ncols": 2}
        figure.legend(lines, list(histories), loc="outside lower center", **options)
    return figure


def _draw_curve(
    axes: Axes, rows: Sequence[Mapping[str, Any]], metric: str, marker: str, **options: Any
) -> None:
    """Draws a metric where the rows have it, and its band over the seeds if there is one."""
    edges = ("epoch", f"{metric}_low", f"{metric}_high")
    if band := [[row[name] for name in edges] for row in rows if edges[1] in row]:
        axes.fill_between(*np.transpose(band), color=options["color"], alpha=0.2, linewidth=0)
    points = [(row["epoch"], row[metric]) for row in rows if row.get(metric) is not None]
    if len(points) < 12:  # a single point makes no line
        options["marker"] = marker
    elif marker != _MARKERS[0]:
        options |= {"marker": marker, "markevery": len(points) // 8}
    x, y = zip(*points, strict=True) if points else ((), ())
    axes.plot(x, y, markersize=3.5, **options)


@styled
def plot_predictions(
    images: Sequence[np.ndarray],
    probabilities: np.ndarray,
    class_names: Sequence[str],
    truth: Sequence[int] | np.ndarray | None = None,
    titles: Sequence[str] | None = None,
) -> Figure:
    """Draws images in a grid, each with bars for its three most probable classes.

    Args:
      images: uint8 [height, width, 1 or 3 channels] or [height, width]; sizes may differ.
      probabilities: float [images, classes].
      class_names: the names of the classes.
      truth: int [images], the true classes; if given, correct and wrong predictions are marked.
      titles: a text for each image, such as the name of its file; None: its true class, if given.
    """
    columns = max(3, round(len(images) ** 0.5))
    rows = -(-len(images) // columns)
    width = WIDTH / 3
    height, side = width + 0.38, width - 0.42
    figure, axes = new_canvas(columns * width, rows * height)
    for number, image in enumerate(images):
        row, column = divmod(number, columns)
        left, top = column * width + 0.08, row * height + 0.08
        right = truth is None or int(probabilities[number].argmax()) == int(truth[number])
        colour = colour_of(0 if right else 1)
        title = "" if truth is None else class_names[truth[number]]
        title = shorten_middle(titles[number] if titles else title, 18)
        mark = "" if truth is None else "\N{CHECK MARK} " if right else "\N{BALLOT X} "
        axes.text(left, top + 0.07, mark + title, va="center", fontsize=8, color=colour)
        middle, top = left + width / 2 - 0.08, top + 0.18
        _draw_image(axes, image, middle, top + side / 2, side, colour)
        bars = (left, top + side + 0.06, width - 0.16)
        _draw_top(axes, probabilities[number], class_names, bars, colour)
    axes.set(xlim=(0, columns * width), ylim=(rows * height, 0), aspect="equal")
    return figure


def overlay_heat(image: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Returns an image, uint8 [height, width, 3], on which a map shines from red to yellow.

    Args:
      image: uint8 [height, width, 1, 3 or 4 channels].
      heat: float [map height, map width], from 0, which leaves the image as it is, to 1; enlarged
        bilinearly.
    """
    height, width, channels = image.shape
    size, resample = (width, height), Image.Resampling.BILINEAR
    large = np.asarray(Image.fromarray(heat.astype(np.float32)).resize(size, resample))[..., None]
    base = np.broadcast_to(image, (height, width, 3)) if channels == 1 else image[..., :3]
    colours = 255 * matplotlib.colormaps["autumn"](large[..., 0])[..., :3]
    share = 0.7 * large
    return np.rint((1 - share) * base + share * colours).astype(np.uint8)


def _draw_image(
    axes: Axes, image: np.ndarray, x: float, y: float, side: float, colour: str
) -> None:
    """Draws an image around (x, y) in a coloured frame; `side` is the length of its longer side."""
    scale = side / 2 / max(image.shape[:2])
    high, wide = (scale * length for length in image.shape[:2])
    extent = (x - wide, x + wide, y + high, y - high)
    axes.imshow(image, cmap="gray", vmin=0, vmax=255, extent=extent)
    axes.add_patch(Rectangle((x - wide, y - high), 2 * wide, 2 * high, fill=False, ec=colour, lw=1))


def _draw_top(
    axes: Axes,
    probabilities: np.ndarray,
    class_names: Sequence[str],
    place: tuple[float, float, float],
    colour: str,
) -> None:
    """Draws three bars with names and percentages; `place` is (left, top, width)."""
    left, top, width = place
    for number, index in enumerate(np.argsort(-probabilities, kind="stable")[:3]):
        share, y = float(probabilities[index]), top + 0.16 * number
        faint = matplotlib.rcParams["grid.color"]
        axes.add_patch(Rectangle((left, y), width, 0.14, fc=faint, alpha=0.45, lw=0))
        axes.add_patch(Rectangle((left, y), width * share, 0.14, fc=colour, alpha=0.4, lw=0))
        text: dict[str, Any] = {"va": "center_baseline", "fontsize": 7.0}
        axes.text(left + 0.03, y + 0.07, shorten_middle(class_names[index], 14), **text)
        axes.text(left + width - 0.03, y + 0.07, f"{share:.0%}", ha="right", **text)


@styled
def plot_filters(kernel: np.ndarray, columns: int = 8) -> Figure:
    """Draws a convolution's filters, each scaled to its own contrast; a weight of 0 is grey.

    Args:
      kernel: float [height, width, 1 or 3 channels, filters].
      columns: filters per row.
    """
    filters = np.moveaxis(kernel.astype(np.float64), -1, 0)
    largest = np.abs(filters).max(axis=(1, 2, 3), keepdims=True)
    filters = 0.5 + 0.5 * filters / np.where(largest > 0, largest, 1)
    rows, side = -(-len(filters) // columns), WIDTH / columns
    figure, axes = new_canvas(WIDTH, rows * side)
    for number, image in enumerate(filters):
        row, column = divmod(number, columns)
        x, y = column + 0.06, row + 0.06
        axes.imshow(image, cmap="gray", vmin=0, vmax=1, extent=(x, x + 0.88, y + 0.88, y))
    axes.set(xlim=(0, columns), ylim=(rows, 0), aspect="equal")
    return figure
