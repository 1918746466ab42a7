"""The values of flags, as the modes take them. Imports no JAX."""

from pathlib import Path
from typing import Any

from cifar_jax import files
from cifar_jax.cli import parse
from cifar_jax.cli.flags import FLAGS
from cifar_jax.errors import UserError

# What a split is scored with.
SPLIT = ("split", "checkpoint", "data_dir", "batch_size", "seed", "stored_code")


def read_flags(*names: str) -> dict[str, Any]:
    """Returns the values of flags by their names, without those that are not set."""
    return {name: FLAGS[name].value for name in names if FLAGS[name].value is not None}


def read_workdir() -> Path:
    """Returns the folder of a finished run.

    Raises:
      UserError: the flag is missing.
    """
    if FLAGS.workdir is None:
        raise UserError(f"--workdir is missing: the folder of the run to {FLAGS.mode}")
    return parse.run_path(FLAGS.workdir)


def read_workdirs() -> Path | list[Path]:
    """Returns the run that --workdir names, or those of an ensemble that --workdirs names.

    Raises:
      UserError: both flags are given, or none.
    """
    if not FLAGS.workdirs:
        return read_workdir()
    if FLAGS.workdir is not None:
        raise UserError("--workdir and --workdirs are both given: leave one out")
    from cifar_jax.reports import compare

    found = compare.find_workdirs(parse.split_paths(FLAGS.workdirs), check=compare.read_run_config)
    return [parse.run_path(str(path)) for path in found]


def read_output() -> Path | None:
    """Returns the folder to write to, if one is given."""
    if FLAGS.output == "":
        raise UserError("--output is empty: leave it out, or name a folder")
    return files.user_path(FLAGS.output) if FLAGS.output else None
