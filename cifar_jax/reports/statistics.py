"""What the results of runs say about their configs: intervals over seeds, and two tests."""

import csv
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cifar_jax import files
from cifar_jax.config import custom, stored
from cifar_jax.config.fields import flatten
from cifar_jax.data.class_folders import FOLDER
from cifar_jax.errors import UserError
from cifar_jax.evaluation.scores import summarize
from cifar_jax.runs import sources, weights
from cifar_jax.runs.workdir import CONFIG, RESULT
from cifar_jax.text import format_table, shorten_middle

# Fields in which the runs of one config may differ.
_NEUTRAL = (
    *("seed", "num_seeds", "seeds_at_once", "log.", "data.data_dir", "data.placement"),
    *("num_cpu_devices", "steps_per_call", "eval_batch_size", "eval_every_", "checkpoint."),
    *("deterministic",),
)


class Group(NamedTuple):
    """The finished runs of one config.

    Attributes:
      name: the names of the runs, joined.
      accuracies: the test accuracy of each seed; a seed that was trained twice counts once.
      images: what says which images they are of, by the names of fields.
    """

    name: str
    accuracies: dict[int, float]
    images: dict[str, str]


def group_runs(names: Sequence[str], workdirs: Sequence[Path]) -> list[Group]:
    """Returns the groups of finished runs whose configs differ in nothing but their seeds.

    Code of the user's own is a part of the config. A data set is the same with and without its
    version if the runs have read the same.
    """
    groups: dict[tuple[str, str], tuple[list[str], dict[int, float], dict[str, str]]] = {}
    for name, workdir in zip(names, workdirs, strict=True):
        if not (workdir / RESULT).exists():
            continue
        result = files.read_json(workdir / RESULT)
        whole = stored.from_json(files.read_json(workdir / CONFIG))
        config, config_seed = dict(flatten(whole)), whole.get("seed", 0)
        read = _describe_data(workdir, config.get("data.name"))
        config["data.name"] = stored.strip_version(str(config.get("data.name")))
        parts = [
            (x, str(custom.shorten(y))) for x, y in config.items() if not x.startswith(_NEUTRAL)
        ]
        code = [(x, y.get("sha256", "")) for x, y in sources.read_record(workdir).items()]
        key = repr(sorted(parts + code))
        # What a run has read is unknown if its checkpoints were deleted.
        fitting = (x for x in groups if x[0] == key and (x[1] == read or "" in (x[1], read)))
        images = _describe_images(config)
        if count := result.get("num_images"):
            images["test images"] = str(count)
        place = next(fitting, (key, read))
        members, accuracies, _ = groups.setdefault(place, ([], {}, images))
        members.append(name)
        for one in result.get("seeds", [result]):
            accuracies.setdefault(one.get("seed", config_seed), one["test_accuracy"])
    return [Group(", ".join(members), found, images) for members, found, images in groups.values()]


def _describe_images(config: Mapping[str, Any]) -> dict[str, str]:
    """Returns the fields of a config that choose the test images."""
    names = ["data.name", "data.test_split"]
    if config.get("data.name") == FOLDER:
        names += ["data.path", "data.test_fraction"]
    return {name: str(config.get(name) or "test") for name in names}


def _describe_data(workdir: Path, name: Any) -> str:
    """Returns what tells a run's data from those of other runs of its config; "" if unknown."""
    if name == FOLDER:
        return ""  # its share for training depends on the seed
    try:
        data = weights.read_data(workdir)
    except UserError:
        return ""
    return repr([data.get(x) for x in ("class_names", "image_shape", "mean", "std")])


def describe_groups(groups: Sequence[Group]) -> Iterator[str]:
    """Yields the table of the groups and, for two of them, the difference; nothing without seeds.

    If they were tested on different images, a line that says so takes the difference's place.

    The interval of the difference is Welch's, "The generalization of 'Student's' problem when
    several different population variances are involved", 1947.
    """
    if not any(len(group.accuracies) > 1 for group in groups):
        return
    rows = [("config of", "seeds", "mean test accuracy", "deviation", "95% interval of the mean")]
    for group in groups:
        mean, std, interval = summarize(list(group.accuracies.values()))
        words = "-" if interval is None else "{:.2%} to {:.2%}".format(*interval)
        deviation = "-" if std is None else f"{std:.2%}"
        name = shorten_middle(group.name, 40)
        rows.append((name, str(len(group.accuracies)), f"{mean:.2%}", deviation, words))
    yield format_table(rows, right=range(1, 5))
    for name in dict.fromkeys(name for group in groups for name in group.images):
        values = sorted({group.images[name] for group in groups if name in group.images})
        if len(values) > 1:
            yield (
                f"these configs were tested on different images ({name}: {', '.join(values)}), so "
                "their accuracies are not compared"
            )
            return
    if len(groups) == 2 and all(len(group.accuracies) > 1 for group in groups):
        yield describe_difference(*(list(group.accuracies.values()) for group in groups))


def describe_difference(one: Sequence[float], other: Sequence[float]) -> str:
    """Returns whether the seeds of two configs suffice to tell which has the higher mean."""
    from scipy import stats  # imported late, because it takes half a second

    gap = float(np.mean(one) - np.mean(other))
    spread = float(np.var(one, ddof=1) + np.var(other, ddof=1))
    words = f"difference of the means {gap:+.2%}"
    if not spread:
        return f"{words}: the seeds of each config agree, so there is nothing to test"
    test = stats.ttest_ind(one, other, equal_var=False)
    low, high = test.confidence_interval(0.95)
    words += f" (95% interval {low:+.2%} to {high:+.2%} by Welch, p = {test.pvalue:.2g})"
    if low > 0 or high < 0:
        return f"{words}: these seeds suffice to tell the configs apart"
    words += ": these seeds do not suffice to tell the configs apart"
    if not gap:
        return words
    # The usual normal approximation, for a test at 5 % that finds the difference in 80 % of cases.
    needed = math.ceil((stats.norm.ppf(0.975) + stats.norm.ppf(0.8)) ** 2 * spread / gap**2)
    return f"{words}; if the difference is real, about {max(needed, 2):,} seeds of each would"


def describe_pair(names: Sequence[str], workdirs: Sequence[Path]) -> str:
    """Returns McNemar's exact test for two runs on the same images, from their reports.

    McNemar, "Note on the sampling error of the difference between correlated proportions or
    percentages", 1947. It is about these two trained networks, not about other seeds.
    """
    tables = [_read_predictions(workdir) for workdir in workdirs]
    if not tables[0] or not tables[1]:
        return "McNemar's test needs the reports of both runs on the test split: --mode=report"
    (truth, right), (other_truth, other_right) = tables
    if truth != other_truth:
        return "McNemar's test needs the same test images: these runs have different ones"
    from scipy import stats  # imported late, because it takes half a second

    alone = [
        sum(x and not y for x, y in zip(one, other, strict=True))
        for one, other in ((right, other_right), (other_right, right))
    ]
    p = stats.binomtest(alone[0], sum(alone)).pvalue if sum(alone) else 1.0
    return (
        f"of {len(right):,} images, only {names[0]} is right on {alone[0]} and only {names[1]} on "
        f"{alone[1]}: p = {p:.2g} by McNemar's exact test"
    )


def _read_predictions(workdir: Path) -> Any:
    """Returns (true classes, whether each is right) of a single-seed run's report.

    They are None if there is no report that can be read, or it is not that of the result.
    """
    path, result = workdir / "report" / "predictions.csv", files.read_json(workdir / RESULT)
    if not path.exists():
        return None
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, ValueError, csv.Error):
        return None
    right = [row.get("correct") == "1" for row in rows]
    if (sum(right), len(right)) != (result.get("num_correct"), result.get("num_images")):
        return None
    return [row.get("truth") for row in rows], right
