"""Pictures of any kind and size from files, as images of the size that a model takes.

Pillow reads them. Nothing is decoded before its size is known to be sane, and whatever is wrong
with a file becomes one `UserError` that names it. Imports no JAX.
"""

import glob
import os
import stat
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps

from cifar_jax.errors import UserError
from cifar_jax.text import printable

# A picture of more pixels is not decoded: it would take gigabytes.
MOST_PIXELS = 128_000_000
# Pillow hands the first to Ghostscript, an interpreter of programs. Of the others it knows no more
# than that they are: a film or a table of numbers in a folder of pictures is none of them.
_NOT_READ = ("EPS", "MPEG", "HDF5", "GRIB", "BUFR", "WMF")


def find(given: Iterable[str | Path]) -> tuple[list[str], list[str]]:
    """Finds the files that a user means.

    A file is taken whatever its name. A folder stands for the pictures in it, by their extensions;
    so does a pattern ("**" reaches into folders) that is no file's name. Hidden files are left out
    of both.

    Args:
      given: files, folders and patterns.

    Returns:
      The files, each once, in the order given (those of a folder by name); and a line for each
      entry that brings none.
    """
    files: dict[str, str] = {}
    problems = []
    for entry in map(str, given):
        found = [entry]
        if os.path.isdir(entry):
            found = [os.path.join(entry, name) for name in _list(entry)]
            found = [path for path in found if _is_picture_name(path)]
        elif not os.path.lexists(entry) and glob.has_magic(entry):
            found = [path for path in glob.glob(entry, recursive=True) if _is_picture_name(path)]
        elif not os.path.lexists(entry):
            problems.append(f"{printable(entry)} does not exist")
            continue
        if not found:
            name, advice = printable(entry), ""
            if os.path.isdir(entry):
                advice = f"; '{name}/**' looks into its folders too"
            problems.append(f"{name} holds no pictures{advice}")
        # A folder that "**" reaches by several links counts once, by its shortest path.
        shortest: dict[str, str] = {}
        for path in sorted(found, key=len):
            folder, name = os.path.split(path)
            shortest.setdefault(os.path.join(os.path.realpath(folder), name), path)
        for place, path in sorted(shortest.items(), key=lambda pair: pair[1]):
            files.setdefault(place, path)
    return list(files.values()), problems


def _list(folder: str) -> list[str]:
    try:
        return [name for name in os.listdir(folder) if not name.startswith(".")]
    except OSError:
        return []


def _is_picture_name(path: str) -> bool:
    kinds = Image.registered_extensions()
    return kinds.get(os.path.splitext(path)[1].lower()) in _formats() and not os.path.isdir(path)


def _formats() -> list[str]:
    Image.init()
    return [name for name in Image.OPEN if name not in _NOT_READ]


def load(path: str) -> Image.Image:
    """Returns a picture upright, in 8-bit "L" (if it is grey) or "RGB".

    The first frame counts. What is transparent lies on white. Of 16-bit values the upper part is
    taken; real numbers are taken to go from 0 to 1, to 255 or to 65535, whichever first holds the
    largest of them.

    Raises:
      UserError: the file cannot be read, is no picture or a damaged one, or has too many pixels.
    """
    try:
        return _load(path)
    except UserError as error:
        raise UserError(f"{printable(path)} {error}", error.exit_code) from error


def _load(path: str) -> Image.Image:
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise UserError("is not a file")  # a FIFO would be waited for
        if not status.st_size:
            raise UserError("is empty")
        with Path(path).open("rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, of what it could make up for
            return _decode(file)
    except OSError as error:
        words = "is a link to nothing" if os.path.islink(path) else "cannot be read"
        raise UserError(f"{words} ({error.strerror})") from error


def _decode(file: BinaryIO) -> Image.Image:
    try:
        image = Image.open(file, formats=_formats())
        pixels = image.width * image.height
    except Image.DecompressionBombError:
        pixels = MOST_PIXELS + 1
    except Image.UnidentifiedImageError:
        raise UserError("is not a picture of a known kind") from None
    except Exception as error:  # whatever Pillow makes of a damaged header
        raise UserError(f"is damaged ({_reason(error)})") from error
    if pixels > MOST_PIXELS:
        raise UserError(f"has more than {MOST_PIXELS // 10**6} million pixels")
    if not pixels:
        raise UserError("has no pixels")
    try:
        image.load()
        return _to_8_bits(_turn_upright(image))
    except Exception as error:  # likewise, of damaged pixels
        raise UserError(f"is damaged ({_reason(error)})") from error


def _reason(error: Exception) -> str:
    lines = printable(str(error).strip().split("\n")[0])
    return lines[:120] or type(error).__name__


def _turn_upright(image: Image.Image) -> Image.Image:
    """Follows the EXIF orientation, where there is one that can be read."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:
        return image


def _to_8_bits(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        # In place: the largest pictures would take gigabytes several times.
        values = np.array(image, np.float32)
        np.nan_to_num(values, copy=False, posinf=0, neginf=0)
        largest = values.max()
        whites = (1, 255, 65535) if image.mode == "F" else (65535,)
        white = next((white for white in whites if largest <= white), largest)
        np.clip(np.divide(values, white, out=values), 0, 1, out=values)
        return Image.fromarray(np.rint(np.multiply(values, 255, out=values)).astype(np.uint8))
    if image.has_transparency_data:
        ground = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(ground, image.convert("RGBA")).convert("RGB")
    return image.convert("L" if image.mode in ("1", "L") else "RGB")


def fit(image: Image.Image, shape: Sequence[int], resize: str = "crop") -> np.ndarray:
    """Returns a picture in another size, by Pillow's bicubic filter, antialiased where it shrinks.

    A picture that has that size already keeps its pixels, bit by bit.

    Args:
      image: as `load` returns it.
      shape: (height, width, channels) wanted; 1, 3 or 4 channels.
      resize: "crop" keeps the proportions and cuts off what is too long, on both sides alike;
        "squeeze" keeps all of the picture.

    Returns:
      uint8 of that shape.
    """
    height, width, channels = shape
    image = image.convert({1: "L", 3: "RGB", 4: "RGBA"}[channels])
    if resize == "crop":
        image = ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC)
    else:
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(image, np.uint8).reshape(height, width, channels)
