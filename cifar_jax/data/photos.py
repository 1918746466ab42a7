"""Picture files of any format and size, as images of the size that a model takes.

Pillow reads them. The size is checked before anything is decoded, and any problem with a file is
reported as one `UserError` that names it. Imports no JAX.
"""

import functools
import importlib.util
import os
import stat
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageColor, ImageOps

from cifar_jax.errors import UserError
from cifar_jax.text import printable

# A larger picture is not decoded: it would take gigabytes.
MOST_PIXELS = 128_000_000
# Pillow passes the first to Ghostscript, which runs it as a program. It only recognizes the others
# (films, tables of numbers) and cannot read them.
_NOT_READ = ("EPS", "MPEG", "HDF5", "GRIB", "BUFR", "WMF")
# Photographs of telephones, which Pillow reads only with another package.
HEIC = frozenset((".heic", ".heif", ".hif"))
HEIC_ADVICE = "pip install pillow-heif to read HEIC"


def is_picture_name(path: str) -> bool:
    """Whether a path has the extension of a picture that can be read, and is not a folder's."""
    return os.path.splitext(path)[1].lower() in extensions() and not os.path.isdir(path)


@functools.cache
def extensions() -> frozenset[str]:
    """Returns the extensions of the pictures that can be read, such as ".jpg"."""
    known = Image.registered_extensions().items()
    heic = HEIC if importlib.util.find_spec("pillow_heif") else frozenset()
    return heic.union(extension for extension, kind in known if kind in _formats())


@functools.cache
def _add_heic() -> bool:
    """Whether Pillow can read HEIC, for which another package must be installed."""
    try:
        import pillow_heif
    except ImportError:
        return False
    pillow_heif.register_heif_opener()
    return True


def _formats() -> list[str]:
    Image.init()
    return [name for name in Image.OPEN if name not in _NOT_READ]


def read_picture(
    path: str, channels: int = 3, background: str = "white", invert: bool = False
) -> Image.Image:
    """Returns a picture, upright, in Pillow's 8-bit mode "L" (if it is grey), "RGB" or "RGBA".

    Of an animation it is the first frame. Numbers of more than 8 bits are scaled from the range
    that they were stored for: the smallest of 255, 4095 and 65535 that is not below the largest of
    them; real numbers also from 1.

    Args:
      path: the file.
      channels: with 4, transparency is kept, as a fourth channel.
      background: the colour behind transparent parts, in any of Pillow's forms.
      invert: whether to swap dark and light.

    Raises:
      UserError: the file cannot be read, is not a picture, is damaged, or has too many pixels.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, of faults that it can work around
        return read_in_thread(path, channels, background, invert)


def read_in_thread(
    path: str, channels: int = 3, background: str = "white", invert: bool = False
) -> Image.Image:
    """Does what `read_picture` does, in any thread: the caller keeps Pillow's warnings silent."""
    try:
        image = _load(path, channels, background)
        return _invert(image) if invert else image
    except UserError as error:
        raise UserError(f"{printable(path)} {error}", error.exit_code) from error


def check_background(background: str) -> None:
    """Raises UserError if a text is not a colour."""
    try:
        ImageColor.getrgb(background)
    except ValueError as error:
        raise UserError(f"--background: {error}; give a name or #RRGGBB") from error


def _invert(image: Image.Image) -> Image.Image:
    if image.mode != "RGBA":
        return ImageOps.invert(image)
    *colours, alpha = image.split()
    return Image.merge("RGBA", [*map(ImageOps.invert, colours), alpha])


def _load(path: str, channels: int, background: str) -> Image.Image:
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise UserError("is not a file")  # opening a FIFO would block
        if not status.st_size:
            raise UserError("is empty")
        with Path(path).open("rb") as file:
            return _decode(file, channels, background)
    except OSError as error:
        words = "is a broken link" if os.path.islink(path) else "cannot be read"
        raise UserError(f"{words} ({error.strerror})") from error


def _open(file: BinaryIO) -> Image.Image:
    words = "is not a picture of a known format"
    for _ in range(2):
        try:
            return Image.open(file, formats=_formats())
        except Image.UnidentifiedImageError:
            file.seek(0)
            head = file.read(12)
            file.seek(0)
            if head[4:8] != b"ftyp" or head[8:11] not in (b"hei", b"hev", b"mif", b"msf"):
                break
            if not _add_heic():
                words = f"is not read by Pillow alone: {HEIC_ADVICE}"
                break
    raise UserError(words)


def _decode(file: BinaryIO, channels: int, background: str) -> Image.Image:
    try:
        image = _open(file)
        pixels = image.width * image.height
    except Image.DecompressionBombError:
        pixels = MOST_PIXELS + 1
    except UserError:
        raise
    except Exception as error:  # Pillow may raise almost anything for a damaged header
        raise UserError(f"is damaged ({_reason(error)})") from error
    if pixels > MOST_PIXELS:
        raise UserError(f"has more than {MOST_PIXELS // 10**6} million pixels")
    if not pixels:
        raise UserError("has no pixels")
    try:
        image.load()
        return _to_8_bits(_turn_upright(image), channels, background)
    except Exception as error:  # or for damaged pixels
        raise UserError(f"is damaged ({_reason(error)})") from error


def _reason(error: Exception) -> str:
    lines = printable(str(error).strip().split("\n")[0])
    return lines[:120] or type(error).__name__


def _turn_upright(image: Image.Image) -> Image.Image:
    """Applies the EXIF orientation if it can be read."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:
        return image


def _to_8_bits(image: Image.Image, channels: int, background: str) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        # In place: each copy of the largest pictures takes half a gigabyte.
        values = np.array(image, np.float32)
        np.nan_to_num(values, copy=False, posinf=0, neginf=0)
        largest = values.max()
        whites = (1, 255, 4095, 65535)[0 if image.mode == "F" else 1 :]
        white = next((white for white in whites if largest <= white), largest)
        np.clip(np.divide(values, white, out=values), 0, 1, out=values)
        return Image.fromarray(np.rint(np.multiply(values, 255, out=values)).astype(np.uint8))
    if image.has_transparency_data:
        if channels == 4:
            return image.convert("RGBA")
        ground = Image.new("RGBA", image.size, background)
        return Image.alpha_composite(ground, image.convert("RGBA")).convert("RGB")
    return image.convert("L" if image.mode in ("1", "L") else "RGB")


def from_array(image: np.ndarray) -> Image.Image:
    """Returns an image, uint8 [height, width, 1, 3 or 4], as a picture."""
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)


def fit(image: Image.Image, shape: Sequence[int], resize: str = "crop") -> np.ndarray:
    """Returns a picture as an array of a given shape.

    It is resized by Pillow's bicubic filter, with antialiasing; a picture of the right size keeps
    its pixels exactly.

    Args:
      image: a picture as `read_picture` returns it.
      shape: the wanted (height, width, channels), with 1, 3 or 4 channels.
      resize: "crop" keeps the proportions and cuts the longer side equally at both ends; "squeeze"
        keeps all of the picture.

    Returns:
      uint8 [height, width, channels].
    """
    height, width, channels = shape
    image = image.convert({1: "L", 3: "RGB", 4: "RGBA"}[channels])
    if resize == "crop":
        image = ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC)
    else:
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(image, np.uint8).reshape(height, width, channels)
