"""Checkpoints: written in the background, whole or not at all, and verified before use.

A checkpoint is WORKDIR/checkpoints/STEP: `state`, the arrays as Orbax writes them; `meta.json`, the
config and data that they belong to; `manifest.json`, the SHA-256 of every file. It is written into
a temporary folder, which is renamed when it is complete.

A save that fails (a full disk) leaves the earlier checkpoints. It is reported in one line, the
training continues, and the next save tries again; a run whose last save failed ends with exit
code 1.
"""

import contextlib
import errno
import logging
import os
import shutil
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np

from cifar_jax import files
from cifar_jax.errors import DamageError, UserError
from cifar_jax.runs import manifest, storage
from cifar_jax.runs import workdir as workdir_lib
from cifar_jax.runs.meta import find_meta_fault

_META = "meta.json"
_SAVING, _DELETING = ".saving-", ".deleting-"
_ASIDE = "damaged_checkpoints"
_SLACK = 2**16  # bytes that a checkpoint takes besides its arrays

_log = logging.getLogger(__name__)


class Checkpoints:
    """The checkpoints of one workdir.

    Keeps the last two and, where the metrics given to `save` hold "eval_accuracy", the best.

    Attributes:
      folder: the folder of the checkpoints.
      failure: why the last save failed; "" if it did not.
    """

    def __init__(self, workdir: str | Path, writable: bool = True):
        """Opens the folder.

        Args:
          workdir: the run's folder.
          writable: whether to create the folder if needed, delete unfinished saves, and move
            damaged checkpoints to WORKDIR/damaged_checkpoints, each with a warning.

        Raises:
          UserError: a checkpoint has a newer format than this version reads.
        """
        self.folder = Path(workdir).resolve() / "checkpoints"  # TensorStore refuses ".."
        self.failure = ""
        self._writable = writable
        self._saving: Future[None] | None = None
        self._pool = ThreadPoolExecutor(1, "checkpoint")
        storage.quiet_orbax()
        if writable:
            workdir_lib.check_lease(self.folder.parent)
            self.folder.mkdir(exist_ok=True)
            self._clear()
            for step in self.steps():
                self._is_intact(step)

    def save(self, step: int, state: Any, meta: Mapping[str, Any], metrics: Any = None) -> None:
        """Copies the state and begins to save it in the background, after any earlier save.

        Args:
          step: the number of steps made so far; if it has a checkpoint, nothing is saved.
          state: a tree of arrays, the same on every device.
          meta: JSON values that say what the state belongs to.
          metrics: a mapping that may hold "eval_accuracy", by which the best is chosen.
        """
        self.wait()
        self.failure = ""
        if step in self.steps():
            return
        # A copy: on a CPU, views of the arrays would share memory that the next step overwrites.
        state = jax.tree.map(lambda leaf: np.array(leaf), state)
        meta = {**meta, "metrics": dict(metrics or {})}
        self._saving = self._pool.submit(self._write, step, state, meta)
        self._step = step

    def poll(self) -> None:
        """Warns about a save that has failed since; does not wait."""
        if self._saving and self._saving.done():
            self.wait()

    def wait(self) -> None:
        """Waits for the save in the background, if any; warns if it failed."""
        saving, self._saving = self._saving, None
        if not saving or not (error := saving.exception()):
            return
        self.failure = storage.reason(error)
        steps = self.steps()
        kept = f"that of step {steps[-1]} is kept" if steps else "there is no earlier one"
        _log.warning(
            "the checkpoint of step %d could not be saved, %s: %s", self._step, kept, self.failure
        )

    def close(self) -> None:
        """Waits for the last save and ends the thread; removes the folder if it is empty."""
        self.wait()
        self._pool.shutdown()
        if self._writable:
            with contextlib.suppress(OSError):  # it holds a checkpoint
                self.folder.rmdir()

    def steps(self) -> list[int]:
        """Returns the steps that have a checkpoint, in ascending order."""
        return workdir_lib.list_steps(self.folder.parent)

    def find(self, which: str = "last") -> int | None:
        """Returns the step of an intact checkpoint, None if there is none.

        For "last", damaged checkpoints are skipped with a warning.

        Args:
          which: "last", "best" (on the validation split) or a step.

        Raises:
          UserError: the named checkpoint does not exist, is damaged or has a newer format.
        """
        steps = self.steps()
        if which == "last":
            return next(filter(self._is_intact, reversed(steps)), None)
        wanted = [step for step in steps if which in ("best", str(step))]
        for step in wanted:
            if damage := self._find_damage(step):
                raise UserError(f"the checkpoint {self.folder / str(step)} is damaged: {damage}")
        if which == "best":
            if (best := self._best(wanted)) is None:
                words = "only runs with data.validation_examples have one; use --checkpoint=last"
                raise UserError(f"{self.folder} has no best checkpoint: {words}")
            return best
        if not wanted:
            known = "".join(f", {step}" for step in steps)
            raise UserError(f"{self.folder} has no checkpoint {which!r}; there are last{known}")
        return wanted[0]

    def restore(self, step: int, abstract_state: Any) -> Any:
        """Returns the saved tree.

        Args:
          step: one that `find` returned.
          abstract_state: the tree's `jax.ShapeDtypeStruct`s with shardings, or a part of it.

        Raises:
          UserError: the checkpoint belongs to another model.
        """
        return storage.restore_arrays(self.folder / str(step) / "state", abstract_state)

    def meta(self, step: int) -> dict[str, Any]:
        """Returns the JSON values that were saved with a step, and its "metrics"."""
        return files.read_json(self.folder / str(step) / _META)

    def _write(self, step: int, state: Any, meta: Mapping[str, Any]) -> None:
        workdir_lib.check_lease(self.folder.parent)
        self._clear()
        temporary = self.folder / f"{_SAVING}{step}-{os.getpid()}"
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(state)) + _SLACK
        try:
            # Orbax fails on a full disk too, but late, and prints a lot.
            if shutil.disk_usage(self.folder).free < size:
                raise OSError(errno.ENOSPC, "")
            temporary.mkdir()
            storage.save_arrays(temporary / "state", state)
            files.write_json(temporary / _META, meta)
            manifest.write_manifest(temporary)
            workdir_lib.check_lease(self.folder.parent)
            temporary.rename(self.folder / str(step))
            files.sync_folder(self.folder)
        except BaseException:
            # Not `_clear`: another process may have taken the folder over and be saving.
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        with contextlib.suppress(OSError, UserError):  # not deleted now, then after the next save
            self._delete_old(self.steps())

    def _delete_old(self, steps: list[int]) -> None:
        for old in set(steps[:-2]) - {self._best(steps)}:
            # Renamed first: if the process ends here, no half of a checkpoint is left.
            doomed = (self.folder / str(old)).rename(self.folder / f"{_DELETING}{old}")
            shutil.rmtree(doomed, ignore_errors=True)

    def _clear(self) -> None:
        for unfinished in (*self.folder.glob(f"{_SAVING}*"), *self.folder.glob(f"{_DELETING}*")):
            shutil.rmtree(unfinished, ignore_errors=True)
            with contextlib.suppress(OSError):  # it may be a file
                unfinished.unlink()

    def is_best(self, accuracy: float) -> bool:
        """Whether an accuracy on the validation split is higher than that of every checkpoint."""
        self.wait()
        try:
            return all(accuracy > scored for scored, _ in self._scored(self.steps()))
        except UserError:  # they cannot be read now: rather one checkpoint too many
            return True

    def _best(self, steps: list[int]) -> int | None:
        return max(self._scored(steps), default=(0, None))[1]

    def _scored(self, steps: list[int]) -> list[tuple[float, int]]:
        return manifest.read_scores({step: self.folder / str(step) / _META for step in steps})

    def _is_intact(self, step: int) -> bool:
        """Checks a checkpoint; warns of a damaged one, and moves it away if writable."""
        folder = self.folder / str(step)
        if not (damage := self._find_damage(step)):
            return True
        if self._writable:
            self.set_aside(step, damage)
        elif folder.exists():  # else a run that is still training has deleted it
            _log.warning("skipping the damaged checkpoint %s: %s", folder, damage)
        return False

    def set_aside(self, step: int, reason: str) -> None:
        """Moves a checkpoint that cannot be used to WORKDIR/damaged_checkpoints, with a warning."""
        workdir_lib.check_lease(self.folder.parent)
        folder = self.folder / str(step)
        (aside := self.folder.with_name(_ASIDE)).mkdir(exist_ok=True)
        target = next(p for n in range(10**6) if not (p := aside / f"{step}-{n}").exists())
        folder.rename(target)
        _log.warning("moved the damaged checkpoint %s to %s: %s", folder, target, reason)

    def check_left(self) -> None:
        """Raises UserError if the run had checkpoints, and none is left: it does not start over."""
        aside = self.folder.with_name(_ASIDE)
        if aside.is_dir() and any(aside.iterdir()) and not self.steps():
            raise UserError(
                f"no checkpoint of {self.folder.parent} can be used, all are in {aside}: choose "
                f"another --workdir, or delete {aside} to start this run from the beginning",
                exit_code=1,
            )

    def _find_damage(self, step: int) -> str:
        """Returns what is wrong with a checkpoint, "" if nothing is."""
        try:
            folder = self.folder / str(step)
            return manifest.find_damage(folder) or find_meta_fault(self.meta(step), step)
        except DamageError as error:
            return str(error)
