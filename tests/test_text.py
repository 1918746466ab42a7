"""Text for a console: widths, distinct names, characters that could upset a terminal."""

import math

import pytest

from cifar_jax.text import (
    format_duration,
    format_number,
    format_table,
    printable,
    short_names,
    shorten_middle,
)


def test_columns_are_aligned_for_characters_of_any_width():
    rows = [["name", "%"], ["日本", "1.0"], ["e\N{COMBINING ACUTE ACCENT}t", "10.0"]]
    lines = format_table(rows, right=(1,)).splitlines()
    assert lines == ["name     %", "----------", "日本   1.0", "e\u0301t    10.0"]


def test_unprintable_characters_are_escaped():
    text = "a\nb\x1b[31m\r\t\u202e\udcff\x00 ü日"
    assert printable(text) == r"a\nb\x1b[31m\r\t\u202e\udcff\x00 ü日"


def test_names_are_as_short_as_they_can_be():
    paths = ["/p/a/cat.png", "/p/b/cat.png", "/p/b/dog.png", "q/b/cat.png", "/cat.png"]
    names = short_names(paths)
    assert names[:4] == ["a/cat.png", "p/b/cat.png", "dog.png", "q/b/cat.png"]
    assert len(set(names)) == len(names)
    assert short_names(["x/y"]) == ["y"]


def test_a_long_name_keeps_both_ends():
    assert shorten_middle("abcdefghij.png", 9) == "abcd….png"
    assert shorten_middle("short.png", 9) == "short.png"


def test_durations_in_words():
    assert [format_duration(x) for x in (0.4, 65, 7389, math.inf)] == [
        "0:00",
        "1:05",
        "2:03:09",
        "-",
    ]


@pytest.mark.parametrize(
    ("value", "expected"),
    [(1000, "1,000"), (0, "0"), (12.5, "12.5"), (0.255, "0.26"), (3.0, "3"), (4 / 390, "0.01")],
)
def test_numbers_of_epochs(value, expected):
    assert format_number(value) == expected
    assert format_number(0.00404) == "0.004"
