"""The code of the user's own that a run was trained with: its text is kept in the run's folder.

WORKDIR/code has a copy of each file, called after the field of the config that names it, and
sources.json with the file's path and SHA-256. A copy is run only when asked for: a workdir may come
from anyone, and evaluating it must not run what it holds.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from cifar_jax import files
from cifar_jax.config import custom
from cifar_jax.errors import UserError

FOLDER, _RECORD = "code", "sources.json"


def keep_sources(config: ConfigDict, workdir: Path) -> None:
    """Writes the text, the path and the hash of each file that a config's references name."""
    record = {}
    for field, reference in custom.find_references(config).items():
        path = custom.find_source(field, reference)
        text = path.read_bytes()
        record[field] = {"path": str(path), "sha256": hashlib.sha256(text).hexdigest()}
        (workdir / FOLDER).mkdir(exist_ok=True)
        with files.replacing(_copy_of(workdir, field)) as stream:
            stream.write(text)
    if record:
        files.write_json(workdir / FOLDER / _RECORD, record)


def find_changes(config: ConfigDict, workdir: Path) -> list[str]:
    """Returns a line for each file that has changed since the run was trained with it."""
    references = custom.find_references(config)
    kept = read_record(workdir) if references else {}
    return [
        f"{custom.find_source(field, reference)} has changed since this run began; the text that "
        f"it had is in {_copy_of(workdir, field)}"
        for field, reference in references.items()
        if field in kept and custom.digest_source(field, reference) != kept[field].get("sha256")
    ]


def use_sources(
    config: ConfigDict, workdir: Path, stored_code: bool = False, record: Any = None
) -> ConfigDict:
    """Returns a run's config with its model's reference leading to the code it was trained with.

    Arguments and errors are those of `find_code`.
    """
    places = find_code(config, workdir, stored_code, record, ["model.name"])
    if not places:
        return config
    found = ConfigDict(config.to_dict())
    found.update_from_flattened_dict(places)
    return found.lock()


def find_code(
    config: ConfigDict,
    workdir: Path,
    stored_code: bool = False,
    record: Any = None,
    fields: Sequence[str] = (),
) -> dict[str, str]:
    """Returns the references in a run's config, leading to the code it was trained with.

    Args:
      config: of the run.
      workdir: its folder, or a file of weights that was exported from it.
      stored_code: whether to run the copy in the workdir. Otherwise the file must be the same as at
        the training, where the reference says or where it was then, and not in the workdir.
      record: what `read_record` returned for the run; None: it is read from the workdir.
      fields: the fields to look at, whose copies may be run; none: all fields, but no copies.

    Raises:
      UserError: there is no such code.
    """
    references = custom.find_references(config)
    wanted = {x: y for x, y in references.items() if not fields or x in fields}
    if not wanted:
        return {}
    kept = read_record(workdir) if record is None else _check(record, workdir)
    return {
        field: _find_place(field, reference, workdir, stored_code, kept.get(field, {}), fields)
        for field, reference in wanted.items()
    }


def _find_place(
    field: str,
    reference: str,
    workdir: Path,
    stored_code: bool,
    source: dict[str, str],
    may_be_stored: Sequence[str],
) -> str:
    copy, name = _copy_of(workdir, field), reference.rpartition(":")[2]
    places = [reference, *([f"{source['path']}:{name}"] if "path" in source else [])]
    if stored_code:
        places = [f"{copy}:{name}"]
    for place in places:
        try:
            inside = custom.find_origin(place).resolve().is_relative_to(workdir.resolve())
            if inside == stored_code and custom.digest_source(field, place) == source.get("sha256"):
                return place
        except UserError:
            continue
    if stored_code:
        raise UserError(f"{copy} is missing or is not what the run was trained with")
    what, advice = "model" if field == "model.name" else field, ""
    if copy.exists() and field in may_be_stored:
        advice = (
            f"; to run the copy that is kept in {copy}, look at it first, then give --stored_code, "
            "or stored_code=True in Python"
        )
    if Path(source.get("path", "")).is_file() or Path(reference.rpartition(":")[0]).is_file():
        raise UserError(f"{reference} is not what {workdir} was trained with: undo that{advice}")
    raise UserError(f"{reference}, the {what} of {workdir}, is not here: start where it is{advice}")


def _copy_of(workdir: Path, field: str) -> Path:
    return workdir.absolute() / FOLDER / f"{field}.py"


def read_record(workdir: Path) -> dict[str, dict[str, str]]:
    """Returns the path and the SHA-256 of each file that a run keeps, by the config's fields."""
    path = workdir / FOLDER / _RECORD
    return _check(files.read_json(path, missing={}), path)


def _check(record: Any, place: Path) -> dict[str, dict[str, str]]:
    for source in record.values() if isinstance(record, dict) else [record]:
        if not isinstance(source, dict) or set(map(type, source.values())) != {str}:
            raise UserError(f"{place} is damaged: it does not hold the path and SHA-256 of code")
    return record
