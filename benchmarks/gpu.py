"""What only a GPU can show: its numbers beside a CPU's, where its time goes, and its speed.

    python -m benchmarks.gpu --write
    python -m benchmarks.gpu --parts=profile,variants --config=resnet:18

Each part is kept when it is done: in results/bench_gpu.json with `--write`, in another file with
`--output`, else in a temporary one. The same command resumes.

* gradients: pooling, BatchNorm and a whole step against the CPU's, in float32;
* profile: ten steps, kernel by kernel, with the operation that each comes from;
* variants: other ways to compile the steps, in turns;
* throughput: images per second in training, of six nets in bfloat16;
* deterministic: whether two runs, each compiled separately, and a resumed one have the same bits.

A part takes under a minute once XLA has tuned the convolutions. `--quick` is for trying it out.
"""

import argparse
import os
import shutil
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

from benchmarks import gpu_steps, speedrun
from benchmarks.collectives import load_config
from benchmarks.racer import Racer
from benchmarks.workers import ROOT, add_output_flags
from cifar_jax import ops
from cifar_jax.data import datasets
from cifar_jax.errors import UserError
from cifar_jax.evaluation import trained
from cifar_jax.parallel import devices
from cifar_jax.runs import workdir as workdir_lib
from cifar_jax.text import first_line

# Relative differences from a CPU that rounding explains. Muon multiplies in bfloat16.
LIMITS = {
    "max pooling, float32": 0.0,
    "max pooling, bfloat16": 0.0,
    "BatchNorm": 1e-4,
    "a step by SGD": 1e-3,
    "a step of the recipe": 1e-1,
}
_COMPARED_BATCH, _KERNELS_KEPT = 64, 60


def make_racer(options: Any, **fields: Any) -> Racer:
    """Returns the config's runs on random images, in bfloat16 unless `fields` say otherwise."""
    config = load_config(options.config)
    config = speedrun.shrink(config) if options.quick else config
    config.update({"dtype": "bfloat16"} | fields)
    return Racer(config, random_dataset(options.quick))


def random_dataset(quick: bool) -> datasets.Dataset:
    """Returns random images, as many for training as CIFAR-10 has, or a few."""
    dataset = speedrun.random_dataset(640 if quick else 10_000)
    if not quick:
        images, labels = (
            np.resize(x, (50_000, *x.shape[1:])) for x in dataset.splits["train"].arrays
        )
        dataset.splits["train"] = datasets.Split(images, labels)
    return dataset


def gradients(options: Any, results: speedrun.Results, folder: Path) -> Iterator[str]:
    """Compares gradients with a CPU's; yields words."""
    own, cpu = jax.devices()[0], jax.local_devices(backend="cpu")[0]
    found = {}
    for name, function, arguments in _cases(options):
        found[name] = distance(*(run_on(device, function, arguments) for device in (own, cpu)))
        yield f"{name}: {found[name]:.1e} from a CPU's, at most {LIMITS[name]:.0e}"
    if far := [name for name in found if not found[name] <= LIMITS[name]]:
        raise UserError(f"too far from a CPU's: {', '.join(far)}")
    results.found.setdefault("gradients", {})[options.config] = found


def _cases(options: Any) -> Iterator[tuple[str, Callable[..., Any], Any]]:
    """Yields names, functions and arguments of what is compared."""
    rng = np.random.default_rng(0)

    def pool(x: jax.Array, weights: jax.Array) -> jax.Array:
        return jnp.sum(ops.max_pool(x, (2, 2), strides=(2, 2)) * weights)

    def norm(x: jax.Array, scale: jax.Array, bias: jax.Array, weights: jax.Array) -> jax.Array:
        return jnp.sum(ops.normalize_batch(x, scale, bias, 1e-5)[0] * weights)

    for kind in ("float32", "bfloat16"):
        # Few values, so many ties, and an odd size.
        ties = rng.integers(0, 3, (8, 31, 31, 24)).astype(kind)
        weights = rng.standard_normal((8, 15, 15, 24)).astype(kind)
        yield f"max pooling, {kind}", jax.grad(pool), (ties, weights)
    images, weights = rng.standard_normal((2, 8, 15, 15, 64), np.float32)
    scale, bias = rng.standard_normal((2, 64), np.float32)
    yield "BatchNorm", jax.grad(norm, (0, 1, 2)), (images, scale, bias, weights)
    sgd = {"optimizer": {"name": "sgd"}}
    for name, fields in (("a step by SGD", sgd), ("a step of the recipe", {})):
        racer = make_racer(options, dtype="float32", batch_size=_COMPARED_BATCH, **fields)
        with jax.set_mesh(racer.mesh):
            start = jax.device_get(racer.begin(jax.random.key(0)))

        def step(state: Any, batch: Any, key: Any, racer: Racer = racer) -> Any:
            new, _ = racer.step(state, batch, jax.random.wrap_key_data(key))
            return jax.tree.map(jnp.subtract, new.params, state.params)

        rows = np.arange(_COMPARED_BATCH, dtype=np.int32)
        batch = (*(x[: len(rows)] for x in racer.dataset.splits["train"].arrays), rows)
        yield name, step, (start, batch, np.asarray(jax.random.key_data(jax.random.key(1))))


def run_on(device: Any, function: Callable[..., Any], arguments: Any) -> Any:
    """Returns the function's value on a device, computed in whole float32; XLA tunes nothing."""
    arguments = jax.device_put(arguments, device)
    options: Any = {"xla_gpu_autotune_level": 0} if device.platform == "gpu" else None
    with jax.default_matmul_precision("highest"):
        compiled = jax.jit(function).lower(*arguments).compile(compiler_options=options)
    return jax.device_get(compiled(*arguments))


def distance(found: Any, expected: Any) -> float:
    """Returns the largest difference of two trees' arrays, each over the size of its own."""

    def one(a: Any, b: Any) -> Any:
        return np.linalg.norm(np.float64(a) - b) / (np.linalg.norm(np.float64(b)) or 1.0)

    return float(np.max(jax.tree.leaves(jax.tree.map(one, found, expected))))  # NaN stays


def profile(options: Any, results: speedrun.Results, folder: Path) -> Iterator[str]:
    """Profiles ten steps; yields the longest kernels as a table."""
    row = gpu_steps.profile(make_racer(options), folder)
    row["kernels"] = row["kernels"][:_KERNELS_KEPT]
    results.found.setdefault("profile", {})[options.config] = row
    yield gpu_steps.format_profile(row)


def variants(options: Any, results: speedrun.Results, folder: Path) -> Iterator[str]:
    """Times other ways to compile the steps; yields a line for each."""
    found = gpu_steps.time_variants(make_racer(options), turns=2 if options.quick else 5)
    results.found.setdefault("variants", {})[options.config] = found
    for name, each in found.items():
        yield f"{statistics.median(each):8.3f} ms a step ({min(each):.3f}-{max(each):.3f}): {name}"


def throughput(options: Any, results: speedrun.Results, folder: Path) -> Iterator[str]:
    """Measures the nets that are missing; yields words."""
    sizes = {"simple_cnn": 64} if options.quick else speedrun.THROUGHPUT
    seconds = 0.1 if options.quick else speedrun.THROUGHPUT_SECONDS
    yield from speedrun.throughput(results, sizes, random_dataset(options.quick), seconds)


def deterministic(options: Any, results: speedrun.Results, folder: Path) -> Iterator[str]:
    """Makes a run twice, and its second half again; yields words."""
    num_steps = 8
    file, colon, argument = ("digits" if options.quick else options.config).partition(":")

    def start(workdir: str) -> subprocess.Popen:
        fields = [
            *("deterministic=true", f"num_steps={num_steps}", "steps_per_call=3"),
            *(f"checkpoint.every_steps={num_steps // 2}", "eval_every_epochs=0.0"),
            *("test_time.views=plain", "log.report=false", "log.tensorboard=false"),
            f"dtype={'float32' if options.quick else 'bfloat16'}",
        ]
        command = [sys.executable, "main.py", f"--config=configs/{file}.py{colon}{argument}"]
        command += [f"--workdir={folder / workdir}", *(f"--config.{field}" for field in fields)]
        # Compiled again, which must not choose other kernels.
        env = os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "false"}
        pipe = subprocess.PIPE
        return subprocess.Popen(command, cwd=ROOT, env=env, text=True, stdout=pipe, stderr=pipe)

    def finish(*processes: subprocess.Popen) -> None:
        errors = [process.communicate()[1] for process in processes]
        for process, words in zip(processes, errors, strict=True):
            if process.returncode:
                raise UserError(words.strip().rpartition("\n")[2])

    def params(workdir: str) -> list[bytes]:
        leaves = jax.tree.leaves(trained.load(folder / workdir).variables)
        return [np.asarray(leaf).tobytes() for leaf in leaves]

    finish(start("first"), start("second"))
    shutil.copytree(folder / "first", folder / "resumed")
    shutil.rmtree(folder / "resumed" / "checkpoints" / str(num_steps))
    (folder / "resumed" / workdir_lib.RESULT).unlink()
    finish(start("resumed"))
    for workdir in ("second", "resumed"):
        if params(workdir) != params("first"):
            raise UserError(f"the {workdir} run has other bits than the first")
        yield f"the {workdir} run has the same bits as the first"
    results.found.setdefault("deterministic", {})[options.config] = {"num_steps": num_steps}


PARTS = {part.__name__: part for part in (gradients, profile, variants, throughput, deterministic)}


def main(argv: list[str]) -> int:
    """Runs the benchmark; returns the exit code, 1 if a part failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", default=",".join(PARTS), help="in this order: %(default)s")
    parser.add_argument("--config", default="speedrun", help="such as resnet:18 (%(default)s)")
    parser.add_argument("--fresh", action="store_true", help="discard earlier results")
    parser.add_argument("--quick", action="store_true", help="try it at a small scale")
    add_output_flags(parser, "bench_gpu")
    options = parser.parse_args(argv)
    if options.quick and options.write:
        parser.error("--quick measures nothing worth keeping: leave out --write")
    if unknown := set(options.parts.split(",")) - set(PARTS):
        parser.error(f"--parts: {min(unknown)} is not one of {', '.join(PARTS)}")
    try:
        load_config(options.config)
    except UserError as error:
        parser.error(f"--config: {error}")
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # parts start other processes
    devices.configure_jax(_COMPARED_BATCH)
    if not options.quick and jax.default_backend() == "cpu":
        parser.error("there is no GPU here: --quick tries the parts on a CPU")
    folder = ROOT / "results" if options.write else Path(tempfile.gettempdir())
    path = options.output or folder / f"bench_gpu{'_quick' if options.quick else ''}.json"
    results, code = speedrun.Results(path, options.fresh, options.quick), 0
    for part in options.parts.split(","):  # throughput looks for each net by itself
        if part != "throughput" and options.config in results.found.get(part, {}):
            continue
        begun = time.monotonic()
        try:
            with tempfile.TemporaryDirectory() as scratch:
                for words in PARTS[part](options, results, Path(scratch)):
                    results.save()
                    print(words, flush=True)
        except Exception as error:  # the other parts are worth having
            reason = error if isinstance(error, UserError) else first_line(error)
            print(f"error: {part}: {reason}", file=sys.stderr)
            code = 1
        results.save()
        print(f"{part}: {time.monotonic() - begun:.0f} s", flush=True)
    print(f"wrote {path}")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
