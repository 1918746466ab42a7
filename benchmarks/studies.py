"""Figures of docs/usage.md and docs/results.md that ordinary commands make.

    python -m benchmarks.studies [PART ...] [--folder=RUNS] [--long] [--write]

Each part runs main.py in processes of its own, with its runs in RUNS, and makes a row for each
model or set from what these wrote. Finished runs are used as they are; a row names the commit and
the machine of its runs. Rows of other parts and sets in the file are kept. What takes hours is left
out without --long, unless its run in RUNS is finished. `search` needs the extra of that name.
"""

import argparse
import csv
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict
from scipy import special

from benchmarks import pictures, recipes
from benchmarks.study import Row, Runs, Study
from benchmarks.workers import ROOT, add_output_flags, output_path, write_result
from cifar_jax import files
from cifar_jax.errors import UserError
from cifar_jax.evaluation import evaluate, robustness
from cifar_jax.evaluation.calibration import measure_calibration
from cifar_jax.parallel import cpu
from cifar_jax.runs import workdir as workdir_lib
from cifar_jax.runs.weights import PREFIX
from cifar_jax.studies import audit as audit_lib
from cifar_jax.studies import training

NAME = "bench_studies"

DIGITS = ("--config=configs/digits.py",)
SPEEDRUN = ("--config=configs/speedrun.py",)
NOISE = ("--config.data.label_noise=0.05",)
# The runs of several seeds: of the ensemble, under corruptions, and beside the best of the search.
SEEDS = ("digits_seeds", *DIGITS, "--config.num_seeds=8")
TRIALS = "--trials=30"
SPACE = (
    *("--space", "optimizer.learning_rate=log(1e-4,1e-1)"),
    *("augment.cutout=int(0,16)", "optimizer.name=choice(sgd,adamw)"),
)
# Set -> (folder, config and flags).
AUDITS = {
    "digits, labels replaced": ("digits_audit", *DIGITS, *NOISE),
    "CIFAR-10, labels replaced": (
        *("cifar_audit_noise", *SPEEDRUN, "--config.num_epochs=2", *NOISE, "--folds=4"),
    ),
    "CIFAR-10": (
        *("cifar_audit", *SPEEDRUN, "--config.num_epochs=2"),
        *("--config.test_time.views=plain", "--folds=3"),
    ),
}
# Set -> (folder, config and flags); PATH: the folder of the pictures.
PICTURES = {
    "digits": ("folder_digits", "--config=configs/folder.py:PATH", "--config.num_epochs=10"),
    pictures.PHOTOGRAPHS: ("folder_photographs", "--config=configs/folder.py:PATH"),
    "cifar10": (
        *("speedrun_folder", *SPEEDRUN),
        *("--config.data.name=folder", "--config.data.path=PATH"),
    ),
}
# The share of the images, the most suspicious ones, among which replaced labels are looked for.
TOP = 0.06
# The folders of the runs that try changes of the speed record's recipe.
RECIPES = [f"recipe_{run}" for run in range(recipes.NUM_RUNS)]
# The result of the same recipe on CIFAR-10 itself.
SPEEDRUN_RESULT = ROOT / "results" / "speedrun.json"


def ensemble(runs: Runs) -> Iterator[tuple[str, Row]]:
    """Seeds of one run, and all of them together."""
    study = Study(runs)
    workdir = study.run(*SEEDS)
    study.note("--mode=evaluate", f"--workdir={workdir}", "--ensemble")
    *members, whole = evaluate.predict_split(workdir, ensemble=True)
    scores = [one.score() for one in members]
    apart, any_apart = evaluate.disagreement([one.logits.argmax(axis=1) for one in members])
    yield (
        "digits",
        study.row(
            accuracies=[one.accuracy for one in scores],
            losses=[one.loss for one in scores],
            accuracy=whole.score().accuracy,
            loss=whole.score().loss,
            disagreement=apart,
            any_disagreement=any_apart,
        ),
    )


def calibration(runs: Runs) -> Iterator[tuple[str, Row]]:
    """Loss and calibration error of a run, with and without its temperature."""
    study = Study(runs)
    workdir = study.run("calibrated", *DIGITS, "--config.data.validation_examples=300")
    study.run("calibrated", "--mode=calibrate")
    numbers: Row = {}
    for split in ("validation", "test"):
        (one,) = evaluate.predict_split(workdir, split)
        numbers["temperature"] = one.trained.temperature
        numbers[split] = {"num_images": len(one.labels)}
        for when, value in (("before", 1.0), ("after", one.trained.temperature)):
            given = one._replace(trained=one.trained._replace(temperature=value))
            error = measure_calibration(given.probabilities, one.labels).error
            numbers[split][when] = {"loss": given.score().loss, "error": error}
    yield "digits", study.row(**numbers)


def corruptions(runs: Runs) -> Iterator[tuple[str, Row]]:
    """The mean accuracy under the corruptions at each strength."""
    for name, given in (("digits", SEEDS), ("resnet_20", ())):
        study = Study(runs)
        if not given and not runs.may_make(PREFIX + name):
            continue
        workdir = study.run(*given) if given else Path(PREFIX + name)
        study.note("--mode=evaluate", f"--workdir={workdir}", "--corruptions")
        clean = evaluate.evaluate_model(workdir).accuracy
        found = robustness.evaluate_corruptions(workdir)
        means = np.mean(list(found.values()), axis=0).tolist()
        yield name, study.row(clean=clean, strengths=means, corruptions=found)


def search(runs: Runs) -> Iterator[tuple[str, Row]]:
    """The best trial beside the recipe as it is shipped, and both trained on all images."""
    import optuna

    from cifar_jax.studies import search_page, trials

    study = Study(runs)
    words = ("--mode=search", *DIGITS, TRIALS)
    place = study.run("digits_search", *words, flag="study", last=SPACE)
    address = f"sqlite:///{place / trials.DATABASE}"
    found = optuna.load_study(study_name=place.name, storage=address)
    best = search_page.find_best(found)
    assert best is not None
    held_out = found.user_attrs["config"]["data"]["validation_examples"]
    flags = f"--config.data.validation_examples={held_out}", "--config.log.report=False"
    shipped = study.run("digits_shipped", *DIGITS, *flags)
    values = (f"--config.{name}={value}" for name, value in best.params.items())
    name, *seeds = SEEDS
    workdirs = study.run("digits_best", *seeds, *values), study.run(name, *seeds)
    tests = [files.read_json(workdir / workdir_lib.RESULT) for workdir in workdirs]
    states = Counter(trial.state.name.lower() for trial in found.get_trials(deepcopy=False))
    kept = ("test_accuracy", "test_accuracy_std", "test_accuracy_interval", "num_images")
    yield (
        "digits",
        study.row(
            trials=dict(states),
            num_validation=held_out,
            best={"validation_accuracy": best.value, "values": best.params}
            | {name: tests[0][name] for name in kept},
            shipped={"validation_accuracy": training.read_value(shipped, "eval_accuracy")}
            | {name: tests[1][name] for name in kept},
        ),
    )


def audit(runs: Runs) -> Iterator[tuple[str, Row]]:
    """How many labels are flagged, and how many of those that were replaced are found."""
    for name, (place, *arguments) in AUDITS.items():
        study = Study(runs)
        if name.startswith("digits") or runs.may_make(place):
            workdir = study.run(place, "--mode=audit", *arguments)
            folds = len(list(workdir.glob("fold_*")))
            yield name, study.row(folds=folds, **count_labels(workdir / audit_lib.TABLE))


def count_labels(table: Path) -> Row:
    """Returns what labels.csv says: images, flagged ones, and replaced labels if there are any."""
    with table.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    found: Row = {"num_images": len(rows), "flagged": sum(int(row["flagged"]) for row in rows)}
    if "replaced" in rows[0]:
        replaced = [int(row["replaced"]) for row in rows]
        top = round(TOP * len(rows))
        found |= {"replaced": sum(replaced), "top": top, "found": sum(replaced[:top])}
    return found


def folder(runs: Runs) -> Iterator[tuple[str, Row]]:
    """Pictures as files: how they are read, and what a run reaches on them and on the set."""
    for name, (place, *recipe) in PICTURES.items():
        if name == "cifar10" and not runs.may_make(place):
            continue
        study, path, own = Study(runs), runs.folder / "pictures" / name, None
        pictures.write_set(name, path)
        recipe = [word.replace("PATH", str(path)) for word in recipe]
        result = files.read_json(study.run(place, *recipe) / workdir_lib.RESULT)
        if name == "digits":
            on_set = ("--config.data.name=digits", "--config.data.path=None")
            other = study.run("folder_recipe_digits", *recipe, *on_set)
            own = files.read_json(other / workdir_lib.RESULT)["test_accuracy"]
        elif name == "cifar10":
            seeds = files.read_json(SPEEDRUN_RESULT)["seeds"]
            own = next(x["test_accuracy"] for x in seeds if x["seed"] == result["seed"])
        data = result["config"]["data"]
        yield (
            name,
            study.row(
                **pictures.time_loading(path, data["image_size"] or 32, data["channels"] or 3),
                wall_seconds=result["wall_seconds"],
                test_accuracy=result["test_accuracy"],
                num_images=result["num_images"],
                set_accuracy=own,
            ),
        )


def recipe(runs: Runs) -> Iterator[tuple[str, Row]]:
    """The accuracy of eight runs that have some of the changes in `recipes`."""
    study = Study(runs)
    if not all(map(runs.may_make, RECIPES)):
        return
    found = []
    for run, place in enumerate(RECIPES):
        workdir = study.run(place, *recipes.list_flags(run))
        numbers = {
            split: [one.score().accuracy for one in evaluate.predict_split(workdir, split)]
            for split in ("validation", "test")
        }
        # Half of the runs, so chosen that no change is in more of these than of the others.
        check = run.bit_count() % 2 == 1
        found.append({"changes": recipes.list_changes(run), "check": check, **numbers})
    yield "speedrun", study.row(num_validation=recipes.HELD_OUT, runs=found)


def views(runs: Runs) -> Iterator[tuple[str, Row]]:
    """Test-time views of all images and of some, for the first run of `recipe`."""
    study = Study(runs)
    if not runs.may_make(RECIPES[0]):
        return
    workdir = study.run(RECIPES[0], *recipes.list_flags(0))
    found = list(map(compare_views, evaluate.predict_split(workdir, "validation")))
    yield "speedrun", study.row(num_validation=recipes.HELD_OUT, networks=found)


def compare_views(given: evaluate.Predictions) -> dict[str, float]:
    """Returns a network's accuracy with each kind of test-time views.

    "uncertain": six views for only the quarter of the images of which the network is least certain
    after two, the image and its mirror image.
    """
    size = given.trained.config.eval_batch_size
    accuracies = {}

    def predict(name: str, kind: str, threshold: float | None = None) -> np.ndarray:
        test_time = {"views": kind, "confidence_threshold": threshold}
        model = given.trained._replace(config=ConfigDict({"test_time": test_time}))
        logits = model.predict_logits(given.images, size)
        accuracies[name] = float((logits.argmax(axis=1) == given.labels).mean())
        return logits

    predict("plain", "plain")
    confidence = special.softmax(predict("mirror", "mirror").astype(np.float64), axis=1).max(axis=1)
    threshold = float(np.quantile(confidence, 0.25))
    predict("uncertain", "mirror_shift", threshold)
    predict("mirror_shift", "mirror_shift")
    return {"threshold": threshold, **accuracies}


PARTS: dict[str, Callable[[Runs], Iterator[tuple[str, Row]]]] = {
    "ensemble": ensemble,
    "calibration": calibration,
    "corruptions": corruptions,
    "search": search,
    "audit": audit,
    "folder": folder,
    "recipe": recipe,
    "views": views,
}


def main(argv: list[str]) -> int:
    """Runs the benchmark; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    words = f"{', '.join(PARTS)}; without any: all"
    parser.add_argument("parts", nargs="*", metavar="PART", help=words)
    parser.add_argument("--folder", type=Path, default=ROOT / "runs", metavar="RUNS")
    parser.add_argument("--long", action="store_true", help="also what takes hours")
    add_output_flags(parser, NAME)
    options = parser.parse_args(argv)
    if unknown := [part for part in options.parts if part not in PARTS]:
        parser.error(f"{unknown[0]} is not a part: choose from {', '.join(PARTS)}")
    runs = Runs(options.folder.absolute(), options.long)
    try:
        for part in options.parts or PARTS:
            for name, row in PARTS[part](runs):
                print(json.dumps({name: row}), flush=True)
                if path := output_path(options, NAME):
                    found = files.read_json(path, missing={}).get("parts", {})
                    found.setdefault(part, {})[name] = row
                    write_result(options, NAME, {"parts": found})
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except subprocess.CalledProcessError as error:  # which has said why
        return error.returncode
    return 0


if __name__ == "__main__":
    cpu.restart()
    sys.exit(main(sys.argv[1:]))
