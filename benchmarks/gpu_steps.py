"""The train steps of a config on a device: timed, profiled, and in variants side by side."""

import gzip
import json
import re
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from benchmarks.gpu_ahead import Instruction, read_computations
from benchmarks.racer import Racer
from cifar_jax.optim import build
from cifar_jax.training import program as program_lib
from cifar_jax.training import step as step_lib

MOST_PROFILED = 10
TURNS = 5
# Of XLA: what is put into CUDA graphs, which the device starts at once.
_BUFFER = "xla_gpu_enable_command_buffer"
_ALL_BUT_LOOPS = (
    "FUSION,CUBLAS,CUBLASLT,CUSTOM_CALL,CUDNN,CONVOLUTION,DYNAMIC_SLICE_FUSION,CONDITIONAL"
)
# Kernels in CUDA graphs do not say which instruction they are.
_NO_BUFFERS: Any = {_BUFFER: ""}


class Variant(NamedTuple):
    """A way to compile the steps.

    Attributes:
      options: of XLA, for this program alone.
      static: whether XLA knows the number of steps, as in a run on an accelerator.
      last: whether parameters that are not trained to the end have no gradient any more.
      pooling: whether max pooling's gradient is XLA's own.
    """

    options: dict[str, Any] = {}  # noqa: RUF012  (never changed)
    static: bool = True
    last: bool = True
    pooling: bool = False


VARIANTS = {
    "as at the end of a run": Variant(),
    "as at its beginning": Variant(last=False),
    "XLA's max pooling": Variant(pooling=True),
    "length not known": Variant(static=False),
    "no command buffers": Variant(_NO_BUFFERS),
    "command buffers with convolutions": Variant({_BUFFER: _ALL_BUT_LOOPS}),
    "the same, with loops": Variant({_BUFFER: f"{_ALL_BUT_LOOPS},WHILE"}),
    "latency hiding": Variant({"xla_gpu_enable_latency_hiding_scheduler": True}),
}


class Steps:
    """The steps of a run, ready to be compiled and called, `number` of them at once."""

    def __init__(self, racer: Racer):
        """Lays state and images on the devices; compiles what makes the state."""
        self._racer = racer
        with jax.set_mesh(racer.mesh):
            self._key, feed = racer.lay(0)
            self.number = feed.capacity
            self._inputs = feed(0, self.number)
            self._start = racer.begin(self._key)

    def lower(self, variant: Variant) -> jax.stages.Lowered:
        """Returns the program of a variant, not compiled yet."""
        racer, dataset, durations = self._racer, self._racer.dataset, self._racer.durations
        optimizer = build.create_optimizer(racer.config, durations)
        parts = (racer.model, optimizer, racer.config, dataset.mean, dataset.std)
        first_step = durations.total - 1 if variant.last else 0
        # A new function each time: of an equal one JAX would find the trace, with other pooling.
        step = step_lib.make_train_step(*parts, durations.steps_per_epoch, first_step)
        length = self.number if variant.static else None
        program = program_lib.compile_train(step, racer.mesh, resident=True, length=length)
        with jax.set_mesh(racer.mesh), _pooling(racer) if variant.pooling else nullcontext():
            return program.lower(self._start, *self._inputs, self.number, self._key)

    def start(self, compiled: jax.stages.Compiled) -> Callable[[int], float]:
        """Returns the function from a number of steps to the seconds that they take.

        Each call continues where the one before ended.
        """
        current = jax.tree.map(jnp.copy, self._start)

        def call(number: int) -> float:
            nonlocal current
            begun = time.perf_counter()
            current, _ = jax.block_until_ready(compiled(current, *self._inputs, number, self._key))
            return time.perf_counter() - begun

        return call


@contextmanager
def _pooling(racer: Racer) -> Iterator[None]:
    """Gives the model XLA's max pooling while it is traced."""
    module: Any = sys.modules[type(racer.model).__module__]
    own, module.max_pool = module.max_pool, nn.max_pool
    try:
        yield
    finally:
        module.max_pool = own


def profile(racer: Racer, folder: Path) -> dict[str, Any]:
    """Returns what ten steps at the end of a run spend their time in, kernel by kernel.

    "ms_a_step" is without profiling. The trace stays in the folder, for other programs to show.
    """
    steps = Steps(racer)
    number = min(MOST_PROFILED, steps.number)
    plain = steps.start(steps.lower(Variant()).compile())
    plain(steps.number)
    seconds = [plain(steps.number) / steps.number for _ in range(TURNS)]
    unbuffered = _NO_BUFFERS if jax.default_backend() == "gpu" else None
    compiled = steps.lower(Variant(static=False)).compile(compiler_options=unbuffered)
    traced = steps.start(compiled)
    traced(number)
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level, options.host_tracer_level = 0, 1
    jax.profiler.start_trace(str(folder), profiler_options=options)
    try:
        traced(number)
    finally:
        jax.profiler.stop_trace()
    path = max(folder.glob("**/*.trace.json.gz"), key=lambda path: path.stat().st_mtime)
    trace = json.loads(gzip.decompress(path.read_bytes()))
    row = summarize(read_trace(trace), compiled.as_text() or "", number)
    return {"ms_a_step": 1e3 * statistics.median(seconds), "num_steps": number} | row


class Event(NamedTuple):
    """A kernel's run on the device: its start and length in microseconds, and its names."""

    start: float
    length: float
    kernel: str
    instruction: str


def read_trace(trace: dict[str, Any]) -> list[Event]:
    """Returns the kernels of a trace in order; on a CPU, the instructions that say their name."""
    events = trace["traceEvents"]
    names: dict[tuple[str, Any, Any], str] = {}
    for event in events:
        if event.get("ph") == "M" and event["name"].endswith("_name"):
            names[event["name"], event.get("pid"), event.get("tid")] = event["args"]["name"]
    processes = {pid: name for (kind, pid, _), name in names.items() if kind == "process_name"}
    on_gpu, on_host = [], []
    for event in events:
        if event.get("ph") != "X":
            continue
        instruction = event.get("args", {}).get("hlo_op", "")
        found = Event(event["ts"], event["dur"], event["name"], instruction)
        if "GPU" in processes.get(event["pid"], ""):
            if names.get(("thread_name", event["pid"], event["tid"]), "").startswith("Stream"):
                on_gpu.append(found)
        elif instruction:
            on_host.append(found)
    return sorted(on_gpu or on_host)


def summarize(events: list[Event], text: str, number: int) -> dict[str, Any]:
    """Returns the kernels by the time that they take, and how long the device was busy.

    Args:
      events: of the steps, in order.
      text: of their program, in HLO's notation.
      number: of the steps.
    """
    if not events:
        raise ValueError("the trace holds no kernels")
    known = {one.name: one for each in read_computations(text).values() for one in each}
    # XLA's own kernels are called like their instruction, should the trace not tell that.
    by_kernel = {re.sub(r"\W", "_", name): name for name in known}
    groups: dict[tuple[str, str], list[float]] = defaultdict(list)
    end, busy = events[0].start, 0.0
    for start, length, kernel, instruction in events:
        instruction = instruction or by_kernel.get(re.sub(r"\W", "_", kernel), "")
        groups[instruction, kernel].append(length)
        busy += max(0.0, start + length - max(start, end))
        end = max(end, start + length)
    rows: list[dict[str, Any]] = []
    for (instruction, kernel), lengths in groups.items():
        one = known.get(instruction, Instruction(instruction, "", "", "", 0, ""))
        rows.append(
            {
                "us_a_step": sum(lengths) / number,
                "calls_a_step": len(lengths) / number,
                "gb_a_second": one.num_bytes / (1e3 * statistics.fmean(lengths) or 1),
                "instruction": instruction,
                "kernel": kernel[:120],
                "shape": one.shape[:90],
                "origin": one.origin,
            }
        )
    rows.sort(key=lambda row: -row["us_a_step"])
    return {
        "span_us_a_step": (end - events[0].start) / number,
        "busy_us_a_step": busy / number,
        "kernels_a_step": len(events) / number,
        "kernels": rows,
    }


def format_profile(row: dict[str, Any], most: int = 20) -> str:
    """Returns the longest kernels of `profile` as a table."""
    lines = [
        f"{row['ms_a_step']:.3f} ms a step; profiled: {row['span_us_a_step'] / 1e3:.3f}, busy "
        f"{row['busy_us_a_step'] / 1e3:.3f}, {row['kernels_a_step']:.0f} kernels",
        " us/step calls   GB/s  instruction                      shape                  origin",
    ]
    lines += [
        f"{one['us_a_step']:8.1f} {one['calls_a_step']:5.1f} {one['gb_a_second']:6.0f}  "
        f"{one['instruction'] or one['kernel']:32.32} {one['shape']:22.22} {one['origin'][-60:]}"
        for one in row["kernels"][:most]
    ]
    return "\n".join(lines)


def time_variants(racer: Racer, turns: int = TURNS) -> dict[str, list[float]]:
    """Returns the milliseconds a step of each variant, one number for each turn."""
    steps = Steps(racer)
    has_pooling = hasattr(sys.modules[type(racer.model).__module__], "max_pool")
    wanted = {name: one for name, one in VARIANTS.items() if has_pooling or not one.pooling}
    lowered = [steps.lower(one) for one in wanted.values()]
    options = [one.options or None for one in wanted.values()]
    with ThreadPoolExecutor(8) as pool:  # what tunes the kernels takes turns by itself
        compiled = pool.map(jax.stages.Lowered.compile, lowered, options)
        calls = dict(zip(wanted, map(steps.start, compiled), strict=True))
    found: dict[str, list[float]] = {name: [] for name in wanted}
    for turn in range(turns + 1):
        for name, call in calls.items():
            seconds = call(steps.number)
            if turn:  # the first one warms up
                found[name].append(1e3 * seconds / steps.number)
    return found
