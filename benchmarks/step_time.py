"""Images per second in training and inference: this project beside stock JAX, Keras and PyTorch.

    python -m benchmarks.step_time --jax-python=... --keras-python=... --torch-python=... [--write]

Each framework runs in a process of its own, started with the given interpreter (stock JAX with this
one by default); a framework without an interpreter is skipped. They take turns, round by round, so
that other work on the machine slows all of them alike. First a check makes sure that all compute
the same: equal numbers of parameters, and equal losses in three training steps from equal weights.
Everything is float32 on the CPU, trained by SGD with momentum.
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.peers import protocol
from benchmarks.workers import (
    Worker,
    WorkerError,
    add_output_flags,
    ask_all,
    write_result,
)
from cifar_jax.runs import provenance

MODELS = ("simple_cnn", "vgg_bn", "resnet", "speedrun", "mlp")
BATCH_SIZES = (128, 32, 512)
ROUNDS, FEWER_ROUNDS = {128: 5}, 2
INPUT_ROUNDS = 3
# Turns of training that are not counted. Until ResNet-20 has touched all the memory that it keeps,
# it is a quarter slower here, for about five seconds.
WARM_UP_TURNS = 3
# The length of a turn of inference over that of training. The first training steps after the turns
# of other frameworks are slower (a turn of 0.6 s lost a quarter), so its turns must be long.
INFERENCE_SHARE = 0.3
# Models whose configs do not augment the images.
NOT_AUGMENTED = ("mlp",)
# Models whose configs use one CPU device.
ONE_DEVICE = ("mlp",)
# With few images, BatchNorm amplifies rounding errors.
CHECKED_IMAGES = 128
# Relative, for the first loss and those after one and two steps.
TOLERANCES = (1e-4, 1e-3, 1e-3)
# Compiling takes PyTorch about half a minute: if it gains less than this with the first batch size,
# it is left out with the others.
WORTH_COMPILING = 1.03


class Framework(NamedTuple):
    """How a framework is started.

    Attributes:
      option: the flag with its interpreter; "" for this one.
      arguments: its module of `peers` and that module's arguments.
      keep_memory: whether it gets the allocator settings of `parallel.cpu`, which make it faster.
    """

    option: str
    arguments: list[str]
    keep_memory: bool = False


FRAMEWORKS = {
    "ours": Framework("", ["ours"], keep_memory=True),
    "ours_one_device": Framework("", ["ours", "1"], keep_memory=True),
    "jax": Framework("jax_python", ["stock_jax"]),
    "keras": Framework("keras_python", ["keras_tf"]),
    "pytorch": Framework("torch_python", ["pytorch", "eager"], keep_memory=True),
    "pytorch_compiled": Framework("torch_python", ["pytorch", "compiled"], keep_memory=True),
}


def parse(argv: list[str]) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--jax-python", default=sys.executable, help="has jax, flax and optax")
    parser.add_argument("--keras-python", help="has keras and tensorflow")
    parser.add_argument("--torch-python", help="has torch")
    parser.add_argument("--models", default=",".join(MODELS), help="separated by commas")
    parser.add_argument(
        "--batches",
        default=",".join(map(str, BATCH_SIZES)),
        help="batch sizes, separated by commas",
    )
    parser.add_argument("--rounds", type=int, help="default: 5 with batches of 128, else 2")
    parser.add_argument("--seconds", type=float, default=2.0, help="of a turn of training (2)")
    add_output_flags(parser, "bench_step_time")
    parser.add_argument(
        "--quick", action="store_true", help="try it: this project, stock JAX, mlp, one round"
    )
    options = parser.parse_args(argv)
    if options.quick:
        options.keras_python = options.torch_python = None
        options.models, options.batches, options.rounds, options.seconds = "mlp", "32", 1, 0.1
    options.models = options.models.split(",")
    options.batches = [int(size) for size in options.batches.split(",")]
    for model in options.models:
        if model not in MODELS:
            parser.error(f"unknown model {model!r}: choose from {', '.join(MODELS)}")
    return options


def start(options: argparse.Namespace) -> tuple[dict[str, Worker], dict[str, str]]:
    """Returns the workers by name, and why others were skipped."""
    workers, skipped = {}, {}
    for name, framework in FRAMEWORKS.items():
        python = getattr(options, framework.option) if framework.option else sys.executable
        if python is None:
            skipped[name] = f"no --{framework.option.replace('_', '-')}"
        else:
            try:
                workers[name] = Worker(name, python, framework.arguments, framework.keep_memory)
            except WorkerError as error:
                skipped[name] = str(error)
        if name in skipped:
            print(f"skipping {name}: {skipped[name]}", flush=True)
        else:
            print(f"{name}: {workers[name].versions}", flush=True)
    return workers, skipped


def choose(workers: dict[str, Worker], model: str) -> dict[str, Worker]:
    """Returns the workers for a model; ours with as many devices as the model's config uses."""
    chosen = dict(workers)
    one_device = chosen.pop("ours_one_device")
    if model in ONE_DEVICE:
        chosen["ours"] = one_device
    return chosen


def draw_case(layers: list[dict[str, list[int]]], model: str) -> protocol.Case:
    """Returns random weights of these shapes, and a batch of images."""
    generator = np.random.default_rng(2)

    def draw(name: str, shape: list[int]) -> np.ndarray:
        if name in ("scale", "var"):
            array = generator.uniform(0.5, 1.5, shape)
        elif name == "kernel":
            array = generator.normal(0, np.sqrt(2 / np.prod(shape[:-1])), shape)
        else:
            array = generator.normal(0, 0.1, shape)
        return array.astype(np.float32)

    weights = [{name: draw(name, shape) for name, shape in layer.items()} for layer in layers]
    images, labels = protocol.make_data(model)
    return protocol.Case(weights, images[:CHECKED_IMAGES], labels[:CHECKED_IMAGES])


def check(workers: dict[str, Worker], model: str) -> dict[str, Any]:
    """Returns what every framework computes from the same weights, see `compare`.

    Raises:
      WorkerError: two of them differ, so their speeds cannot be compared.
    """
    case = draw_case(workers["ours"].ask("describe", model=model), model)
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "case.npz")
        protocol.write_case(path, case)
        # The compiled PyTorch has the same models as the eager one.
        asked = {name: one for name, one in workers.items() if name != "pytorch_compiled"}
        found = ask_all(asked, "check", model=model, path=path)
    return {"model": model, **compare(model, found)}


def compare(model: str, found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Returns the numbers of parameters, the losses, and their largest relative differences."""
    for count in ("parameters", "variables"):
        counts = {name: result[count] for name, result in found.items()}
        if len(set(counts.values())) > 1:
            raise WorkerError(f"{model}: the numbers of {count} differ: {counts}")
    losses = {name: result["losses"] for name, result in found.items()}
    ours = np.array(losses["ours"])
    # NumPy's maximum keeps a NaN, and a NaN is not within a tolerance.
    differences = np.max([abs(theirs - ours) / ours for theirs in losses.values()], axis=0)
    if not (differences <= TOLERANCES).all():
        raise WorkerError(f"{model}: the losses from equal weights differ: {losses}")
    counts = {count: found["ours"][count] for count in ("parameters", "variables")}
    return {**counts, "losses": losses, "differences": differences.tolist()}


def measure(
    workers: dict[str, Worker], model: str, batch_size: int, rounds: int, seconds: float
) -> list[dict[str, Any]]:
    """Lets the frameworks take turns; returns a row for each, in training and in inference."""
    rates: dict[tuple[str, str], list[float]] = {}
    prepared = ask_all(workers, "prepare", model=model, batch_size=batch_size)
    for worker in workers.values():
        worker.ask("calibrate")
        for _ in range(WARM_UP_TURNS):
            worker.ask("measure", what="train", seconds=seconds)
        worker.ask("calibrate")  # again, now that it is warm
    for what in protocol.Runner._fields:
        for number in range(rounds):
            names = list(workers)
            first = number % len(names)
            for name in names[first:] + names[:first]:
                length = seconds * (INFERENCE_SHARE if what == "infer" else 1)
                rate = workers[name].ask("measure", what=what, seconds=length)
                rates.setdefault((name, what), []).append(rate)
    return [
        {
            "model": model,
            "batch_size": batch_size,
            "framework": name,
            "what": what,
            "images_per_second": statistics.median(values),
            "rounds": [round(value, 1) for value in values],
            "prepare_seconds": round(prepared[name], 1),
        }
        for (name, what), values in rates.items()
    ]


def compiling_pays(rows: list[dict[str, Any]], model: str) -> bool:
    """Returns whether the compiled PyTorch was faster in any measurement of this model so far."""
    rates = {
        (row["framework"], row["what"], row["batch_size"]): row["images_per_second"]
        for row in rows
        if row["model"] == model
    }
    return not rates or any(
        rates.get(("pytorch_compiled", what, batch_size), 0) > WORTH_COMPILING * rate
        for (name, what, batch_size), rate in rates.items()
        if name == "pytorch"
    )


def run(options: argparse.Namespace, workers: dict[str, Worker]) -> dict[str, Any]:
    """Checks and measures the chosen models; returns the result."""
    begun = time.monotonic()
    checks = []
    for model in options.models:
        checks.append(check(choose(workers, model), model))
        worst = max(checks[-1]["differences"])
        print(f"{model}: {checks[-1]['variables']:,} numbers, losses within {worst:.1e}")
    rows: list[dict[str, Any]] = []
    inputs: list[dict[str, Any]] = []
    for model in options.models:
        for batch_size in options.batches:
            wanted = choose(workers, model)
            if not compiling_pays(rows, model):
                wanted.pop("pytorch_compiled", None)
            rounds = options.rounds or ROUNDS.get(batch_size, FEWER_ROUNDS)
            new = measure(wanted, model, batch_size, rounds, options.seconds)
            if model not in NOT_AUGMENTED:
                case = {"model": model, "batch_size": batch_size}
                seconds = min(wanted["ours"].ask("input", **case) for _ in range(INPUT_ROUNDS))
                step = batch_size / new[0]["images_per_second"]
                inputs.append({**case, "share_of_step": round(seconds / step, 4)})
            rows += new
            for what in protocol.Runner._fields:
                rates = [
                    f"{row['framework']} {row['images_per_second']:.0f}"
                    for row in new
                    if row["what"] == what
                ]
                words = f"{model} {batch_size} {what}: {', '.join(rates)} images/s"
                print(f"{words}  ({time.monotonic() - begun:.0f} s)", flush=True)
    taken = time.monotonic() - begun
    return {
        "checks": checks,
        "measurements": rows,
        "input_and_augmentation": inputs,
        "wall_seconds": round(taken, 1),
        # Shows a worker that kept a core busy while another one was measured.
        "idle_cores": {name: round(w.idle_cpu_seconds / taken, 3) for name, w in workers.items()},
    }


def main(argv: list[str]) -> int:
    """Runs the benchmark; returns the exit code."""
    options = parse(argv)
    workers, skipped = start(options)
    try:
        if "ours" not in workers:
            raise WorkerError(f"this project does not start: {skipped['ours']}")
        measured = run(options, workers)
    except WorkerError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    finally:
        for worker in workers.values():
            worker.close()
    machine = provenance.environment()
    result = {
        "hardware": f"{machine['cores']} cores of {machine['processor']}",
        "commit": machine["commit"],
        "versions": {name: worker.versions for name, worker in workers.items()},
        "skipped": skipped,
        "seconds": options.seconds,
        **measured,
    }
    write_result(options, "bench_step_time", result)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
