"""Checkpoints: the only file that knows Orbax.

A checkpoint is WORKDIR/checkpoints/STEP. Orbax writes it in the background into a temporary
folder; before that gets its final name, a manifest with the SHA-256 of every file is put into it,
so a checkpoint that is not whole, or whose bits have changed since, is known before it is used.
"""

import hashlib
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from cifar_jax.errors import UserError

FORMAT = 1
_MANIFEST = "manifest.json"
_BEST = "eval_accuracy"

_log = logging.getLogger(__name__)


class Checkpoints:
    """The checkpoints of one workdir.

    Keeps the last two and, where the metrics given to `save` hold "eval_accuracy", the best.
    """

    def __init__(self, workdir: str | Path, writable: bool = True, best: bool = True):
        """Opens the folder.

        Args:
          workdir: of the run.
          writable: the folder is made if needed and cleared of unfinished saves.
          best: every save that comes with metrics takes part in the choice of the best.
        """
        self.folder = Path(workdir).absolute() / "checkpoints"
        self._set_aside = writable
        keep = [
            checkpoint_managers.LatestN(2),
            checkpoint_managers.BestN(
                get_metric_fn=_score, n=1, keep_checkpoints_without_metrics=False
            ),
        ]
        # Orbax reports its own settings and choices as warnings; what matters, it raises.
        logging.getLogger("absl").setLevel(logging.ERROR)
        self._manager = ocp.CheckpointManager(
            self.folder,
            item_handlers={
                "state": ocp.PyTreeCheckpointHandler(),
                "meta": ocp.JsonCheckpointHandler(),
            },
            options=ocp.CheckpointManagerOptions(
                best_fn=_score if best else None,
                preservation_policy=checkpoint_managers.AnyPreservationPolicy(keep),
                create=writable,
                read_only=not writable,
                cleanup_tmp_directories=writable,
                async_options=ocp.AsyncOptions(post_finalization_callback=self._seal),
            ),
        )

    def save(self, step: int, state: Any, meta: Mapping[str, Any], metrics: Any = None) -> None:
        """Begins to save in the background; waits for an earlier save to end.

        Args:
          step: steps made so far; a step that is there already is left as it is.
          state: a tree of arrays.
          meta: JSON values that say what the state belongs to.
          metrics: a mapping that may hold "eval_accuracy", by which the best is chosen.
        """
        self.wait()
        if step in self._manager.all_steps():
            return
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.PyTreeSave(state),
                meta=ocp.args.JsonSave({"format": FORMAT, **meta}),
            ),
            metrics=dict(metrics) if metrics else None,
        )

    def wait(self) -> None:
        """Returns when the save in the background, if any, has ended; raises its error."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits and gives the manager's threads back."""
        self._manager.close()

    def steps(self) -> list[int]:
        """Returns the steps that have a checkpoint, in rising order."""
        return sorted(self._manager.all_steps())

    def find(self, which: str = "last") -> int | None:
        """Returns the step of a sound checkpoint, None if there is none.

        A damaged one is passed over with a warning; for "last" the one before it is taken.

        Args:
          which: "last", "best" (on the validation split) or a step.

        Raises:
          UserError: the named checkpoint does not exist or is damaged.
        """
        if which == "last":
            for step in reversed(self.steps()):
                if not (damage := find_damage(self.folder / str(step))):
                    return step
                self._report(step, damage)
            return None
        steps = self.steps()
        if which == "best":
            step = self._manager.best_step() if steps else None
            if step is None or self._manager.metrics(step) is None:
                raise UserError(
                    f"{self.folder} has no best checkpoint: only a run with "
                    "data.validation_examples chooses one; use --checkpoint=last"
                )
        elif which.isdecimal() and int(which) in steps:
            step = int(which)
        else:
            raise UserError(
                f"{self.folder} has no checkpoint {which!r}; there are last"
                f"{''.join(f', {step}' for step in steps)}"
            )
        if damage := find_damage(self.folder / str(step)):
            raise UserError(f"the checkpoint {self.folder / str(step)} is damaged: {damage}")
        return step

    def restore(self, step: int, abstract_state: Any) -> Any:
        """Returns the saved tree.

        Args:
          step: one that `find` returned.
          abstract_state: the tree's `jax.ShapeDtypeStruct`s with shardings; what it does not hold
            is not read.

        Raises:
          UserError: the checkpoint is of another model, or of a newer format.
        """
        meta = self.meta(step)
        if meta["format"] != FORMAT:
            raise UserError(
                f"the checkpoint {self.folder / str(step)} has format {meta['format']}, this "
                f"version of cifar_jax reads {FORMAT}: use the version {meta.get('cifar_jax')}"
            )
        saved = self._manager.item_metadata(step)["state"]
        if differences := _compare(saved, abstract_state):
            more = f" (and {len(differences) - 3} more)" if len(differences) > 3 else ""
            raise UserError(
                f"the checkpoint {self.folder / str(step)} is of another model: "
                + "; ".join(differences[:3])
                + more
            )
        item = ocp.args.PyTreeRestore(
            abstract_state,
            restore_args=ocp.checkpoint_utils.construct_restore_args(abstract_state),
            partial_restore=True,
        )
        return self._manager.restore(step, args=ocp.args.Composite(state=item))["state"]

    def meta(self, step: int) -> dict[str, Any]:
        """Returns the JSON values that were saved with a step."""
        args = ocp.args.Composite(meta=ocp.args.JsonRestore())
        return self._manager.restore(step, args=args)["meta"]

    def _seal(self) -> None:
        """Writes the manifests of finished saves that still have their temporary names."""
        for folder in self.folder.glob("*.orbax-checkpoint-tmp*"):
            if (folder / "_CHECKPOINT_METADATA").exists() and not (folder / _MANIFEST).exists():
                write_manifest(folder)

    def _report(self, step: int, damage: str) -> None:
        folder = self.folder / str(step)
        if not self._set_aside:
            _log.warning("passing over the damaged checkpoint %s: %s", folder, damage)
            return
        aside = self.folder.with_name("damaged_checkpoints")
        aside.mkdir(exist_ok=True)
        target = next(p for n in range(10**6) if not (p := aside / f"{step}-{n}").exists())
        folder.rename(target)
        self._manager.reload()
        _log.warning("moved the damaged checkpoint %s to %s: %s", folder, target, damage)


def _score(metrics: Mapping[str, float]) -> float:
    return metrics[_BEST]


def _files(folder: Path) -> list[Path]:
    # Orbax writes these two, which hold times only, after the manifest.
    skipped = {folder / name for name in (_MANIFEST, "_CHECKPOINT_METADATA", "commit_success.txt")}
    return sorted(path for path in folder.rglob("*") if path.is_file() and path not in skipped)


def write_manifest(folder: Path) -> None:
    """Writes the SHA-256 of each file of a folder into it, last, and syncs all to the disk."""
    digests = {}
    for path in _files(folder):
        with path.open("rb") as file:
            digests[path.relative_to(folder).as_posix()] = hashlib.file_digest(
                file, "sha256"
            ).hexdigest()
            os.fsync(file.fileno())
    with (folder / _MANIFEST).open("w") as file:
        json.dump({"format": FORMAT, "sha256": digests}, file)
        file.flush()
        os.fsync(file.fileno())


def find_damage(folder: Path) -> str:
    """Returns what is wrong with a checkpoint's files, "" if nothing is."""
    try:
        manifest = json.loads((folder / _MANIFEST).read_text())["sha256"]
        names = {path.relative_to(folder).as_posix() for path in _files(folder)}
        if missing := sorted(manifest.keys() - names):
            return f"{missing[0]} is missing"
        if extra := sorted(names - manifest.keys()):
            return f"{extra[0]} does not belong to it"
        for name, expected in manifest.items():
            with (folder / name).open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != expected:
                    return f"{name} has changed"
    except FileNotFoundError:
        return f"{_MANIFEST} is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{_MANIFEST} cannot be read ({type(error).__name__})"
    return ""


def _compare(saved: Any, wanted: Any) -> list[str]:
    """Returns a phrase for each leaf of `wanted` that the saved tree does not have like that."""

    def leaves(tree: Any) -> dict[str, tuple[int, ...]]:
        paths = jax.tree_util.tree_leaves_with_path(tree)
        return {
            jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape)
            for path, leaf in paths
        }

    have, want = leaves(saved), leaves(wanted)
    return [
        f"{name} has the shape {have.get(name, 'none')} there and {want[name]} here"
        for name in want
        if have.get(name) != want[name]
    ]
