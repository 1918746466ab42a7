"""The mesh, how arrays lie on it, and how many devices a CPU is divided into."""

import contextlib
import hashlib
import os
import platform
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from cifar_jax import workdir as workdir_lib
from cifar_jax.errors import UserError

# Each device has the training set, the state and its activations to itself: leave many-core hosts
# at a number that pays, and at what they have the memory for.
MAX_DEFAULT_CPU_DEVICES = 16
_BYTES_A_DEVICE = 2**30
_CGROUP = Path("/sys/fs/cgroup")


def configure(
    batch_size: int | None = None, num_cpu_devices: int | None = None, deterministic: bool = False
) -> None:
    """Sets JAX up for this process: CPU devices, threads and the persistent compilation cache.

    Several single-threaded devices on a CPU are faster than one with several threads. To be called
    before JAX starts its backend; afterwards it changes nothing.

    Args:
      batch_size: images that the devices must share evenly; None: any number of devices will do.
      num_cpu_devices: devices wanted on a CPU; None: JAX_NUM_CPU_DEVICES if that is set, else the
        largest number up to the cores that divides the batch and has a GiB of memory for each.
      deterministic: whether a GPU must give the same bits again; a CPU always does.
    """
    config: Any = jax.config
    if num_cpu_devices is None and config.jax_num_cpu_devices < 1:
        num_cpu_devices = _forced_devices() or _default_devices(batch_size)
    with contextlib.suppress(RuntimeError):  # the backend runs already
        if num_cpu_devices is not None:
            jax.config.update("jax_num_cpu_devices", num_cpu_devices)
    if config.jax_num_cpu_devices > 1:
        _add_xla_flag("xla_cpu_multi_thread_eigen=false")
        # Else XLA ends the process when one device waits 40 seconds for another, which happens
        # where many programs share the cores or this one was paused.
        _add_xla_flag("xla_cpu_collective_call_terminate_timeout_seconds=1000000")
    if deterministic:
        _add_xla_flag("xla_gpu_deterministic_ops=true")
    if config.jax_compilation_cache_dir is None and (folder := compilation_cache()):
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def _add_xla_flag(flag: str) -> None:
    """Sets a flag that XLA reads when its backend starts; what the user has set stands."""
    flags = os.environ.get("XLA_FLAGS", "")
    if flag.partition("=")[0] not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} --{flag}".strip()


def _forced_devices() -> int | None:
    """What XLA's own flag for the number of CPU devices says, if it is set."""
    flag = re.search(r"xla_force_host_platform_device_count=(\d+)", os.environ.get("XLA_FLAGS", ""))
    return int(flag[1]) if flag else None


def _default_devices(batch_size: int | None) -> int:
    most = min(_num_cores(), MAX_DEFAULT_CPU_DEVICES, host_memory() // _BYTES_A_DEVICE)
    counts = range(1, max(1, most) + 1)
    return max(n for n in counts if batch_size is None or batch_size % n == 0)


def _num_cores() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def host_memory() -> int:
    """Returns how many bytes of memory this host has, or its container may use."""
    sizes = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for file in ("memory.max", "memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):  # no such file, or "max"
            sizes.append(int((_CGROUP / file).read_text()))
    return min(sizes)


def jit_once(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compiles a function that runs once: on a CPU with little optimization.

    The code for each array's random numbers is long: the first weights of a ResNet-20 compile in a
    third of the time, to the same bits, and are drawn in hundredths of a second either way.
    """
    is_cpu = jax.default_backend() == "cpu"
    return jax.jit(
        function, compiler_options={"xla_backend_optimization_level": 1} if is_cpu else None
    )


def compilation_cache() -> Path | None:
    """Returns the user's folder for compiled programs, made if needed; None without a home."""
    try:
        if (home := workdir_lib.cache_folder()) is None:
            return None
        # Programs compiled for one processor may not run on another: one folder for each kind.
        processor = hashlib.sha256(_processor().encode()).hexdigest()[:8]
        folder = home / f"xla-{processor}"
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return folder if os.access(folder, os.W_OK) else None


def _processor() -> str:
    fields = ("model name", "flags", "Features", "CPU ")  # the last two: of ARM
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return "".join(sorted({line for line in lines if line.startswith(fields)}))
    except OSError:
        return platform.processor() or platform.machine()


def make_mesh(batch_size: int | None = None, num_seeds: int = 1) -> Mesh:
    """Returns a mesh with the axes "seed" and "data".

    Where the devices of a single process divide the seeds, each has seeds of its own and exchanges
    nothing with the others; else all of them share the batch of each seed.

    Args:
      batch_size: of training, in which the devices of all processes share each batch. None: the
        mesh of the devices of this process, for what it does alone.
      num_seeds: runs that are trained in one program.

    Raises:
      UserError: there is no device, or the devices do not divide the batch.
    """
    try:
        members = jax.local_devices() if batch_size is None else jax.devices()
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0] or "there are none"
        raise UserError(
            f"JAX cannot use its devices ({reason}): look at JAX_PLATFORMS and at the installation"
        ) from error
    num_devices = len(members)
    # A process writes the states of all seeds, so it must have them.
    rows = num_devices if num_seeds % num_devices == 0 and jax.process_count() == 1 else 1
    if batch_size is not None and batch_size % (num_devices // rows):
        raise UserError(
            f"a batch of {batch_size} images cannot be shared evenly by {num_devices} devices: "
            f"set --config.batch_size to a multiple of {num_devices}, or use fewer devices"
        )
    shape, kinds = (rows, num_devices // rows), (AxisType.Auto,) * 2
    return jax.make_mesh(shape, ("seed", "data"), axis_types=kinds, devices=members)


def replicate(mesh: Mesh, tree: Any) -> Any:
    """Returns the arrays of a tree, whole on every device."""
    return put(mesh, tree, PartitionSpec())


def put(mesh: Mesh, tree: Any, spec: PartitionSpec) -> Any:
    """Returns the arrays of a tree (the same on every host), laid on the mesh."""
    sharding = NamedSharding(mesh, spec)

    def place(array: Any) -> jax.Array:
        if mesh.is_multi_process and jax.dtypes.issubdtype(array.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(place(jax.random.key_data(array)))
        if not mesh.is_multi_process:
            return jax.device_put(array, sharding)
        host = np.asarray(array)
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    return jax.tree.map(place, tree)


def abstract(mesh: Mesh, shapes: Any, spec: PartitionSpec | None = None) -> Any:
    """Returns the `jax.ShapeDtypeStruct`s of a tree with a place on the mesh, whole by default."""
    sharding = NamedSharding(mesh, spec or PartitionSpec())
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes
    )


def describe() -> str:
    """Returns words for the devices, such as "2 CPU devices" or "8 ... in 4 processes"."""
    kinds = {device.device_kind for device in jax.devices()}
    count = jax.device_count()
    words = f"{count} {'/'.join(sorted(kinds)).upper()} device{'s' if count > 1 else ''}"
    return words + (f" in {jax.process_count()} processes" if jax.process_count() > 1 else "")
