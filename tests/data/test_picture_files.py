"""Finding picture files: folders, patterns, links that loop, and what is passed over."""

import importlib.util
import os

import pytest

from cifar_jax.data import photos, picture_files


def find(given):
    """Returns the pictures and the problems, without what was passed over."""
    return picture_files.find_pictures(given)[:2]


def test_files_folders_and_patterns(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = ("b.png", "a.JPG", "c,d.webp", "in/x.gif", "in/deep/y.bmp", ".hidden.png", "e[1].png")
    for name in (*names, "note.txt", "in/z.txt", "film.mpg", "in/x.h5", "drawing.eps"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "in" / "a_loop").symlink_to(".")
    assert find(["."]) == (["./a.JPG", "./b.png", "./c,d.webp", "./e[1].png"], [])
    assert find(["note.txt", "b.png", "./b.png"]) == (["note.txt", "b.png"], [])
    assert find(["*.png"]) == (["b.png", "e[1].png"], [])
    assert find(["e[1].png"]) == (["e[1].png"], [])
    assert find(["in/**"]) == (["in/deep/y.bmp", "in/x.gif"], [])
    (tmp_path / "classes" / "a").mkdir(parents=True)
    for name in ("classes/a/x.png", "classes/a/y.txt"):
        (tmp_path / name).touch()
    assert find(["classes"]) == (["classes/a/x.png"], [])
    found, problems = find(["b.png", "none.png", "folder.jpg", "*.bmp", "z\n"])
    assert found == ["b.png"]
    assert problems == [
        "none.png does not exist",
        "folder.jpg holds no pictures; 'folder.jpg/**' searches folders at any depth",
        "*.bmp holds no pictures",
        r"z\n does not exist",
    ]


def test_brackets_in_the_names_of_folders_are_no_pattern(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("trip [2020]/a.png", "trip [2020]/in/b.png", "trip 2/c.png", "x1/d.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    for place in ("trip [2020]", str(tmp_path / "trip [2020]")):
        names = [f"{place}/a.png"], []
        assert find([place]) == find([f"{place}/*"]) == find([f"{place}/*.png"]) == names
        assert find([f"{place}/**"])[0] == [f"{place}/a.png", f"{place}/in/b.png"]
        assert find([f"{place}/*/b.*"])[0] == [f"{place}/in/b.png"]
    assert find(["x[12]/*.png"])[0] == ["x1/d.png"]  # no folder has this name


def test_links_that_loop_are_followed_once(tmp_path, monkeypatch):
    """With eight links each, glob would look at more than 10**10 paths."""
    monkeypatch.chdir(tmp_path)
    for name in ("photos/a/x.png", "photos/b/y.png", "elsewhere/z.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    for number in range(8):
        (tmp_path / "photos" / f"loop{number}").symlink_to(tmp_path / "photos")
        (tmp_path / "photos" / "a" / f"loop{number}").symlink_to(tmp_path)
    (tmp_path / "photos" / "b" / "out").symlink_to(tmp_path / "elsewhere")
    scanned = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: scanned.append(path) or scandir(path))
    found, problems = find(["photos/**"])
    assert {os.path.realpath(path) for path in found} == {
        f"{tmp_path}/{name}" for name in ("photos/a/x.png", "photos/b/y.png", "elsewhere/z.png")
    }
    assert (len(found), problems) == (3, [])
    assert find(["photos/**/*.png"])[0] == found
    assert find(["photos/**/**/y.png"])[0] == ["photos/b/y.png"]
    assert len(scanned) < 200


@pytest.mark.parametrize("installed", [True, False])
def test_files_that_are_passed_over_are_counted_by_kind(tmp_path, monkeypatch, installed):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: installed or None)
    known = {".png": "PNG"} | ({".heic": "HEIF"} if installed else {})
    monkeypatch.setattr(photos.Image, "registered_extensions", lambda: known)
    photos.extensions.cache_clear()
    for name in ("a.png", "IMG_1.HEIC", "IMG_2.HEIC", "drawing.svg", "scan", ".DS_Store"):
        (tmp_path / name).touch()
    (tmp_path / "folder").mkdir()
    try:
        for given in (tmp_path, tmp_path / "*", tmp_path / "**"):
            found, problems, others, _ = picture_files.find_pictures([given])
            line = picture_files.describe_others(others)
            assert len(found) == (3 if installed else 1)
            assert problems == []
            if installed:
                assert line.endswith("and passed over: .svg (1), no extension (1)")
            else:
                assert line.endswith(
                    "and passed over: .heic (2), .svg (1), no extension (1); "
                    "pip install pillow-heif to read HEIC"
                )
    finally:
        photos.extensions.cache_clear()


@pytest.mark.parametrize(
    ("given", "number", "pattern"),
    [
        (["photos"], 2, "photos/**"),
        (["photos/*"], 2, "photos/**"),
        (["."], 1, "./**"),  # holds only folders: those are entered, but not what is in them
        (["photos/"], 2, "photos/**"),
        (["photos", "photos/cats"], 2, "photos/** and so on"),
        (["photos/cats"], 1, "photos/cats/**"),
        (["photos/cats", "photos"], 2, "photos/cats/** and so on"),
        (["photos/**"], 0, ""),
        (["photos/**/*.png"], 0, ""),
        (["photos/*.png"], 0, ""),
        (["photos/a.png"], 0, ""),
        (["photos/none"], 0, ""),
    ],
)
def test_folders_that_are_not_entered_are_counted(tmp_path, monkeypatch, given, number, pattern):
    monkeypatch.chdir(tmp_path)
    names = ("a.png", "cats/b.png", "cats/old/c.png", "dogs/d.png", ".hidden/e.png", "dogs/f.txt")
    for name in names:
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / name).touch()
    (tmp_path / "photos" / "loop").symlink_to(".")
    if given == ["."]:
        (tmp_path / "photos" / "loop").unlink()
        (tmp_path / "photos" / "dogs").rename(tmp_path / "dogs")
    found = picture_files.find_pictures(given)
    assert len(found.folders) == number
    line = picture_files.describe_others(found.others, found.folders)
    was = "folder was" if number == 1 else "folders were"
    first, _, more = pattern.partition(" ")
    words = f"{number} {was} not entered: give '{first}'{more and f' {more}'} for all depths"
    assert line.endswith(words) if number else "not entered" not in line
    if number and not more and len(given) == 1:  # the pattern that the line names takes them all
        assert picture_files.find_pictures([first]).folders == []
        assert len(picture_files.find_pictures([first]).files) > len(found.files)
