"""Overrides of a config on the command line: `None` unsets a field; a model's options are known."""

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags
from ml_collections.config_dict import placeholder
from ml_collections.config_flags.config_flags import ConfigFileFlagParser

from cifar_jax.config import custom, fields, shipped
from cifar_jax.errors import UserError
from cifar_jax.text import printable

_KINDS: dict[type, tuple[flags.ArgumentParser, str]] = {
    float: (flags.FloatParser(), "a number"),
    bool: (flags.BooleanParser(), "True or False"),
    int: (flags.IntegerParser(), "a whole number"),
    str: (flags.ArgumentParser(), "a text"),
}


class _OrNone(flags.ArgumentParser):
    """Parses "None" as None, and everything else as another parser does."""

    def __init__(self, parser: flags.ArgumentParser, words: str):
        self._parser, self._words = parser, words

    def parse(self, argument: Any) -> Any:
        try:
            return None if argument == "None" else self._parser.parse(argument)
        except (TypeError, ValueError) as error:
            raise ValueError(f"the value must be {self._words}, or None to unset it") from error

    def flag_type(self) -> str:
        return self._parser.flag_type()


class _ConfigParser(ConfigFileFlagParser):
    """Loads a config file, and adds the options of its model that the command line sets."""

    def __init__(self, name: str, argv: Sequence[str]):
        super().__init__(name)
        self._argv = argv

    def parse(self, path: str) -> Any:
        try:
            config = super().parse(path)
        except TypeError as error:
            shipped.check_variant(path, error)
            raise
        if isinstance(config, ConfigDict):
            if isinstance(config.get("model"), ConfigDict):
                folder = Path(path.partition(":")[0]).parent
                custom.locate(config, folder)
                add_model_options(config, self._argv, folder)
            check_names(config, self._argv)
        return config


def extend(flag: flags.Flag, argv: Sequence[str]) -> None:
    """Extends what a flag made by `config_flags.DEFINE_config_file` understands.

    Args:
      flag: of the config.
      argv: the command line, which may be filled in later.
    """
    flag.parser = _ConfigParser(flag.name, argv)
    for kind, (parser, words) in _KINDS.items():
        config_flags.register_flag_parser_for_type(kind, _OrNone(parser, words))


def read_overrides(argv: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yields the field and the value of each override on a command line."""
    for argument, following in zip(argv, [*argv[1:], ""], strict=True):
        if found := re.fullmatch(r"--?(?:no)?config\.([^=]*)(?:=(.*))?", argument, re.DOTALL):
            yield found[1], following if found[2] is None else found[2]


def check_names(config: ConfigDict, argv: Sequence[str]) -> None:
    """Checks that the overrides on a command line are for fields that a config has.

    Raises:
      UserError: one is not; the message names the field that may have been meant.
    """
    known = dict(fields.flatten(config))
    for name, value in read_overrides(argv):
        if name not in known:
            _check_group(config, printable(name), value, known)


def _check_group(config: ConfigDict, name: str, value: str, known: Mapping[str, Any]) -> None:
    """Raises UserError unless a name is that of a group of fields that may get such a value."""
    flag, place = f"--config.{name}", name.rstrip(".").partition("[")[0]
    group: Any = config
    for part in filter(None, place.split(".")):
        group = group.get(part) if isinstance(group, ConfigDict) else None
    if place in known and "[" in name:
        whole = f'--config.{place}="{known[place]}"'
        raise UserError(f"{flag}: single values cannot be set, but all together: {whole}")
    if not isinstance(group, ConfigDict) or "[" in name:
        near = [place] if place in known else list(known)
        hint = fields.suggest_field(place, near, "--config.")
        if place.startswith("optimizer.groups."):
            hint = "; groups are made in a config file, by get_group of configs/default.py"
        raise UserError(f"{flag}: there is no such field{hint}")
    inside = f"it has {', '.join(group)}" if group else "it is empty"
    if name != place or not name:
        raise UserError(f"{flag} ends in a dot: add the name of a field; {inside}")
    is_dict = value.lstrip().startswith("{")
    if is_dict and place in ("model", "optimizer.groups"):
        return
    if "name" in group and value != "None" and not is_dict:
        inside = f"did you mean {flag}.name={printable(value)}?"
    elif place == "optimizer.groups":
        inside = f"{flag}={{}} removes all of them"
    raise UserError(f"{flag} is a group of fields, which are set one by one: {inside}")


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
    for field, value in read_overrides(argv):
        if found := re.fullmatch(r"model\.(\w+)", field):
            given[found[1]] = value
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
