"""The manifest of a checkpoint: the SHA-256 of each of its files, checked before use.

Nothing outside the folder is opened: a link, or a file that the manifest does not list, counts as
damage. Imports no JAX.
"""

import hashlib
import json
import math
import os
import stat
from collections.abc import Mapping
from pathlib import Path

from cifar_jax import files
from cifar_jax.errors import UserError
from cifar_jax.runs import provenance

FORMAT = 1
_MANIFEST = "manifest.json"


def write_manifest(folder: Path) -> None:
    """Writes the manifest of a folder, and makes everything in it durable."""
    found, folders = _paths(folder)
    digests = {}
    for name, path in found.items():
        with path.open("rb") as file:
            digests[name] = hashlib.file_digest(file, "sha256").hexdigest()
            os.fsync(file.fileno())
    version = provenance.versions().get("cifar_jax")
    content = {"format": FORMAT, "cifar_jax": version, "files": digests}
    files.write_json(folder / _MANIFEST, {"sha256": files.digest(content), "content": content})
    for path in folders:
        files.sync_folder(path)


def read_digest(folder: Path) -> str:
    """Returns the SHA-256 of a manifest, which tells a checkpoint from every other one.

    Raises:
      UserError: there is no manifest, or it cannot be read.
    """
    return str(files.read_json(folder / _MANIFEST).get("sha256"))


def find_damage(folder: Path) -> str:
    """Returns what is wrong with a folder's files, "" if nothing is.

    Raises:
      UserError: the folder is intact but has a newer format than this version reads, or it cannot
        be read now.
    """
    try:
        if folder.is_symlink():
            return "it is a link"
        found, _ = _paths(folder)
        if odd := [path for path in found.values() if not _is_plain(path)]:
            kind = "a link" if odd[0].is_symlink() else "not a plain file"
            return f"{odd[0].relative_to(folder)} is {kind}"
        manifest = json.loads((folder / _MANIFEST).read_bytes())
        content = manifest["content"]
        if manifest["sha256"] != files.digest(content):
            return f"{_MANIFEST} has changed"
        if content["format"] > FORMAT:
            raise UserError(
                f"{folder} has format {content['format']}, this version of cifar_jax reads up to "
                f"{FORMAT}: use version {content.get('cifar_jax')}, which wrote it"
            )
        expected = content["files"]
        if missing := sorted(expected.keys() - found.keys()):
            return f"{missing[0]} is missing"
        if extra := sorted(found.keys() - expected.keys()):
            return f"{extra[0]} does not belong to it"
        for name, path in found.items():
            with path.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != expected[name]:
                    return f"{name} has changed"
    except (FileNotFoundError, NotADirectoryError):
        return f"{_MANIFEST} is missing"
    except OSError as error:
        # A disk that does not answer now says nothing about the files on it.
        raise UserError(
            f"{folder} cannot be read ({error.strerror}): nothing was changed; start the same "
            "command again when the disk answers",
            exit_code=1,
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return f"{_MANIFEST} cannot be read ({type(error).__name__})"
    return ""


def read_scores(paths: Mapping[int, Path]) -> list[tuple[float, int]]:
    """Returns the accuracies on the validation split, and their steps, from meta files by step.

    A file without one, or that is damaged or was deleted, is passed over.

    Raises:
      UserError: a file is there, but cannot be read now.
    """
    scores = []
    for step, path in paths.items():
        try:
            accuracy = float(json.loads(path.read_bytes())["metrics"]["eval_accuracy"])
            scores += [(accuracy, step)] if math.isfinite(accuracy) else []
        except (FileNotFoundError, NotADirectoryError):
            continue
        except (LookupError, TypeError, ValueError, OverflowError, RecursionError):
            continue
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror})", 1) from error
    return scores


def _paths(folder: Path) -> tuple[dict[str, Path], list[Path]]:
    """Returns everything except the manifest, by name; and the folders, `folder` first."""
    found: dict[str, Path] = {}
    folders = [folder]

    def fail(error: OSError) -> None:
        # Without this, `os.walk` passes over a folder that cannot be read now.
        raise error

    for root, inner, names in os.walk(folder, onerror=fail):
        for path in (Path(root, name) for name in sorted([*inner, *names])):
            if stat.S_ISDIR(path.lstat().st_mode):
                folders.append(path)
            elif path != folder / _MANIFEST or not _is_plain(path):
                found[path.relative_to(folder).as_posix()] = path
    return found, folders


def _is_plain(path: Path) -> bool:
    """Whether it is a plain file, not a link nor a pipe, which could block its reader forever."""
    return stat.S_ISREG(path.lstat().st_mode)
