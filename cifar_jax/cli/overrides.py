"""Overrides of a config on the command line: `None` unsets a field; a model's options are known."""

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags
from ml_collections.config_dict import placeholder
from ml_collections.config_flags.config_flags import ConfigFileFlagParser

from cifar_jax.config import custom


class _OrNone(flags.ArgumentParser):
    """Parses "None" as None, and everything else as another parser does."""

    def __init__(self, parser: flags.ArgumentParser):
        self._parser = parser

    def parse(self, argument: Any) -> Any:
        return None if argument == "None" else self._parser.parse(argument)

    def flag_type(self) -> str:
        return self._parser.flag_type()


class _ConfigParser(ConfigFileFlagParser):
    """Loads a config file, and adds the options of its model that the command line sets."""

    def __init__(self, name: str, argv: Sequence[str]):
        super().__init__(name)
        self._argv = argv

    def parse(self, path: str) -> Any:
        config = super().parse(path)
        if isinstance(config, ConfigDict) and isinstance(config.get("model"), ConfigDict):
            folder = Path(path.partition(":")[0]).parent
            custom.locate(config, folder)
            add_model_options(config, self._argv, folder)
        return config


def extend(flag: flags.Flag, argv: Sequence[str]) -> None:
    """Extends what a flag made by `config_flags.DEFINE_config_file` understands.

    Args:
      flag: of the config.
      argv: the command line, which may be filled in later.
    """
    flag.parser = _ConfigParser(flag.name, argv)
    parsers: dict[type, flags.ArgumentParser] = {
        float: flags.FloatParser(),
        bool: flags.BooleanParser(),
        int: flags.IntegerParser(),
        str: flags.ArgumentParser(),
    }
    for kind, parser in parsers.items():
        config_flags.register_flag_parser_for_type(kind, _OrNone(parser))


def add_model_options(config: ConfigDict, argv: Sequence[str], folder: Path) -> None:
    """Gives `config.model` the options that a command line sets, with the defaults of its class.

    If the command line names another model, that one has none of the options in the config file.

    Args:
      config: what the config file returned.
      argv: the arguments, of which those for `config.model` are read.
      folder: that of the config's file, where code of the user's own may be.

    Raises:
      UserError: there is no such model, or it has no such option.
    """
    given: dict[str, str] = {}
    for argument, following in zip(argv, [*argv[1:], ""], strict=True):
        if found := re.fullmatch(r"--?(?:no)?config\.model\.(\w+)(?:=(.*))?", argument, re.DOTALL):
            given[found[1]] = following if found[2] is None else found[2]
    if not given:
        return
    from cifar_jax.models import registry  # imports JAX, which most command lines do not need yet

    chosen = ConfigDict({"model": {"name": given.pop("name", config.model.get("name"))}})
    custom.locate(chosen, folder)
    name = chosen.model.name
    defaults = {option: registry.find_default(name, option) for option in given}
    with config.unlocked():
        if name != config.model.get("name"):
            config.model = ConfigDict({"name": name})
        for option, default in defaults.items():
            if option not in config.model:
                unknown = default is None or default is dataclasses.MISSING
                config.model[option] = placeholder(object) if unknown else default
