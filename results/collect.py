"""Collects finished runs of one config, with one or several seeds each, in `results/NAME.json`.

  python -m results.collect NAME WORKDIR [WORKDIR ...]

The result has the mean over the seeds, their standard deviation, the 95 % interval of the mean, and
each seed with its curve.
"""

import argparse
import contextlib
import importlib
import json
import re
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cifar_jax import files
from cifar_jax.config import fields, shipped, stored
from cifar_jax.errors import UserError
from cifar_jax.evaluation import scores
from cifar_jax.runs import history
from cifar_jax.runs import workdir as workdir_lib

FOLDER = Path(__file__).resolve().parent
# Runs that differ only in these belong to one result.
_OWN = ("seed", "num_seeds", "data.data_dir")


def collect(name: str, workdirs: Sequence[Path]) -> dict[str, Any]:
    """Returns the content of `results/NAME.json`.

    Args:
      name: of the result.
      workdirs: of finished runs that differ only in their seeds.

    Raises:
      UserError: a run is not finished, or two of them have different configs, commits or versions,
        or the same seed.
    """
    every = [pair for workdir in workdirs for pair in read_seeds(workdir)]
    runs, workdirs = zip(*sorted(every, key=_seed), strict=True)
    first = runs[0]
    for run, workdir in zip(runs, workdirs, strict=True):
        for what, own, other in _compared(run, first):
            if own != other:
                raise UserError(
                    f"{workdir}: its {what} is {own}, but that of {workdirs[0]} is {other}"
                )
    seeds = [run["seed"] for run in runs]
    if len(set(seeds)) < len(seeds):
        raise UserError(f"two of the runs have the same seed: {seeds}")
    environment = first["environment"]
    processor = f"{environment['cores']} cores of {environment['processor']}"
    return {
        "name": name,
        "config": describe_config(first["config"], environment["command"]),
        "num_seeds": len(runs),
        **scores.summary_fields("test_accuracy", [run["test_accuracy"] for run in runs]),
        **scores.summary_fields("test_loss", [run["test_loss"] for run in runs]),
        "num_images": first["num_images"],
        "num_epochs": first["num_epochs"],
        "wall_seconds": statistics.fmean(run["wall_seconds"] for run in runs),
        "hardware": f"{first['devices']}, {processor}",
        "versions": environment["versions"],
        "commit": environment["commit"],
        "seeds": [
            {
                **{key: run[key] for key in ("seed", "test_accuracy", "test_loss", "num_correct")},
                "wall_seconds": run["wall_seconds"],
                "curve": read_curve(workdir / workdir_lib.METRICS, run["seed"]),
            }
            for run, workdir in zip(runs, workdirs, strict=True)
        ],
    }


def read_seeds(workdir: Path) -> list[tuple[dict[str, Any], Path]]:
    """Returns (the result of a seed, the workdir) for each seed that a run trained.

    The time of each of several seeds is its share of the time of all.
    """
    run = files.read_json(workdir / workdir_lib.RESULT)
    seeds = run.pop("seeds", [{}])
    share = {"wall_seconds": run["wall_seconds"] / len(seeds)}
    return [({**run, **seed, **share}, workdir) for seed in seeds]


def _seed(pair: tuple[Mapping[str, Any], Path]) -> int:
    return pair[0]["seed"]


def _compared(run: Mapping[str, Any], first: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Returns (what, of this run, of the first one) for all that must be the same in one result."""
    configs = [dict(fields.flatten(one["config"])) for one in (run, first)]
    values = [
        (field, configs[0].get(field), configs[1].get(field))
        for field in sorted(configs[0] | configs[1])
        if field not in _OWN
    ]
    parts = [
        (key, run["environment"][key], first["environment"][key]) for key in ("commit", "versions")
    ]
    return [*values, *parts]


def describe_config(config: Mapping[str, Any], command: Sequence[str]) -> dict[str, Any]:
    """Returns the config's file, and the fields that the run overrides.

    Args:
      config: the run's, as JSON values.
      command: the run's arguments; `--config` names the file.
    """
    given = re.search(r"--?config[= ](\S+)", " ".join(command))
    if not given:
        raise UserError(f"the run's command has no --config: {' '.join(command)}")
    file, _, variant = shipped.find_config(given[1]).partition(":")
    # Paths mean nothing on another machine.
    file = f"configs/{Path(file).name}" if Path(file).parent.name == "configs" else Path(file).name
    theirs: dict[str, Any] = {}
    with contextlib.suppress(ImportError):
        module = importlib.import_module(file.removesuffix(".py").replace("/", "."))
        theirs = stored.to_json(module.get_config(*[variant] if variant else []))
    own, base = (dict(fields.flatten(part)) for part in (config, theirs))
    overrides = {
        field: Path(value).name if field == "init_from" else value
        for field, value in own.items()
        if field not in _OWN and (field not in base or value != base[field])
    }
    return {"file": f"{file}:{variant}" if variant else file, "overrides": overrides}


def read_curve(path: Path, seed: int) -> dict[str, list[Any]]:
    """Returns column name -> values of a seed's metrics.jsonl; None where a line lacks one.

    Lines within an epoch are merged into the one at its end.
    """
    try:
        lines = [json.loads(line) for line in path.read_text().splitlines()]
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    lines = [line for line in lines if line.pop("seed", seed) == seed]
    lines = history.whole_lines(lines)
    names = dict.fromkeys(name for line in lines for name in line)
    return {name: [_short(line.get(name)) for line in lines] for name in names}


def _short(value: Any) -> Any:
    return float(f"{value:.6g}") if isinstance(value, float) else value


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", help="the result goes to results/NAME.json")
    parser.add_argument("workdirs", nargs="+", type=Path)
    parser.add_argument("--folder", type=Path, default=FOLDER, help="instead of results/")
    options = parser.parse_args(argv)
    try:
        result = collect(options.name, options.workdirs)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    path = options.folder / f"{options.name}.json"
    files.write_json(path, result)
    words = scores.format_summary([seed["test_accuracy"] for seed in result["seeds"]])
    count = result["num_seeds"]
    print(f"{path}: {count} seed{'s' if count > 1 else ''}, {words}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
