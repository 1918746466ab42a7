"""A trained model in one safetensors file: its weights, and what is needed to apply them.

The file's metadata hold "format", each part of the description as JSON ("config", "data", "step",
"seed", and what else is known), and "sha256", over the description and all arrays. Some models come
with the package: `pretrained:NAME` names them wherever a run's folder can be named. Imports no JAX.
"""

import contextlib
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from cifar_jax import files
from cifar_jax.config.fields import flatten
from cifar_jax.errors import UserError
from cifar_jax.runs import workdir as workdir_lib

SHIPPED = Path(__file__).parents[1] / "pretrained"
SUFFIX, PREFIX = ".safetensors", "pretrained:"
FORMAT = "cifar_jax-1"


def shipped_names() -> list[str]:
    """Returns the names of the models that come with the package."""
    return sorted(path.stem for path in SHIPPED.glob(f"*{SUFFIX}"))


def find_file(workdir: str | Path) -> Path | None:
    """Returns the file of weights that a workdir names; None if it names a run's folder.

    Raises:
      UserError: no model of that name comes with the package.
    """
    text = str(workdir)
    if text.startswith(PREFIX):
        name = text.removeprefix(PREFIX)
        if name not in shipped_names():
            known = ", ".join(PREFIX + name for name in shipped_names())
            raise UserError(f"{text}: no such model comes with this package: choose {known}")
        return SHIPPED / f"{name}{SUFFIX}"
    return Path(text) if text.endswith(SUFFIX) and not Path(text).is_dir() else None


def output_folder_of(workdir: Path, *others: Path) -> Path:
    """Returns the folder for what is made of a model: of a run, its own."""
    if others:
        return Path("ensemble")
    file = find_file(workdir)
    if file is None:
        return workdir
    return Path("runs", "pretrained", file.stem) if file.parent == SHIPPED else file.parent


def list_runs(workdir: str | Path | Sequence[str | Path]) -> list[Path]:
    """Returns the workdirs, of one run or several, after a check that each holds a run.

    Raises:
      UserError: one does not, or its config cannot be read.
    """
    workdirs = [workdir] if isinstance(workdir, str | Path) else workdir
    paths = [Path(each) for each in workdirs]
    for path in paths:
        read_config(path)
    return paths


def read_config(workdir: Path) -> dict[str, Any]:
    """Returns the config of a run or of a file of weights as JSON values.

    Raises:
      UserError: there is no such run or file, or it cannot be read.
    """
    if file := find_file(workdir):
        return read_weights(file)[1]["config"]
    return files.read_json(workdir / workdir_lib.CONFIG)


def read_data(workdir: Path) -> dict[str, Any]:
    """Returns what a run's last checkpoint or a file of weights says of its data.

    That is "class_names", "image_shape" [height, width, channels], "mean", "std" and others.

    Raises:
      UserError: there is no such run or file, it has no checkpoint yet, or it cannot be read.
    """
    if file := find_file(workdir):
        return read_weights(file)[1]["data"]
    steps = workdir_lib.list_steps(workdir)
    if not steps:
        raise UserError(f"{workdir} has no checkpoint yet")
    path = workdir / "checkpoints" / str(steps[-1]) / "meta.json"
    data = files.read_json(path).get("data")
    if not isinstance(data, dict):
        raise UserError(f"{path} is damaged: it does not describe the data")
    return data


def evaluated_split(workdir: Path) -> str:
    """Returns the split that a run scores while it trains: "validation" or "test".

    Raises:
      UserError: there is no run, or its config cannot be read.
    """
    with contextlib.suppress(UserError):  # without a checkpoint, the data are not described yet
        if "validation" in read_data(workdir).get("num_images", ()):
            return "validation"
    fields = dict(flatten(read_config(workdir)))
    return "validation" if fields.get("data.validation_examples") else "test"


def write_weights(path: Path, variables: Mapping[str, Any], about: Mapping[str, Any]) -> None:
    """Writes a file of weights, whole or not at all.

    Args:
      path: the file.
      variables: nested dicts of arrays, float32 or float16.
      about: JSON values, among them "config", "data" (class names, mean, std, image shape), "step"
        and "seed".
    """
    arrays = {
        name.replace(".", "/"): np.ascontiguousarray(leaf) for name, leaf in flatten(variables)
    }
    metadata = {name: json.dumps(value) for name, value in about.items()}
    metadata |= {"format": FORMAT, "sha256": _sum(arrays, about)}
    with files.replacing(path) as stream:
        stream.write(safetensors.numpy.save(arrays, metadata))


def read_weights(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the variables of a file of weights, float32, and its description.

    Raises:
      UserError: the file cannot be read, is damaged, or was written by something else.
    """
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = dict(file.metadata() or {})
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    except (safetensors.SafetensorError, TypeError, ValueError) as error:
        raise UserError(f"{path} is damaged: {error}") from None
    expected, kind = metadata.pop("sha256", ""), metadata.pop("format", "")
    if kind != FORMAT:
        raise UserError(
            f"{path} has the format {kind!r}, not {FORMAT!r}: it was not written by this version "
            "of --mode=export"
        )
    try:
        about = {name: json.loads(value) for name, value in metadata.items()}
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}") from None
    if _sum(arrays, about) != expected:
        raise UserError(f"{path} is damaged: its SHA-256 is not the one that it states")
    variables: dict[str, Any] = {}
    for name, array in arrays.items():
        *parts, leaf = name.split("/")
        place = variables
        for part in parts:
            place = place.setdefault(part, {})
        place[leaf] = array.astype(np.float32)
    return variables, about


def _sum(arrays: Mapping[str, np.ndarray], about: Mapping[str, Any]) -> str:
    shown = {
        name: [x.dtype.name, list(x.shape), hashlib.sha256(x.tobytes()).hexdigest()]
        for name, x in arrays.items()
    }
    return files.digest({"about": dict(about), "arrays": shown})
