"""What a checkpoint's folder must hold: a list of its files with their SHA-256, checked before use.

Nothing outside the folder is ever opened: a link, or a name that is not one of the files found in
it, counts as damage. Imports no JAX.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from cifar_jax import workdir as workdir_lib
from cifar_jax.errors import UserError

FORMAT = 1
_MANIFEST = "manifest.json"


def write(folder: Path) -> None:
    """Writes the manifest of a folder, last, and syncs all of it to the disk."""
    files, folders = _paths(folder)
    digests = {}
    for name, path in files.items():
        with path.open("rb") as file:
            digests[name] = hashlib.file_digest(file, "sha256").hexdigest()
            os.fsync(file.fileno())
    version = workdir_lib.versions().get("cifar_jax")
    content = {"format": FORMAT, "cifar_jax": version, "files": digests}
    workdir_lib.write_json(folder / _MANIFEST, {"sha256": digest(content), "content": content})
    for path in folders:
        workdir_lib.sync_folder(path)


def find_damage(folder: Path) -> str:
    """Returns what is wrong with a folder's files, "" if nothing is.

    Raises:
      UserError: the folder is sound but of a newer format than this program knows.
    """
    try:
        if folder.is_symlink():
            return "it is a link"
        files, _ = _paths(folder)
        if odd := [path for path in files.values() if not _is_plain(path)]:
            kind = "a link" if odd[0].is_symlink() else "no plain file"
            return f"{odd[0].relative_to(folder)} is {kind}"
        manifest = json.loads((folder / _MANIFEST).read_bytes())
        content = manifest["content"]
        if manifest["sha256"] != digest(content):
            return f"{_MANIFEST} has changed"
        if content["format"] > FORMAT:
            raise UserError(
                f"{folder} has format {content['format']}, this version of cifar_jax reads up to "
                f"{FORMAT}: use version {content.get('cifar_jax')}, which wrote it"
            )
        expected = content["files"]
        if missing := sorted(expected.keys() - files.keys()):
            return f"{missing[0]} is missing"
        if extra := sorted(files.keys() - expected.keys()):
            return f"{extra[0]} does not belong to it"
        for name, path in files.items():
            with path.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != expected[name]:
                    return f"{name} has changed"
    except FileNotFoundError:
        return f"{_MANIFEST} is missing"
    except OSError as error:
        return f"it cannot be read ({error.strerror})"
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return f"{_MANIFEST} cannot be read ({type(error).__name__})"
    return ""


def _paths(folder: Path) -> tuple[dict[str, Path], list[Path]]:
    """Returns everything but a plain manifest by name, and the folders, itself first."""
    files, folders = {}, [folder]
    for path in sorted(folder.rglob("*")):
        if path.is_dir() and not path.is_symlink():
            folders.append(path)
        elif path != folder / _MANIFEST or not _is_plain(path):
            files[path.relative_to(folder).as_posix()] = path
    return files, folders


def _is_plain(path: Path) -> bool:
    """Whether it is a file, and no link or pipe, at which a reader would wait for ever."""
    return path.is_file() and not path.is_symlink()


def digest(values: Any) -> str:
    """Returns the SHA-256 of JSON values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
