"""Parts of splits in TFDS's notation, such as "train[:90%]+validation"."""

import contextlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from cifar_jax.errors import UserError


class SplitSize(NamedTuple):
    """The number of images of a split, and of each of its files, as TFDS names them."""

    num_examples: int
    shard_lengths: list[int]


class Part(NamedTuple):
    """The images of a split from `start` up to `stop`."""

    split: str
    start: int
    stop: int


def check_notation(split: str) -> None:
    """Raises UserError if a text is not a split in TFDS's notation."""
    if not re.fullmatch(r"\w+", split):
        _parse(split)


def find_names(split: str, sizes: Mapping[str, Any]) -> list[str]:
    """Returns the names of the splits in a text in TFDS's notation, "all" being those of a set."""
    if split == "all":
        return list(sizes)
    return list(dict.fromkeys(re.findall(r"(?:^|\+)\s*(\w+)", split)))


def check_known(name: str, split: str, sizes: Mapping[str, Any]) -> None:
    """Raises UserError if a text in TFDS's notation names a split that the set `name` lacks."""
    if not sizes.keys() >= set(find_names(split, sizes)):
        raise UserError(f"{name} has no split {split!r}: it has {', '.join(sizes)}")


def find_parts(name: str, split: str, sizes: Mapping[str, SplitSize]) -> list[Part]:
    """Returns the parts that a split consists of.

    Args:
      name: the set's name.
      split: in TFDS's notation; "all" is every split, as in TFDS.
      sizes: those of the set's own splits.

    Raises:
      UserError: the set has no such split, or it is empty.
    """
    if split in sizes:
        return [Part(split, 0, sizes[split].num_examples)]
    try:
        found = _parse(split).to_absolute(sizes)
    except ValueError as error:
        check_known(name, split, sizes)
        if "incompatible" in str(error):
            words = f"has fewer images than {split!r} asks for: it has {_describe(sizes)}"
            raise UserError(f"{name} {words}") from None
        found = []
    ends = ((sizes[x.splitname].num_examples if x.to is None else x.to) for x in found)
    parts = [Part(x.splitname, x.from_ or 0, end) for x, end in zip(found, ends, strict=True)]
    if not parts or any(part.start >= part.stop for part in parts):
        raise UserError(f"{name} has no images in {split!r}: it has {_describe(sizes)}")
    return parts


def _describe(sizes: Mapping[str, SplitSize]) -> str:
    return ", ".join(f"{size.num_examples} {split}" for split, size in sizes.items())


def _parse(split: str) -> Any:
    import tensorflow_datasets as tfds

    try:
        return tfds.core.ReadInstruction.from_spec(split)
    except ValueError:
        raise UserError(
            f"{split!r} is not a split in TFDS's notation: give one such as train, train[:90%], "
            "train[:1000] or train+validation"
        ) from None


def count_common(first: Iterable[Part], second: Iterable[Part]) -> int:
    """Returns how many images two lists of parts have in common."""
    pairs = ((a, b) for a in first for b in second if a.split == b.split)
    return sum(max(0, min(a.stop, b.stop) - max(a.start, b.start)) for a, b in pairs)


def join(parts: Iterable[Part], array: Callable[[str], np.ndarray]) -> np.ndarray:
    """Returns the rows of parts, read-only, without a copy if there is only one part.

    Args:
      parts: as `find_parts` returns them.
      array: returns the whole array of a split.
    """
    pieces = [array(part.split)[part.start : part.stop] for part in parts]
    joined = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
    joined.flags.writeable = False
    return joined


def trace_images(
    parts: Sequence[Part], notes: Callable[[str], Mapping[str, Any]]
) -> dict[str, np.ndarray]:
    """Returns where in the set each image of parts is, as columns of a table, [images].

    They are "file", for a folder of pictures; otherwise "split" and "original_index", the image's
    place in that split as TFDS reads it, from 0.

    Args:
      parts: as `find_parts` returns them.
      notes: returns the notes of a split.
    """
    if all("files" in notes(part.split) for part in parts):
        return {"file": join(parts, lambda split: np.array(notes(split)["files"]))}
    places = [np.arange(part.start, part.stop) for part in parts]
    names = np.repeat([part.split for part in parts], [len(own) for own in places])
    return {"split": names, "original_index": np.concatenate(places)}


@contextlib.contextmanager
def advising(role: str) -> Iterator[None]:
    """Adds to a UserError which field of the config names the split of a role, such as "train"."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{error}; change data.{role}_split") from None


def choose_splits(
    name: str,
    sizes: Mapping[str, SplitSize],
    train_split: str,
    test_split: str | None,
    use_validation: bool,
) -> dict[str, str]:
    """Returns which splits of a set are a run's "train", "test" and "validation".

    Args:
      name: the set's name.
      sizes: those of the set's own splits.
      train_split: the training images, in TFDS's notation.
      test_split: the test images; None: the set's split "test", if it may be used.
      use_validation: whether to take the set's split "validation", if it may be used.

    Raises:
      UserError: a split does not exist or is empty, or training and test images overlap.
    """
    chosen = {"train": train_split} | ({} if test_split is None else {"test": test_split})
    used: list[Part] = []
    for role, split in chosen.items():
        with advising(role):
            parts = find_parts(name, split, sizes)
        if twice := sum(count_common(parts[:place], [parts[place]]) for place in range(len(parts))):
            raise UserError(
                f"data.{role}_split {split!r} has {twice} images twice: name parts that do not "
                "overlap"
            )
        if common := count_common(used, parts):
            raise UserError(
                f"data.train_split {train_split!r} and data.test_split {split!r} have {common} "
                "images in common: train on the others, for instance on train[:90%] and test on "
                "train[90%:]"
            )
        used += parts
    for role in ("test", "validation") if use_validation else ("test",):
        if role in sizes and role not in chosen:
            parts = find_parts(name, role, sizes)
            if not count_common(used, parts):
                chosen[role] = role
                used += parts
    return chosen
