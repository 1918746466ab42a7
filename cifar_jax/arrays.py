"""Which arrays a tree or a saved checkpoint holds: names, types, shapes."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tensorstore


def of_tree(tree: Any) -> dict[str, str]:
    """Returns type and shape, in words, of each leaf by its name, such as "params.head.bias"."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): _describe(leaf.dtype, leaf.shape)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def of_folder(folder: Path) -> dict[str, str]:
    """Returns the same of the arrays in a folder of Orbax's, where their values lie there too.

    By TensorStore, beneath Orbax: each time that Orbax tells what a folder holds, 4 kB of memory
    are lost for each array (TensorStore 0.1.86, `Spec.to_json`).
    """
    base = {"driver": "file", "path": f"{folder}/"}
    store = tensorstore.KvStore.open({"driver": "ocdbt", "base": base}).result()
    keys = [key.decode() for key in store.list().result()]
    found = {}
    for name in {key.rpartition("/")[0] for key in keys if not key.endswith("/.zarray")}:
        about = json.loads(store.read(f"{name}/.zarray").result().value)
        found[name] = _describe(about["dtype"], about["shape"])
    return found


def differences(have: dict[str, str], want: dict[str, str]) -> list[str]:
    """Returns a phrase for each array that is wanted and not had like that."""
    differing = [name for name in want if have.get(name) != want[name]]
    return [
        f"{name.replace('.', '/')} is {have.get(name, 'not')} there and {want[name]} here"
        for name in differing
    ]


def _describe(dtype: Any, shape: Any) -> str:
    return f"{np.dtype(dtype).name} {list(shape)}"
