"""The trials of a search as Optuna stores them, and how processes share them out."""

import contextlib
import fcntl
import socket
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna import distributions, pruners, storages
from optuna.storages import journal
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from cifar_jax.config import stored
from cifar_jax.errors import UserError
from cifar_jax.runs import workdir as workdir_lib
from cifar_jax.studies import space as space_lib
from cifar_jax.studies.space import Parameter
from cifar_jax.text import first_line

DATABASE, TURN = "study.db", "turn.lock"
# The packages of the modules that SQLAlchemy looks for, where they have another name.
_PACKAGES = {"psycopg2": "psycopg2-binary", "MySQLdb": "mysqlclient"}
OBJECTIVES = {"accuracy": StudyDirection.MAXIMIZE, "loss": StudyDirection.MINIMIZE}
# Each is applied after the first evaluations, and once some trials are finished.
PRUNERS: dict[str, Callable[[], pruners.BasePruner]] = {
    "median": lambda: pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=2),
    "hyperband": pruners.HyperbandPruner,
    "none": pruners.NopPruner,
}


def open_study(
    folder: Path, storage: str | None, objective: str, pruner: str, facts: dict[str, Any]
) -> optuna.Study:
    """Returns a study, created if it is new.

    Args:
      folder: the study's folder, whose name is the study's.
      storage: an address that SQLAlchemy reads ("postgresql://..."), or the file of a journal;
        None: an SQLite file in the folder.
      objective: a key of `OBJECTIVES`.
      pruner: a key of `PRUNERS`.
      facts: JSON values by name, among them "config", which must be the same whenever the study is
        opened, apart from fields that do not change what is learned.

    Raises:
      UserError: the storage cannot be opened, or its study has other facts.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        with take_turn(folder), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that a part of Optuna is experimental
            study = optuna.create_study(
                storage=_open_storage(folder, storage),
                study_name=folder.name,
                direction=OBJECTIVES[objective],
                pruner=PRUNERS[pruner](),
                load_if_exists=True,
            )
            before = facts | study.user_attrs
            for name in facts.keys() - study.user_attrs.keys():
                study.set_user_attr(name, facts[name])
    except Exception as error:  # anything may come from a database's driver
        words = f"the study cannot be opened: {first_line(error)}"
        if isinstance(error, ImportError):
            module = getattr(error.__cause__ or error, "name", None) or "a driver"
            package = _PACKAGES.get(module, module)
            words = f"the database of --storage needs {module}: pip install {package}"
        raise UserError(words) from error
    differences = stored.conflicts(before["config"], facts["config"])
    for name, value in facts.items():
        if name == "config" or (name == "space" and space_lib.is_same(before[name], value)):
            continue
        if before[name] != value:
            differences.append(f"its {name} was {before[name]} and is now {value}")
    if differences:
        raise UserError(
            f"{folder} holds another search: {differences[0]}; choose another --study, or the old "
            "value to resume it"
        )
    return study


def _open_storage(folder: Path, storage: str | None) -> storages.BaseStorage:
    if storage and "://" not in storage:
        return storages.JournalStorage(journal.JournalFileBackend(storage))
    if storage:
        return storages.RDBStorage(storage)
    # A process waits this many seconds for another one that writes.
    patient = {"connect_args": {"timeout": 60}}
    return storages.RDBStorage(f"sqlite:///{folder / DATABASE}", engine_kwargs=patient)


@contextlib.contextmanager
def take_turn(folder: Path) -> Iterator[None]:
    """Waits until no other process on this host is in this block for the same study."""
    with (folder / TURN).open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def make_distributions(
    space: Sequence[Parameter],
) -> dict[str, distributions.BaseDistribution]:
    """Returns Optuna's form of a space."""
    made: dict[str, distributions.BaseDistribution] = {}
    for name, kind, values in space:
        if kind == "choice":
            made[name] = distributions.CategoricalDistribution(values)
        elif kind == "int":
            made[name] = distributions.IntDistribution(*values)
        else:
            made[name] = distributions.FloatDistribution(values[0], values[1], kind == "log")
    return made


def trial_folder(folder: Path, number: int) -> Path:
    """Returns the folder of a trial's run."""
    return folder / f"trial_{number}"


def claim_trial(
    study: optuna.Study,
    folder: Path,
    space: Sequence[Parameter],
    num_trials: int,
    seed: int,
    stack: contextlib.ExitStack,
) -> optuna.Trial | None:
    """Returns a trial to train, whose folder is locked until the stack is closed.

    A trial whose process has ended comes first, as its run can be resumed; otherwise it is a new
    one. None if the study has all its trials: they are finished, or others train them.

    Args:
      study: of which to train a trial.
      folder: the study's folder.
      space: the space of the search.
      num_trials: how many trials the study is to have.
      seed: of the search; with the trial's number it seeds what is drawn for the trial.
      stack: holds the lock.
    """
    made = make_distributions(space)
    with take_turn(folder):
        for frozen in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            own = trial_folder(folder, frozen.number)
            if not _is_abandoned(frozen, own):
                continue
            with contextlib.ExitStack() as attempt:
                try:
                    attempt.enter_context(workdir_lib.lock(own))
                except UserError:  # another process was faster
                    continue
                trial = optuna.Trial(study, frozen._trial_id)
                if study.get_trials(deepcopy=False)[frozen.number].state != TrialState.RUNNING:
                    continue  # it has ended in the meantime
                for name, distribution in made.items():
                    trial._suggest(name, distribution)  # those that are missing are drawn
                stack.push(attempt.pop_all())
                return trial
        waiting = (TrialState.WAITING,)
        number = len(study.get_trials(deepcopy=False)) - len(study.get_trials(states=waiting))
        if number >= num_trials:
            return None
        # A sampler of its own for each trial: a search that was interrupted draws the same.
        state = np.random.SeedSequence((seed, number)).generate_state(1)
        study.sampler = optuna.samplers.TPESampler(seed=int(state[0]))
        trial = study.ask(made)
        trial.set_user_attr("host", socket.gethostname())
        stack.enter_context(workdir_lib.lock(trial_folder(folder, trial.number)))
        return trial


def _is_abandoned(frozen: FrozenTrial, own: Path) -> bool:
    """Whether no process trains a trial that is not finished, as far as can be told from here."""
    if own.exists():
        return workdir_lib.is_free(own)
    # Its folder may be on a disk of another host.
    here = socket.gethostname()
    return frozen.user_attrs.get("host", here) == here
