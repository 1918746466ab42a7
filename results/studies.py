"""The tables of `benchmarks.studies`, one for each part; a row for each set or model."""

import statistics
from collections.abc import Iterator, Mapping
from typing import Any

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


PARTS = {
    "ensemble": _ensemble,
    "calibration": _calibration,
    "corruptions": _corruptions,
    "search": _search,
    "audit": _audit,
    "folder": _folder,
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
