"""The names of sets, and the folder of their data."""

import difflib
import json
import os
import re
from pathlib import Path

from cifar_jax.data.class_folders import FOLDER, find_tree
from cifar_jax.errors import UserError

_EXAMPLES = ("cifar10", "cifar100", "mnist", "fashion_mnist", "svhn_cropped", "digits")


def data_root(data_dir: str | None = None) -> Path:
    """Returns the TFDS data directory: `data_dir`, `$TFDS_DATA_DIR` or `~/tensorflow_datasets`.

    Raises:
      UserError: it is not a local folder.
    """
    chosen = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    try:
        root = Path(chosen).expanduser().absolute()
        usable = "://" not in chosen and (root.is_dir() or not root.exists())
    except (RuntimeError, OSError) as error:  # no home; no permission
        raise UserError(f"the data directory {chosen} cannot be used: {error}") from error
    if not usable:
        raise UserError(f"the data directory {chosen} is not a local folder")
    return root


def split_name(name: str) -> tuple[str, str, str] | None:
    """Returns the base, config and version ("" where there is none) of "BASE/CONFIG:VERSION".

    Also of "BASE/VERSION", which is how TFDS names the folder; None for anything else.
    """
    version = r"(?:\d+|\*)(?:\.(?:\d+|\*)){2}"
    found = re.fullmatch(rf"(\w+)(?:/([\w+-][\w.+-]*))??(?:[:/]({version}))?", name)
    return (found[1], found[2] or "", found[3] or "") if found else None


def join_name(base: str, config: str = "", version: str = "") -> str:
    """Returns the name of a set as TFDS writes it, from the parts that `split_name` returns."""
    return base + (f"/{config}" if config else "") + (f":{version}" if version else "")


def find_prepared(name: str, root: Path) -> Path | None:
    """Returns the newest prepared version of a set in a TFDS data directory, or None.

    Args:
      name: the set's name, as for `load_dataset`; without a config, TFDS's default one.
      root: the TFDS data directory.
    """
    base, config, wanted = split_name(name) or ("", "", "")
    folder = root / base / config
    if not config:
        try:  # TFDS writes the name of a set's default config here
            metadata = json.loads((folder / ".config" / "metadata.json").read_text())
            folder = folder / metadata["default_config_name"]
        except (OSError, ValueError, KeyError):
            pass
    found = []
    for file in folder.glob("*/dataset_info.json") if base else ():
        version = re.fullmatch(r"(\d+)\.(\d+)\.(\d+)", file.parent.name)
        if not version or not _matches(file.parent.name, wanted):
            continue
        if file.is_file() and (file.parent / "features.json").is_file():
            found.append((tuple(map(int, version.groups())), file.parent))
    return max(found)[1] if found else None


def _matches(version: str, wanted: str) -> bool:
    """Whether a version is the wanted one, in which "*" stands for any number."""
    pairs = zip(version.split("."), wanted.split("."), strict=False)
    return not wanted or all(part in ("*", number) for number, part in pairs)


def check_name(name: str, data_dir: str | None = None) -> None:
    """Checks that a set of this name exists, without reading any data.

    Args:
      name: the set's name, as for `load_dataset`.
      data_dir: as for `load_dataset`: a TFDS data directory may hold a prepared set that TFDS does
        not know.

    Raises:
      UserError: there is no such set; the message suggests similar names.
    """
    if name == FOLDER:
        find_tree(data_dir)
        return
    parts = split_name(name)
    if name == "digits" or (parts and find_prepared(name, data_root(data_dir))):
        return
    import tensorflow_datasets as tfds

    known = ["digits", FOLDER, *tfds.list_builders(with_community_datasets=False)]
    base = re.split("[/:]", name)[0]
    if base in ("digits", FOLDER):
        raise UserError(
            f"unknown dataset {name!r}: {base} has no configs or versions, leave it out"
        )
    if parts and base in known:
        _check_builder(name, *parts)
        return
    given = re.fullmatch(rf"({re.escape(base)}(?:/[a-z_]\w*)?)[:/][\d.*]*", name)
    place = given[1] if given else join_name(*parts[:2]) if parts else base
    if other := find_prepared(place, data_root(data_dir)):
        words = f"there is version {other.name} in {other.parent}"
        raise UserError(f"unknown dataset {name!r}: {words}: write {place}:{other.name}")
    if given and base in known:
        _check_builder(name, *(split_name(place) or (base, "", ""))[:2], "none")
    lower = base.lower()
    near = [lower] if lower in known else difflib.get_close_matches(lower, known, n=3)
    near.sort(key=lambda other: other not in _EXAMPLES)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    raise UserError(
        f"unknown dataset {name!r}: {hint}Give NAME, NAME/CONFIG or NAME:1.2.3 of a TFDS set of "
        f"labelled images of one size, for instance {', '.join(_EXAMPLES)}, or {FOLDER!r} for "
        "your own pictures (in data.path; with --dataset, in --data_dir)"
    )


def _check_builder(name: str, base: str, config: str, version: str) -> None:
    """Checks the config and the version in the name of one of TFDS's own sets."""
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder_cls(base)
        configs = dict(builder.builder_configs)
        chosen = configs.get(config, next(iter(configs.values()), None))
        own = [chosen.version, *chosen.supported_versions] if chosen else []
        versions = [str(x) for x in [*own, builder.VERSION, *builder.SUPPORTED_VERSIONS] if x]
    except Exception:  # needs TensorFlow, as preparing the set does anyway
        return
    if config and config not in configs:
        hint = f"one of {', '.join(configs)}" if configs else "no config: leave it out"
        raise UserError(f"unknown dataset {name!r}: {base} takes {hint}")
    if not any(_matches(known, version) for known in versions):
        raise UserError(f"unknown dataset {name!r}: {base} has version {', '.join(versions)}")
