"""The tables of `benchmarks.studies`, one for each part; a row for each set or model."""

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from scipy import special

from results.markdown import markdown, origin

Rows = Mapping[str, Mapping[str, Any]]
SETS = {"cifar10": "CIFAR-10"}


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.2f} %"


def _ensemble(rows: Rows) -> Iterator[list[str]]:
    yield [
        *("set", "accuracy of each seed, %", "mean", "ensemble", "mean loss", "ensemble's loss"),
        *("two disagree", "not all agree"),
    ]
    for name, row in rows.items():
        yield [
            *(name, ", ".join(f"{100 * share:.2f}" for share in row["accuracies"])),
            *(_percent(statistics.fmean(row["accuracies"])), f"**{_percent(row['accuracy'])}**"),
            *(f"{statistics.fmean(row['losses']):.4f}", f"{row['loss']:.4f}"),
            *(_percent(row["disagreement"]), _percent(row["any_disagreement"])),
        ]


def _calibration(rows: Rows) -> Iterator[list[str]]:
    yield ["set", "temperature", "split", "images", "loss", "after", "ECE", "after"]
    for name, row in rows.items():
        for split in ("validation", "test"):
            both = [row[split][when] for when in ("before", "after")]
            yield [
                *(name, f"{row['temperature']:.3f}", split, f"{row[split]['num_images']:,}"),
                *(f"{one['loss']:.4f}" for one in both),
                *(_percent(one["error"]) for one in both),
            ]


def _corruptions(rows: Rows) -> Iterator[list[str]]:
    numbers = [str(number) for number in range(2, 6)]
    yield ["model", "without", "mean", "strength 1", *numbers]
    for name, row in rows.items():
        mean = f"**{_percent(statistics.fmean(row['strengths']))}**"
        yield [name, _percent(row["clean"]), mean, *map(_percent, row["strengths"])]


def _search(rows: Rows) -> Iterator[list[str]]:
    yield ["set", "recipe", "validation", "test"]
    for name, row in rows.items():
        values = row["best"]["values"].items()
        counts = ", ".join(f"{count} {state}" for state, count in row["trials"].items())
        best = " ".join(
            f"`{field}={value:.4g}`" if isinstance(value, float) else f"`{field}={value}`"
            for field, value in values
        )
        for words, one in (
            ("as shipped", row["shipped"]),
            (f"the best of {sum(row['trials'].values())} trials ({counts}): {best}", row["best"]),
        ):
            test = f"{100 * one['test_accuracy']:.2f} ± {100 * one['test_accuracy_std']:.2f} %"
            yield [name, words, _percent(one["validation_accuracy"]), test]


def _audit(rows: Rows) -> Iterator[list[str]]:
    yield ["set", "images", "folds", "flagged", "replaced", "of them among the first 6 %"]
    for name, row in rows.items():
        total, replaced = row["num_images"], row.get("replaced")
        found = f"{row['found']:,}: **{_percent(row['found'] / replaced)}**" if replaced else ""
        yield [
            *(name, f"{total:,}", str(row["folds"])),
            *(f"{x:,} ({_percent(x / total)})" if x else "" for x in (row["flagged"], replaced)),
            found,
        ]


def _folder(rows: Rows) -> Iterator[list[str]]:
    yield [
        *("set", "pictures", "classes", "broken", "decoded in", "from the cache", "trained in"),
        *("test accuracy", "on the set itself"),
    ]
    for name, row in rows.items():
        yield [
            *(SETS.get(name, name), *(f"{row[x]:,}" for x in ("pictures", "classes", "broken"))),
            *(f"{row[x]:.2f} s" for x in ("decode_seconds", "cached_seconds")),
            f"{row['wall_seconds'] / 60:.1f} min",
            *(_percent(row[x]) for x in ("test_accuracy", "set_accuracy")),
        ]


def _recipe(rows: Rows) -> Iterator[list[str]]:
    yield ["change", "without it", "with it", "difference", "difference on the test images"]
    for row in rows.values():
        runs = row["runs"]
        names = dict.fromkeys(change for run in runs for change in run["changes"])
        sides = {name: [name in run["changes"] for run in runs] for name in names}
        for name, chosen in (sides | {"(a check)": [run["check"] for run in runs]}).items():
            without, with_it, half = _compare(runs, chosen, "validation")
            test_without, test_with_it, test_half = _compare(runs, chosen, "test")
            yield [
                *(name, _percent(without), _percent(with_it)),
                f"{round(100 * (with_it - without), 2) + 0:+.2f} ± {100 * half:.2f}",
                f"{round(100 * (test_with_it - test_without), 2) + 0:+.2f} ± {100 * test_half:.2f}",
            ]


def _compare(
    runs: Sequence[Mapping[str, Any]], chosen: Sequence[bool], split: str
) -> tuple[float, float, float]:
    """Compares the networks of the chosen runs with the others.

    Returns:
      The mean accuracy of the others, that of the chosen ones, and half the width of the 95 %
      interval of the difference, by Student's t. The variance is pooled over the runs, each about
      its own mean.
    """
    sides: tuple[list[float], list[float]] = ([], [])
    for run, is_chosen in zip(runs, chosen, strict=True):
        sides[is_chosen].extend(run[split])
    freedom = sum(len(run[split]) - 1 for run in runs)
    squares = sum((len(run[split]) - 1) * statistics.variance(run[split]) for run in runs)
    deviation = math.sqrt(squares / freedom * sum(1 / len(side) for side in sides))
    without, with_it = map(statistics.fmean, sides)
    return without, with_it, float(special.stdtrit(freedom, 0.975)) * deviation


def _views(rows: Rows) -> Iterator[list[str]]:
    names = {
        "plain": "1: the image",
        "mirror": "2: mirrored too",
        "uncertain": "2, or 6 for the least certain quarter",
        "mirror_shift": "6: mirrored and shifted",
    }
    yield ["views", "accuracy of each network, %", "mean"]
    for row in rows.values():
        for name, words in names.items():
            found = [one[name] for one in row["networks"]]
            each = ", ".join(f"{100 * share:.2f}" for share in found)
            yield [words, each, _percent(statistics.fmean(found))]


PARTS = {
    "ensemble": _ensemble,
    "calibration": _calibration,
    "corruptions": _corruptions,
    "search": _search,
    "audit": _audit,
    "folder": _folder,
    "recipe": _recipe,
    "views": _views,
}


def studies(part: str, rows: Rows) -> str:
    """Returns the table of a part, and where its rows were measured.

    Args:
      part: a key of `PARTS`.
      rows: of the part, by the names of their sets or models.
    """
    places: dict[str, list[str]] = {}
    for name, row in rows.items():
        places.setdefault(origin(row), []).append(SETS.get(name, name))
    words = list(places)
    if len(places) > 1:
        words = [f"{'; '.join(names)}: {place}" for place, names in places.items()]
    header, *lines = PARTS[part](rows)
    return f"{markdown(header, lines)}\n{' '.join(words)}\n"
