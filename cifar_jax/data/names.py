"""The names of sets, and the folder of their data."""

import difflib
import os
import re
from pathlib import Path

from cifar_jax.data import tfds as tfds_lib
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


def check_name(name: str, data_dir: str | None = None) -> None:
    """Checks that a set of this name exists, without reading any data.

    Args:
      name: the set's name, as for `load_dataset`.
      data_dir: the TFDS data directory, as for `load_dataset`: it may hold a prepared set that TFDS
        does not know.

    Raises:
      UserError: there is no such set; the message suggests similar names.
    """
    well_formed = re.fullmatch(r"\w+(/[\w+-][\w.+-]*)?", name) is not None
    if name == "digits" or (well_formed and tfds_lib.find_prepared(name, data_root(data_dir))):
        return
    import tensorflow_datasets as tfds

    known = ["digits", *tfds.list_builders(with_community_datasets=False)]
    base = re.split("[/:]", name)[0]
    if well_formed and base in known and base != "digits":
        _check_builder_config(name)
        return
    near = difflib.get_close_matches(base, known, n=3)
    near.sort(key=lambda other: other not in _EXAMPLES)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    raise UserError(
        f"unknown dataset {name!r}: {hint}Give NAME or NAME/CONFIG of a TFDS set of labelled "
        f"images of one size, for instance {', '.join(_EXAMPLES)}"
    )


def _check_builder_config(name: str) -> None:
    """Checks the part of a TFDS name after the slash: a config of the set, or a version."""
    import tensorflow_datasets as tfds

    base, _, config = name.partition("/")
    if not config or re.fullmatch(r"[\d.*]+", config):
        return
    try:
        known = list(tfds.builder_cls(base).builder_configs)
    except Exception:  # needs TensorFlow, as preparing the set does anyway
        return
    if config not in known:
        hint = f"one of {', '.join(known)}" if known else "no config: leave it out"
        raise UserError(f"unknown dataset {name!r}: {base} takes {hint}")
