"""Saves and restores trees of arrays; the only file that uses Orbax."""

import json
import logging
import os
import re
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore

from cifar_jax.errors import UserError
from cifar_jax.text import first_line


def save_arrays(folder: Path, tree: Any) -> None:
    """Writes a tree of NumPy arrays.

    Raises:
      RuntimeError: an array is missing after the save. Orbax raises more: see `reason`.
    """
    with _checkpointer() as writer:
        writer.save(folder, args=ocp.args.PyTreeSave(tree))
    if missing := _differences(_read_shapes(folder), _shapes(tree)):
        raise RuntimeError(f"after the save, {missing[0]}")


def restore_arrays(folder: Path, abstract_tree: Any) -> Any:
    """Returns a saved tree of arrays.

    Args:
      folder: as for `save_arrays`.
      abstract_tree: the `jax.ShapeDtypeStruct`s, with shardings, of the saved tree or of a part of
        it; only that part is read.

    Raises:
      UserError: the folder holds arrays of other names, types or shapes.
    """
    with _checkpointer() as reader:
        saved = _shapes(reader.metadata(folder).item_metadata)
        if differences := _differences(saved, _shapes(abstract_tree)):
            words = "; ".join(differences[:3])
            more = f" (and {len(differences) - 3} more)" if len(differences) > 3 else ""
            raise UserError(
                f"the checkpoint {folder.parent} belongs to another model: in it, {words}{more}"
            )
        args = ocp.args.PyTreeRestore(
            abstract_tree,
            restore_args=ocp.checkpoint_utils.construct_restore_args(abstract_tree),
            partial_restore=True,
        )
        return reader.restore(folder, args=args)


def reason(error: BaseException) -> str:
    """Returns why a save failed, in one line: the system's message if there is one."""
    # TensorStore's message holds the system's error number, among much else.
    number = getattr(error, "errno", None)
    if match := re.search(r"os_error_code='(\d+)'", str(error)):
        number = int(match[1])
    return os.strerror(number) if number else first_line(error)[:200]


def quiet_orbax() -> None:
    """Silences Orbax's log, and what its threads print after a failed save.

    It logs its settings as warnings, and failed saves at length; errors that matter are raised.
    """
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    if getattr(sys.unraisablehook, "__name__", "") != _ignore_closed_loops.__name__:
        global _earlier_hook
        _earlier_hook = sys.unraisablehook
        sys.unraisablehook = _ignore_closed_loops


_earlier_hook: Any = sys.unraisablehook


def _ignore_closed_loops(unraisable: Any) -> None:
    # TensorStore's threads may still write when the save, and its event loop, have ended.
    error = unraisable.exc_value
    if not (isinstance(error, RuntimeError) and str(error) == "Event loop is closed"):
        _earlier_hook(unraisable)


def _checkpointer() -> ocp.Checkpointer:
    """Returns Orbax's reader and writer; it does not wait for other processes of the job."""
    options, own = ocp.options.MultiprocessingOptions(), jax.process_index()
    if jax.process_count() > 1:
        options = ocp.options.MultiprocessingOptions(own, {own}, f"process_{own}")
    handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=options)
    return ocp.Checkpointer(handler, multiprocessing_options=options)


def _shapes(tree: Any) -> dict[str, str]:
    """Returns the type and shape of each leaf by its name, such as "params.head.bias"."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): _describe(leaf.dtype, leaf.shape)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _read_shapes(folder: Path) -> dict[str, str]:
    """Returns the type and shape of each array whose values are in a folder.

    Read by TensorStore, on which Orbax is built: each time that Orbax lists a folder it leaks 4 kB
    of memory per array (TensorStore 0.1.86, `Spec.to_json`).
    """
    base = {"driver": "file", "path": f"{folder}/"}
    store = tensorstore.KvStore.open({"driver": "ocdbt", "base": base}).result()
    keys = [key.decode() for key in store.list().result()]
    found = {}
    for name in {key.rpartition("/")[0] for key in keys if not key.endswith("/.zarray")}:
        about = json.loads(store.read(f"{name}/.zarray").result().value)
        found[name] = _describe(about["dtype"], about["shape"])
    return found


def _describe(dtype: Any, shape: Any) -> str:
    return f"{np.dtype(dtype).name} {list(shape)}"


def _differences(have: dict[str, str], want: dict[str, str]) -> list[str]:
    """Returns a phrase for each wanted array that is missing or has another type or shape."""
    words = {name: f"{have[name]} instead of {want[name]}" for name in have.keys() & want.keys()}
    return [
        f"{name.replace('.', '/')} is {words.get(name, 'missing')}"
        for name in want
        if have.get(name) != want[name]
    ]
