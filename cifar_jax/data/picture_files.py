"""Finding picture files: in folders, by patterns, and through links. Opens none of them."""

import glob
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from cifar_jax import files as files_lib
from cifar_jax.data.photos import HEIC, HEIC_ADVICE, extensions, is_picture_name
from cifar_jax.text import printable


class Found(NamedTuple):
    """What files, folders and patterns refer to.

    Attributes:
      files: the picture files, each once, in the order given (those of a folder sorted by name).
      problems: a line for each entry that gives none.
      others: how many other files were passed over, by their extension.
      folders: for each folder that was not entered, a pattern that enters it.
    """

    files: list[str]
    problems: list[str]
    others: Counter[str]
    folders: list[str]


def find_pictures(given: Iterable[str | Path]) -> Found:
    """Finds the picture files that files, folders and patterns refer to.

    A file is taken whatever its name. A folder, or a pattern that is not the name of a file, gives
    the files in it that have a picture's extension and are not hidden. A folder that holds only
    folders gives those in them.

    Args:
      given: files, folders and patterns ("**" matches folders at any depth, each of them once).
    """
    files: dict[str, str] = {}
    problems: list[str] = []
    others: dict[str, str] = {}
    folders: dict[str, str] = {}
    for entry in map(str, given):
        found, name = [entry], printable(entry)
        is_folder = os.path.isdir(entry)
        if is_folder or (not os.path.lexists(entry) and glob.has_magic(entry)):
            pattern = os.path.join(glob.escape(entry), "*") if is_folder else entry
            found, inner = _find_by_name(pattern, others)
            if is_folder and not found:
                found, inner = _find_by_name(os.path.join(pattern, "*"), others)
            if not found:
                advice = f"; '{name}/**' searches folders at any depth" if is_folder else ""
                problems.append(f"{name} holds no pictures{advice}")
            elif "**" not in pattern.split(os.sep):
                for path in inner:
                    outer = entry if is_folder else os.path.dirname(path)
                    folders.setdefault(os.path.realpath(path), os.path.join(outer, "**"))
        elif not os.path.lexists(entry):
            problems.append(f"{name} does not exist")
            continue
        # A folder that several patterns or links lead to counts once, under its shortest path.
        shortest: dict[str, str] = {}
        for path in sorted(found, key=len):
            folder, file = os.path.split(path)
            shortest.setdefault(os.path.join(os.path.realpath(folder), file), path)
        for place, path in sorted(shortest.items(), key=lambda pair: pair[1]):
            files.setdefault(place, path)
    entered = {os.path.dirname(place) for place in files}
    left = [pattern for folder, pattern in folders.items() if folder not in entered]
    return Found(list(files.values()), problems, Counter(others.values()), left)


def _find_by_name(pattern: str, others: dict[str, str]) -> tuple[list[str], list[str]]:
    """Returns the pictures that match, by their names, and the folders that do.

    It adds the kinds of the other files.
    """
    found, folders = [], []
    for path in files_lib.find_matches(pattern):
        if is_picture_name(path):
            found.append(path)
        elif os.path.isdir(path):
            folders.append(path)
        else:
            others[path] = os.path.splitext(path)[1].lower()
    return found, folders


def describe_others(kinds: Counter[str], folders: Sequence[str] = ()) -> str:
    """Returns a line about what was passed over.

    Args:
      kinds: the number of files by their extension.
      folders: as in `Found`.
    """
    ordered = sorted(kinds.items(), key=lambda pair: (-pair[1], pair[0] == "", pair[0]))
    words = ", ".join(f"{kind or 'no extension'} ({count})" for kind, count in ordered)
    advice = f"; {HEIC_ADVICE}" if HEIC & kinds.keys() - extensions() else ""
    parts = [f"not pictures by their names, and passed over: {words}{advice}"] if kinds else []
    if folders:
        count = f"{len(folders)} folder{'s were' if len(folders) > 1 else ' was'}"
        more = " and so on" if len(set(folders)) > 1 else ""
        parts.append(f"{count} not entered: give '{printable(folders[0])}'{more} for all depths")
    return "; ".join(parts)
