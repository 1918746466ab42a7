"""The config that the command line gives, and the folder that belongs to it. Imports no JAX."""

import contextlib
from pathlib import Path

from ml_collections import ConfigDict, config_flags

from cifar_jax.cli import parse
from cifar_jax.cli.flags import FLAGS
from cifar_jax.config import custom, shipped
from cifar_jax.errors import UserError


def config_folder(flag: str, ending: str = "") -> Path:
    """Returns the folder that a flag names; the default has the name of the config file.

    Raises:
      UserError: there is no config, or the flag is empty.
    """
    if not FLAGS["config"].present:
        raise UserError("--config is missing: for example --config=digits")
    if FLAGS[flag].value == "":
        raise UserError(f"--{flag} is empty: leave it out, or name a folder")
    name = parse.run_name(config_flags.get_config_filename(FLAGS["config"]))
    return parse.run_path(FLAGS[flag].value or f"runs/{name}{ending}").absolute()


def check_given(trains: bool = True) -> None:
    """Raises UserError if the config is wrong; lets it name code beside its file.

    Args:
      trains: as for `check.check_config`.
    """
    from cifar_jax.training import check

    file = config_flags.get_config_filename(FLAGS["config"]).partition(":")[0]
    if isinstance(FLAGS.config, ConfigDict):
        custom.locate(FLAGS.config, Path(file).parent)
    check.check_config(FLAGS.config, shipped.default_config(), trains)


def read_config_file() -> str | None:
    """Returns the text of the config file, if it can be read."""
    name = config_flags.get_config_filename(FLAGS["config"]).partition(":")[0]
    with contextlib.suppress(OSError, ValueError):
        return Path(name).read_text(encoding="utf-8")
    return None


def command_words() -> list[str]:
    """Returns the arguments of main.py that give the config and its overrides."""
    flag = FLAGS["config"]
    values = config_flags.get_override_values(flag)
    overrides = [f"--config.{name}={value}" for name, value in values.items()]
    return [f"--config={config_flags.get_config_filename(flag)}", *overrides]
