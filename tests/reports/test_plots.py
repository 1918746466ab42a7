"""What the pictures show: the numbers drawn, odd names, few points."""

import io
import os
import subprocess
import sys

import matplotlib
import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from PIL import Image

from cifar_jax.reports import diagnostics, plots, style
from cifar_jax.reports.style import render, save_figure
from tests import program

ROWS = [
    {"epoch": 0.5, "step": 5, "train_loss": 2.0, "train_accuracy": 0.2, "learning_rate": 1e-3},
    {
        **{"epoch": 1.0, "step": 10, "train_loss": 1.5, "train_accuracy": 0.4},
        **{"eval_loss": 1.7, "eval_accuracy": 0.3, "learning_rate": 5e-4},
    },
]


def test_curves_of_one_run():
    figure = plots.plot_curves({"x": ROWS}, split="validation")
    for axes, name in zip(figure.axes, ("loss", "accuracy"), strict=True):
        train, evaluation = axes.get_lines()
        assert (train.get_label(), evaluation.get_label()) == ("train", "validation")
        assert train.get_xydata().tolist() == [[r["epoch"], r[f"train_{name}"]] for r in ROWS]
        assert evaluation.get_xydata().tolist() == [[1.0, ROWS[1][f"eval_{name}"]]]
        assert evaluation.get_marker() == "o"  # a single point makes no line
        assert axes.get_xlabel() == "epoch"
    assert figure.axes[0].get_ylabel() == "loss (nats per image)"
    write = figure.axes[1].yaxis.get_major_formatter()
    assert [write(share, 0) for share in (0.7, 0.29, 0.985, 1.0)] == ["70", "29", "98.5", "100"]


def test_curves_of_several_runs_have_a_colour_each():
    figure = plots.plot_curves({"a$b": ROWS, "<c>": ROWS[:1]}, ("accuracy", "learning_rate"))
    lines = figure.axes[0].get_lines()
    assert lines[0].get_color() == lines[1].get_color() != lines[2].get_color()
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert texts == ["a$b", "<c>"]
    assert [list(line.get_ydata()) for line in figure.axes[1].get_lines()] == [[1e-3, 5e-4], [1e-3]]
    render(figure)


def test_many_runs_can_be_told_apart():
    many = [{**ROWS[1], "epoch": epoch} for epoch in range(1, 30)]
    histories = {f"_run {number}": (many if number % 2 else ROWS) for number in range(20)}
    figure = plots.plot_curves(histories, ("loss",))
    (axes,) = figure.axes
    looks = {(x.get_color(), x.get_marker(), x.get_linestyle()) for x in axes.get_lines()}
    assert len(looks) == 2 * len(histories)
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == list(histories)
    render(figure)
    assert not legend.get_window_extent().overlaps(axes.get_window_extent())
    assert axes.get_window_extent().height > 1.5 * figure.dpi


def test_predictions_mark_right_and_wrong_and_show_the_top_three():
    images = [np.zeros((8, 8, 3), np.uint8), np.zeros((4, 8, 1), np.uint8), np.zeros((2, 2))]
    probabilities = np.array([[0.1, 0.2, 0.7], [0.5, 0.3, 0.2], [0.0, 0.0, 1.0]])
    names = ("a$b$c", "日本", "<i>")
    figure = plots.plot_predictions(images, probabilities, names, truth=[2, 1, 2])
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert texts[:7] == ["✓ <i>", "<i>", "70%", "日本", "20%", "a$b$c", "10%"]
    assert texts[7:10] == ["✗ 日本", "a$b$c", "50%"]
    assert figure.axes[0].texts[0].get_color() != figure.axes[0].texts[7].get_color()
    render(figure)
    titles = [f"photo_{number}_with_a_long_name.jpg" for number in range(3)]
    texts = plots.plot_predictions(images, probabilities, names, titles=titles).axes[0].texts
    assert texts[0].get_text() == "photo_0_…_name.jpg"


@pytest.mark.parametrize("dark", [False, True])
def test_a_saved_picture_has_the_chosen_background(tmp_path, dark):
    save_figure(plots.plot_curves({"x": ROWS}, ("loss",), dark=dark), tmp_path / "x.png")
    pixels = np.asarray(Image.open(io.BytesIO((tmp_path / "x.png").read_bytes())).convert("L"))
    assert (np.median(pixels) < 64) == dark


def test_the_users_settings_of_matplotlib_change_no_picture(monkeypatch):
    """An image would be upside down, a text set by LaTeX, a size another one."""
    images = np.zeros((1, 4, 4, 1), np.uint8)
    images[:, 0] = 255

    def draw():
        return render(plots.plot_predictions(images, np.full((1, 3), 1 / 3), "abc"))

    expected = draw()
    for name, value in (
        *(("image.origin", "lower"), ("text.usetex", True), ("font.size", 20.0)),
        *(("figure.figsize", (1, 1)), ("savefig.bbox", "tight"), ("savefig.facecolor", "red")),
    ):
        monkeypatch.setitem(matplotlib.rcParams, name, value)
    assert draw() == expected
    assert matplotlib.rcParams["image.origin"] == "lower"


@pytest.mark.parametrize("first", ["", "import matplotlib\n"])
@pytest.mark.parametrize("backend", ["module://not.here", "svg", "nonsense"])
def test_the_users_backend_comes_back_and_does_not_matter_here(first, backend):
    if first and backend == "nonsense":
        pytest.skip("matplotlib itself refuses it")
    code = first + (
        "import os, numpy as np\n"
        "from cifar_jax.reports import plots, style\n"
        "import matplotlib\n"
        "png = style.render(plots.plot_filters(np.ones((3, 3, 1, 4))))\n"
        "print(png[1:4].decode(), os.environ['MPLBACKEND'], matplotlib.get_backend())\n"
    )
    environment = os.environ | {"MPLBACKEND": backend}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        cwd=program.ROOT,
    )
    shown, variable, found = done.stdout.split()
    assert (shown, variable) == ("PNG", backend)
    assert found == backend or backend == "nonsense"


def make_font(path, letter):
    """Writes a font that has one letter, a square; returns its name."""
    outline = TTGlyphPen(None)
    outline.moveTo((0, 0))
    for point in ((0, 700), (700, 700), (700, 0)):
        outline.lineTo(point)
    outline.closePath()
    glyphs = {".notdef": TTGlyphPen(None).glyph(), "one": outline.glyph()}
    font = FontBuilder(1000, isTTF=True)
    font.setupGlyphOrder(list(glyphs))
    font.setupCharacterMap({ord(letter): "one"})
    font.setupGlyf(glyphs)
    font.setupHorizontalMetrics(dict.fromkeys(glyphs, (800, 0)))
    font.setupHorizontalHeader(ascent=800, descent=-200)
    font.setupNameTable({"familyName": "Only One", "styleName": "Regular"})
    font.setupOS2()
    font.setupPost()
    font.save(path)
    return "Only One"


def test_letters_are_taken_from_whatever_font_has_them(tmp_path, monkeypatch):
    """As names of classes, which are labels of ticks in one picture and texts in another."""
    letter = "\N{CJK UNIFIED IDEOGRAPH-4E2D}"
    name = make_font(tmp_path / "one.ttf", letter)
    manager = style.font_manager.fontManager
    own = [x for x in manager.ttflist if x.fname.startswith(matplotlib.get_data_path())]
    monkeypatch.setattr(manager, "ttflist", own)
    manager.addfont(tmp_path / "one.ttf")
    style._find_font.cache_clear()
    try:
        figure = diagnostics.plot_confusion(np.array([0, 1]), np.array([0, 1]), (letter, "plain"))
        style._add_fonts(figure)
        figure.canvas.draw()  # a letter that is missing would be a warning
        labels = [text for text in figure.findobj(style.Text) if letter in text.get_text()]
        assert labels
        assert all(text.get_fontfamily() == ["DejaVu Sans", name] for text in labels)
        assert (
            style._find_font("\N{CJK UNIFIED IDEOGRAPH-4E2E}") == "DejaVu Sans"
        )  # nothing has it: a box
        assert style._find_font("\N{CHECK MARK}") == "DejaVu Sans"
    finally:
        style._find_font.cache_clear()
