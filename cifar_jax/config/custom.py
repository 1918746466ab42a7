"""Code of the user's own that a config names: a model, an optimizer, an augmentation.

A reference is "FILE.py:NAME", with the file's path from the current directory, or
"PACKAGE.MODULE:NAME".
"""

import difflib
import hashlib
import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from ml_collections import ConfigDict

from cifar_jax.config.fields import flatten
from cifar_jax.errors import UserError
from cifar_jax.text import first_line

# The fields that may hold a reference.
_FIELDS = re.compile(r"model\.name|augment\.custom|optimizer\.(groups\..+\.)?name")

# The modules that were run, by the file and its text.
_modules: dict[tuple[Path, str], ModuleType] = {}


def is_reference(name: Any) -> bool:
    """Whether a value names code of the user's own."""
    return isinstance(name, str) and ":" in name


def shorten(value: Any) -> Any:
    """Returns a reference to a file without its folder, and any other value as it is."""
    place, _, name = value.rpartition(":") if isinstance(value, str) else ("", "", "")
    return f"{Path(place).name}:{name}" if place.endswith(".py") else value


def find_references(config: Mapping[str, Any] | ConfigDict) -> dict[str, str]:
    """Returns the references in a config, by the dotted names of their fields."""
    return {
        field: value
        for field, value in flatten(config)
        if _FIELDS.fullmatch(field) and is_reference(value)
    }


def locate(config: ConfigDict, folder: Path) -> None:
    """Lets a config's references lead to what is beside its file, if it is not where we are.

    Args:
      config: is changed in place.
      folder: that of the config's file.
    """
    for field, reference in find_references(config).items():
        file, _, name = reference.rpartition(":")
        beside = folder.absolute() / file
        if not file.endswith(".py"):
            _add_path(folder)
        elif not Path(file).expanduser().is_file() and beside.is_file():
            config.update_from_flattened_dict({field: f"{beside}:{name}"})


def load_object(field: str, reference: str) -> Any:
    """Returns what a reference names; its module is run if it was not run before.

    Args:
      field: the config's field, for messages.
      reference: as described above.

    Raises:
      UserError: there is no such file, module or name, or the code fails.
    """
    place, _, name = reference.rpartition(":")
    module = _run_file(field, place) if place.endswith(".py") else _import(field, place)
    if hasattr(module, name):
        return getattr(module, name)
    known = [x for x, value in vars(module).items() if callable(value) and not x.startswith("_")]
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else f": it has {', '.join(known) or 'nothing'}"
    raise UserError(f"{field} is {reference!r}, but {place} has no {name!r}{hint}")


def find_origin(reference: str) -> Path:
    """Returns the file, or the package's or module's file, that is run first; nothing is run."""
    place = reference.rpartition(":")[0]
    if place.endswith(".py"):
        return Path(place).expanduser()
    _add_path(Path.cwd())
    try:
        spec = importlib.util.find_spec(place.partition(".")[0])
    except (ImportError, ValueError):
        spec = None
    return Path((spec and spec.origin) or "/")


def find_source(field: str, reference: str) -> Path:
    """Returns the path of the file that holds the code; raises as `load_object`."""
    place = reference.rpartition(":")[0]
    if place.endswith(".py"):
        return _find_file(field, place)
    found = load_object(field, reference)
    for code in (found, sys.modules[place]):
        try:
            path = inspect.getsourcefile(code)
        except TypeError:  # not a class, function or module
            continue
        if path and Path(path).is_file():
            return Path(path).absolute()
    raise UserError(f"{field} is {reference!r}, which has no file of source code to keep")


def digest_source(field: str, reference: str) -> str:
    """Returns the SHA-256 of the file that holds the code; raises as `load_object`."""
    return hashlib.sha256(find_source(field, reference).read_bytes()).hexdigest()


def _find_file(field: str, place: str) -> Path:
    path = Path(place).expanduser().absolute()
    if not path.is_file():
        raise UserError(
            f"{field} is in {place!r}, but there is no file {path}: write its path from here, or "
            "put it beside the config file"
        )
    return path


def _run_file(field: str, place: str) -> ModuleType:
    path = _find_file(field, place)
    text = path.read_bytes()
    digest = hashlib.sha256(text).hexdigest()
    if (path, digest) not in _modules:
        module = ModuleType(f"{path.stem}_{digest[:8]}")
        module.__file__ = str(path)
        sys.modules[module.__name__] = module  # where dataclasses look for it
        _add_path(path.parent)
        try:
            exec(compile(text, path, "exec"), module.__dict__)
        except (Exception, SystemExit) as error:
            del sys.modules[module.__name__]
            words = describe_error(error, str(path))
            raise UserError(f"{field} is in {place!r}, which {words}") from error
        _modules[path, digest] = module
    return _modules[path, digest]


def _import(field: str, place: str) -> ModuleType:
    if place == "__main__":
        raise UserError(f"{field} is in __main__, which a later start does not find: use a file")
    _add_path(Path.cwd())
    try:
        return importlib.import_module(place)
    except (Exception, SystemExit) as error:
        words = first_line(error)
        if isinstance(error, ModuleNotFoundError):
            words += "; install it, or start in its folder; a file is named as FILE.py:NAME"
        raise UserError(f"{field} is in {place!r}, which cannot be imported: {words}") from error


def _add_path(folder: Path) -> None:
    """Lets modules in a folder be imported if no others have their names."""
    if str(folder.absolute()) not in sys.path:
        sys.path.append(str(folder.absolute()))


def describe_error(error: BaseException, path: str) -> str:
    """Returns the words for an error in the user's file, with the line if it is known."""
    line, trace = getattr(error, "lineno", None), error.__traceback__
    while trace:
        if trace.tb_frame.f_code.co_filename == path:
            line = trace.tb_lineno
        trace = trace.tb_next
    return f"fails{f' in line {line}' if line else ''}: {first_line(error)}"
