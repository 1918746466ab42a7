"""The picture files of a folder, by class: PATH/CLASS/*.jpg, or PATH/train/CLASS and so on.

Only names are read here; `folder` decodes the files.
"""

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from cifar_jax import files as files_lib
from cifar_jax.data import photos
from cifar_jax.data.picture_files import describe_others
from cifar_jax.errors import UserError
from cifar_jax.text import printable

# The name of the set.
FOLDER = "folder"
_SPLITS = {"train": "train", "training": "train", "test": "test", "testing": "test"}
_SPLITS |= dict.fromkeys(("val", "valid", "validation"), "validation")
_MOST_NAMED = 5


class Tree(NamedTuple):
    """The picture files of a folder.

    Attributes:
      root: the folder.
      class_names: the names of the classes' folders that hold pictures, sorted.
      splits: for each split its files, relative to the root, and the numbers of their classes.
      remarks: what was passed over, a line each.
    """

    root: Path
    class_names: tuple[str, ...]
    splits: dict[str, list[tuple[str, int]]]
    remarks: tuple[str, ...]


def find_tree(path: str | None) -> Tree:
    """Returns the picture files of a folder, by their names; opens none.

    A folder called train, test or val (or training, testing, valid, validation) is that of a split
    if it holds folders and no pictures, or if there are no other folders.

    Raises:
      UserError: there is no such folder, or it has no training pictures of at least two classes.
    """
    if not path:
        raise UserError(
            "data.path is not set: name your folder, --config.data.path=PATH, or --data_dir=PATH "
            "where the set is named by --dataset"
        )
    root = Path(path).expanduser().absolute()
    if not root.is_dir():
        words = "is not a folder" if root.exists() else "does not exist"
        raise UserError(f"the folder of pictures {printable(str(root))} {words}")
    try:
        return _find_tree(root)
    except OSError as error:
        raise UserError(f"{error.filename} cannot be read: {error.strerror}") from error


def _find_tree(root: Path) -> Tree:
    folders, loose = _list_folder(root)
    by_split = _find_splits(root, folders)
    remarks = [
        f"the folder {name!r} is not that of a split and is passed over"
        for name in folders
        if by_split and name not in by_split
    ]
    others: Counter[str] = Counter()
    found: dict[str, dict[str, list[str]]] = {}
    for place, split in (by_split or {"": "train"}).items():
        classes, inside = _list_folder(root / place)
        loose += [os.path.join(place, name) for name in inside] if place else []
        found[split] = {name: _list_pictures(root, place, name, others) for name in classes}
    pictures = [name for name in loose if photos.is_picture_name(str(root / name))]
    others.update(os.path.splitext(name)[1].lower() for name in loose if name not in pictures)
    if pictures:
        remarks.append(f"in no class's folder, and passed over: {name_some(pictures)}")
    if others:
        remarks.append(describe_others(others))
    names = sorted({name for classes in found.values() for name in classes})
    empty = [name for name in names if not any(classes.get(name) for classes in found.values())]
    names = [name for name in names if name not in empty]
    remarks += [f"the class {name!r} holds no pictures and is left out" for name in empty]
    if sum(map(bool, found["train"].values())) < 2:
        words = f"training pictures of {len(names)} class" + "es" * (len(names) != 1)
        if names:
            words += f" ({name_some(names)})"
        advice = "PATH/CLASS/*.jpg or PATH/train/CLASS/*.jpg, with two classes or more"
        raise UserError(f"{printable(str(root))} holds {words}: it must be {advice}")
    splits = {}
    for split in ("train", "validation", "test"):
        pairs = [(file, name) for name, own in found.get(split, {}).items() for file in own]
        # By the files' names before the classes': a set whose files are numbered keeps its order.
        pairs.sort(key=lambda pair: (os.path.basename(pair[0]), pair[0]))
        if pairs:
            splits[split] = [(file, names.index(name)) for file, name in pairs]
    return Tree(root, tuple(names), splits, tuple(remarks))


def _list_folder(folder: Path) -> tuple[list[str], list[str]]:
    """Returns the names of the folders and of the files in a folder, without hidden ones."""
    with os.scandir(folder) as entries:
        shown = sorted((x.name, x.is_dir()) for x in entries if not x.name.startswith("."))
    return [name for name, folder in shown if folder], [
        name for name, folder in shown if not folder
    ]


def _find_splits(root: Path, folders: Sequence[str]) -> dict[str, str]:
    """Returns the split that each folder of a split holds; {} if all folders are classes."""
    named = [name for name in folders if name.lower() in _SPLITS]
    found = {}
    for name in named:
        classes, files = _list_folder(root / name)
        pictures = any(photos.is_picture_name(str(root / name / file)) for file in files)
        if classes and (len(named) == len(folders) or not pictures):
            found[name] = _SPLITS[name.lower()]
    if found and "train" not in found.values():
        raise UserError(f"{root} has {', '.join(found)} but no train: put the classes into it")
    if len(set(found.values())) < len(found):
        raise UserError(f"{root} has two folders for one split: {', '.join(found)}; keep one")
    return found


def _list_pictures(root: Path, place: str, name: str, others: Counter[str]) -> list[str]:
    """Returns the pictures of a class, at any depth; counts the other files by their kinds."""
    pictures = []
    for folder in files_lib.walk_folders([str(root / place / name)], strict=True):
        relative = os.path.relpath(folder, root)
        for file in _list_folder(Path(folder))[1]:
            extension = os.path.splitext(file)[1].lower()
            if extension in photos.extensions():
                pictures.append(f"{relative}/{file}")
            else:
                others[extension] += 1
    return pictures


def name_some(names: Sequence[str]) -> str:
    """Returns the first names of a list, and how many there are besides."""
    some = ", ".join(map(printable, names[:_MOST_NAMED]))
    return some + (f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else "")
