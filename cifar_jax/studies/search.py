"""`--mode=search`: looks for the values of a config that give the best validation scores."""

import contextlib
import statistics
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import optuna
from ml_collections import ConfigDict
from optuna.trial import TrialState

from cifar_jax import files
from cifar_jax.config import stored
from cifar_jax.data import datasets
from cifar_jax.errors import NotFiniteError, UserError
from cifar_jax.evaluation.scores import Scores
from cifar_jax.runs import history
from cifar_jax.studies import search_page, space, training, trials
from cifar_jax.studies.space import Parameter
from cifar_jax.text import printable

# The share of the training images that is held out unless the config says so, and the most.
_HELD_OUT, _MOST_HELD_OUT = 5, 5000
# As many failed trials end the search, if none could be trained.
_MOST_FAILURES = 3


class Search(NamedTuple):
    """What a search looks for.

    Attributes:
      config: of all trials, apart from the fields in the space.
      space: the fields that vary.
      objective: "accuracy" or "loss", of the validation split.
      num_trials: how many trials the study is to have, of all its processes together.
      pruner: a key of `trials.PRUNERS`.
      config_text: of the config file.
    """

    config: ConfigDict
    space: Sequence[Parameter]
    objective: str
    num_trials: int
    pruner: str
    config_text: str | None


def run_search(
    search: Search, folder: Path, storage: str | None = None, command: Sequence[str] = ()
) -> int:
    """Trains the trials that are missing, together with other processes; writes search.html.

    Each trial is an ordinary run in a folder of its own. One that is pruned, or that was
    interrupted, can be resumed; this is done with one whose process has ended.

    Args:
      search: what to look for; its config is checked.
      folder: of the study.
      storage: as for `trials.open_study`.
      command: the arguments of main.py that train the config as it is.

    Returns:
      The exit code.

    Raises:
      UserError: the folder or the storage cannot be used, or as for `loop.train_model`.
    """
    training.check_folder(folder, "search")
    is_new = not folder.exists()
    with files.output_folder(folder, "--study"):
        base = hold_out(search.config)
        facts = {
            "config": stored.to_json(base),
            "space": [space.write_parameter(x) for x in search.space],
            "objective": search.objective,
        }
        try:
            study = trials.open_study(folder, storage, search.objective, search.pruner, facts)
        except UserError:
            if is_new:
                (folder / trials.TURN).unlink(missing_ok=True)
            raise
        # In the study's order: otherwise other values are drawn.
        known = [space.read_parameter(text) for text in study.user_attrs["space"]]
        held_out = search._replace(config=base, space=known)
        own = {name: dict_value(base, name) for name, *_ in known}
        with trials.take_turn(folder):
            if not study.get_trials() and all(x.holds(own[x.name]) for x in known):
                study.enqueue_trial(own)  # the config as it is comes first
        if code := _train_trials(held_out, study, folder):
            return code
    best = best_command(study, search, command, folder)
    path = search_page.write_search(study, folder, best)
    print(search_page.format_trials(study))
    if best:
        print(f"to train the best on all training images:\n{search_page.format_command(best)}")
    print(f"{printable(str(path))}: {search_page.describe_search(study)}")
    return 0


def hold_out(config: ConfigDict) -> ConfigDict:
    """Returns the config of all trials: with a validation split, and without reports."""
    fields: dict[str, Any] = {"log.report": False}
    if not config.data.validation_examples:
        splits = datasets.load_for(config).splits
        if "validation" not in splits:
            total = len(splits["train"].labels)
            fields["data.validation_examples"] = min(max(1, total // _HELD_OUT), _MOST_HELD_OUT)
    if config.num_seeds > 1 and config.data.seed is None:
        fields["data.seed"] = config.seed
    return training.change_config(config, fields)


def dict_value(config: ConfigDict, name: str) -> Any:
    """Returns the value of a field, given by its dotted name."""
    value: Any = config
    for part in name.split("."):
        value = value[part]
    return value


def _train_trials(search: Search, study: optuna.Study, folder: Path) -> int:
    while True:
        with contextlib.ExitStack() as stack:
            place = (study, folder, search.space, search.num_trials, search.config.seed, stack)
            if (trial := trials.claim_trial(*place)) is None:
                return 0
            given = "  ".join(
                f"{name}={search_page.format_value(x)}" for name, x in trial.params.items()
            )
            print(f"trial {trial.number}: {given}", flush=True)
            try:
                code, state, value = _train(
                    search, trial, trials.trial_folder(folder, trial.number)
                )
            except NotFiniteError as error:
                trial.set_user_attr("reason", str(error))
                code, state, value = 0, TrialState.PRUNED, None
            except UserError as error:
                if error.exit_code != 2:  # such as a full disk: the trial can be resumed
                    raise
                _fail(study, trial, error)
                continue
            if code:
                return code
            study.tell(trial, value, state=state, skip_if_finished=True)
            words = "" if value is None else f", {search.objective} {value:.4f}"
            print(f"trial {trial.number} is {state.name.lower()}{words}", flush=True)


def _fail(study: optuna.Study, trial: optuna.Trial, error: UserError) -> None:
    """Ends a trial whose values cannot be trained; raises the error if no others could be."""
    reason = "; ".join(str(error).splitlines())
    trial.set_user_attr("reason", reason)
    study.tell(trial, state=TrialState.FAIL)
    print(f"trial {trial.number} has failed: {reason}", flush=True)
    count = Counter(other.state for other in study.get_trials(deepcopy=False))
    if count[TrialState.FAIL] >= _MOST_FAILURES and not (
        count[TrialState.COMPLETE] or count[TrialState.PRUNED]
    ):
        raise error


def _train(
    search: Search, trial: optuna.Trial, folder: Path
) -> tuple[int, TrialState, float | None]:
    """Trains a trial; returns the exit code, the trial's state and its value."""
    name = f"eval_{search.objective}"
    reported = set(trial.storage.get_trial(trial._trial_id).intermediate_values)

    def watch(_: int, scores: Sequence[Scores]) -> None:
        # The same number for the same evaluation when the run is resumed.
        count = sum(name in row for row in history.read_history(folder))
        if count not in reported:
            value = statistics.fmean(getattr(own, search.objective) for own in scores)
            trial.report(value, count)
        if trial.should_prune():
            raise optuna.TrialPruned

    config = space.apply_values(search.config, trial.params)
    try:
        code = training.train_in(config, folder, search.config_text, watch)
    except optuna.TrialPruned:
        return 0, TrialState.PRUNED, None
    if code:
        return code, TrialState.RUNNING, None
    return 0, TrialState.COMPLETE, training.read_value(folder, name)


def best_command(
    study: optuna.Study, search: Search, command: Sequence[str], folder: Path
) -> list[str]:
    """Returns the command that trains the best trial's config on all data; [] without a trial."""
    if not (best := search_page.find_best(study)):
        return []
    values = dict(best.params)
    if search.config.data.validation_examples:
        values["data.validation_examples"] = 0
    words = [f"--config.{name}={value}" for name, value in values.items()]
    return ["python", "main.py", *command, *words, f"--workdir={folder / 'best'}"]
