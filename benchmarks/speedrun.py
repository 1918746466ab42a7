"""Time to accuracy by the rules of the speed records, and the throughput of the networks.

    python -m benchmarks.speedrun --write
    python -m benchmarks.speedrun --airbench=cifar10-airbench/airbench94_muon.py --torch-python=...

measures for 9 minutes; the same command resumes (exit code 75 while something is missing):

* runs of the configs, one per seed. The initial weights, the training and the evaluation with
  test-time augmentation count; reading the data and compiling do not, and are given separately.
  With `--airbench`, runs of the first config alternate with runs of the record's own script, timed
  by its own clock, on the same device;
* the whole command `python main.py --config=...`, once;
* the rate of matrix products, and the share of it that a run reaches (operations by XLA's count);
* on an accelerator, images per second in training of other configs in bfloat16.

`--write` keeps the result in results/bench_speedrun_gpu.json (or _tpu, _cpu), `--output` in another
file; otherwise it is in the folder for temporary files. `--quick` tries everything at a small scale
on random images.
"""

import argparse
import functools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.collectives import load_config
from benchmarks.peers import protocol
from benchmarks.racer import Racer, measure_throughput
from benchmarks.workers import (
    ROOT,
    Worker,
    WorkerError,
    add_output_flags,
    describe_machine,
    write_tables,
)
from cifar_jax import files
from cifar_jax.data import datasets
from cifar_jax.errors import UserError
from cifar_jax.parallel import devices
from cifar_jax.runs import workdir as workdir_lib

# Config and number of seeds on an accelerator; a CPU runs only the first config, once.
RUNS = {"speedrun": 50, "speedrun:95": 10, "speedrun:96": 10, "resnet:18": 1}
# Config and batch size.
THROUGHPUT = {
    **{"simple_cnn": 1024, "vgg_bn": 1024, "resnet:20": 1024, "resnet:18": 1024},
    **{"resnet:wrn-28-10": 512, "speedrun": 2000},
}
THROUGHPUT_SECONDS = 3.0
# The exit code for a temporary failure in sysexits.h: start it again.
UNFINISHED = 75


def measure_matrix_rate(dtype: Any, size: int) -> float:
    """Returns FLOP/s in products of square matrices, the best of five turns."""
    number = 20
    # A processor draws less power for ones and runs faster. The scale keeps the product's size.
    matrix = (jax.random.normal(jax.random.key(0), (size, size)) / size**0.5).astype(dtype)

    @jax.jit
    def multiply(x: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(0, number, lambda _, y: jnp.dot(matrix, y), x)

    multiply(matrix).block_until_ready()
    turns = []
    for _ in range(5):
        begun = time.perf_counter()
        multiply(matrix).block_until_ready()
        turns.append(time.perf_counter() - begun)
    return 2 * size**3 * number / min(turns)


class Results:
    """The file of the results; what it holds is not measured again."""

    def __init__(self, path: Path, fresh: bool, quick: bool = False):
        """Reads the file.

        Raises:
          SystemExit: it was measured on another machine or by another commit.
        """
        self.path = path
        same = describe_machine() | {"devices": devices.describe_devices(), "quick": quick}
        self.found: dict[str, Any] = {"name": path.stem, **same, "runs": {}, "throughput": {}}
        if path.exists() and not fresh:
            old = files.read_json(path)
            for name, value in same.items():
                if old.get(name) != value:
                    raise SystemExit(
                        f"error: {path} has another {name}, {old.get(name)}: --fresh starts again"
                    )
            self.found = old

    def save(self) -> None:
        """Writes the file."""
        files.write_json(self.path, self.found)


def race(
    results: Results,
    name: str,
    racer: Racer,
    num_seeds: int,
    rival: Callable[[int], dict[str, float]] | None,
) -> Iterator[str]:
    """Makes the missing runs of a config, alternating with the rival's; yields a line for each.

    Args:
      results: what was measured before.
      name: of the config.
      racer: makes a run of it.
      num_seeds: the runs in all.
      rival: makes a run of the record; None without one.

    Raises:
      SystemExit: earlier runs had no rival between them.
    """
    row = results.found["runs"].setdefault(name, {"seeds": [], "rival": []})
    sides = {"seeds": racer.run} | ({"rival": rival} if rival else {})
    if all(len(row[side]) >= num_seeds for side in sides):
        return
    if rival and len(row["seeds"]) > len(row["rival"]) + 1:
        raise SystemExit(
            f"error: {name} has runs that did not alternate with the record's: --fresh starts again"
        )
    row |= {"flops": racer.count_flops(), "epochs": racer.config.num_epochs}
    row |= {"batch_size": racer.config.batch_size, "dtype": racer.config.dtype}
    seconds = []
    for _ in range(2):  # the first one compiles
        begun = time.perf_counter()
        racer.run(0, min(2, racer.durations.total))
        seconds.append(time.perf_counter() - begun)
    # A later start of this command finds the programs compiled; its time does not count.
    row.setdefault("compile_seconds", seconds[0] - seconds[1])
    results.save()
    for seed in range(num_seeds):
        for side, run in sides.items():
            if seed < len(row[side]):
                continue
            row[side].append(run(seed))
            results.save()
            one, words = row[side][-1], "the record, run" if side == "rival" else f"{name}, seed"
            yield f"{words} {seed}: {one['accuracy']:.2%} in {one['seconds']:.2f} s"


def time_command(results: Results, name: str, extra: list[str]) -> Iterator[str]:
    """Times the whole command of a config once, in a new workdir and without compiled programs."""
    commands = results.found.setdefault("commands", {})
    if name in commands:
        return
    file, _, argument = name.partition(":")
    config = f"configs/{file}.py" + (f":{argument}" if argument else "")
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "main.py", f"--config={config}", f"--workdir={folder}/run"]
        begun = time.monotonic()
        env = {"XDG_CACHE_HOME": f"{folder}/cache"}
        subprocess.run(
            [*command, *extra], cwd=ROOT, check=True, env=os.environ | env, capture_output=True
        )
        seconds = time.monotonic() - begun
        accuracy = files.read_json(Path(folder) / "run" / workdir_lib.RESULT)["test_accuracy"]
    commands[name] = {"seconds": seconds, "accuracy": accuracy, "overrides": extra}
    results.save()
    yield f"{' '.join(command[1:3])}: {accuracy:.2%} in {seconds:.1f} s in all"


def throughput(
    results: Results, sizes: dict[str, int], dataset: datasets.Dataset, seconds: float
) -> Iterator[str]:
    """Measures the missing configs in bfloat16; yields a line for each."""
    for name, batch_size in sizes.items():
        if name in results.found["throughput"]:
            continue
        config = load_config(name)
        config.dtype, config.batch_size = "bfloat16", batch_size
        rates = measure_throughput(Racer(config, dataset), seconds)
        row = {"batch_size": batch_size, "dtype": config.dtype, "images_per_second": rates}
        results.found["throughput"][name] = row
        results.save()
        yield f"{name}: {statistics.median(rates):,.0f} images/s in training"


def write_images(folder: Path, dataset: datasets.Dataset) -> None:
    """Writes the images for the rival: train_images.npy, train_labels.npy and the same of test."""
    for name in ("train", "test"):
        split = dataset.splits[name]
        np.save(folder / f"{name}_images.npy", np.asarray(split.images))
        np.save(folder / f"{name}_labels.npy", np.asarray(split.labels))


def shrink(config: Any) -> Any:
    """Changes a config to a small scale; returns it."""
    config.num_epochs, config.batch_size, config.eval_batch_size = 2.0, 64, 64
    config.schedule.name, config.schedule.warmup_epochs = "constant", 0.0
    if "group_features" in config.model:
        config.model.group_features = (8, 8, 8)
        config.optimizer.groups.stem_bias.num_epochs = 1.0
    return config


def random_dataset(num_images: int = 640) -> datasets.Dataset:
    """Returns random images in two splits."""
    images, labels = (part[:num_images] for part in protocol.make_data("speedrun"))
    split = datasets.Split(images, labels)
    names = tuple(map(str, range(protocol.NUM_CLASSES)))
    mean, std = (protocol.MEAN,) * 3, (protocol.STD,) * 3
    return datasets.Dataset("random", names, mean, std, {"train": split, "test": split})


def parse(argv: list[str]) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--configs", help="of the runs, such as speedrun:96,resnet:20")
    parser.add_argument("--num-seeds", type=int, help="of each config")
    parser.add_argument(
        "--minutes",
        type=float,
        default=9.0,
        help="stop after that time (9); the same command resumes",
    )
    parser.add_argument(
        "--airbench", type=Path, help="the record's script, from a clone of its repository"
    )
    parser.add_argument("--torch-python", default=sys.executable, help="has torch")
    parser.add_argument("--fresh", action="store_true", help="discard earlier results")
    parser.add_argument("--quick", action="store_true", help="try it at a small scale")
    add_output_flags(parser, "bench_speedrun_DEVICE")
    options = parser.parse_args(argv)
    if options.quick and options.write:
        parser.error("--quick measures nothing worth keeping: leave out --write")
    if options.airbench and not options.airbench.is_file():
        parser.error(f"--airbench: there is no file {options.airbench}")
    try:
        if options.output:
            options.output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"--output: its folder cannot be made: {error}")
    try:
        for name in (options.configs or "speedrun").split(","):
            load_config(name)
    except UserError as error:
        parser.error(f"--configs: {error}")
    return options


def choose_output(options: argparse.Namespace) -> Path:
    """Returns the file for this kind of device; results that are not asked for are temporary."""
    name = "quick" if options.quick else jax.default_backend()
    folder = ROOT / "results" if options.write else Path(tempfile.gettempdir())
    return options.output or folder / f"bench_speedrun_{name}.json"


def _run_rival(rival: Worker, number: int) -> dict[str, float]:
    return rival.ask("run", number=number)


def parts(options: argparse.Namespace, results: Results, folder: Path) -> Iterator[str]:
    """Measures what is missing, one thing after another; yields a line after each."""
    accelerator = jax.default_backend() != "cpu"
    runs = RUNS if accelerator else {"speedrun": 1}
    if options.configs:
        runs = {name: runs.get(name, 3) for name in options.configs.split(",")}
    if "matrix_rate" not in results.found:
        dtype, size = (jnp.bfloat16, 8192) if accelerator else (jnp.float32, 1024)
        results.found["matrix_rate"] = measure_matrix_rate(dtype, size)
        results.save()
        yield f"matrix products: {results.found['matrix_rate'] / 1e12:.3g} TFLOP/s"
    dataset = random_dataset() if options.quick else datasets.load_dataset("cifar10")
    rival, (first, wanted) = None, next(iter(runs.items()))
    made = results.found["runs"].get(first, {"rival": []})["rival"]
    if options.airbench and len(made) < (options.num_seeds or wanted):
        write_images(folder, dataset)
        arguments = ["airbench", str(options.airbench.resolve()), str(folder)]
        rival = Worker("airbench", options.torch_python, arguments, accelerator=True)
        rival.ask("prepare")
    for name, num_seeds in runs.items():
        config = load_config(name)
        config.dtype = "bfloat16" if accelerator else config.dtype
        config = shrink(config) if options.quick else config
        racer = Racer(config, dataset)
        against = functools.partial(_run_rival, rival) if rival and name == first else None
        yield from race(results, name, racer, options.num_seeds or num_seeds, against)
        if name == first and not options.quick:
            yield from time_command(results, name, [f"--config.dtype={config.dtype}"])
    if accelerator or options.quick:
        sizes = {"speedrun": 64} if options.quick else THROUGHPUT
        yield from throughput(results, sizes, dataset, 0.1 if options.quick else THROUGHPUT_SECONDS)
    if rival:
        rival.close()


def main(argv: list[str]) -> int:
    """Runs the benchmark; returns the exit code."""
    begun = time.monotonic()
    options = parse(argv)
    # The command and the rival use the same device.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    devices.configure_jax(2000)
    results = Results(choose_output(options), options.fresh, options.quick)
    longest, last = 0.0, begun
    try:
        with tempfile.TemporaryDirectory() as folder:
            for words in parts(options, results, Path(folder)):
                print(words, flush=True)
                longest, last = max(longest, time.monotonic() - last), time.monotonic()
                # The next part may take as long as the longest so far.
                if last + longest - begun > 60 * options.minutes:
                    print(f"{results.path}: the same command resumes")
                    return UNFINISHED
    except (WorkerError, UserError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"wrote {results.path}")
    if options.write:
        write_tables()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
