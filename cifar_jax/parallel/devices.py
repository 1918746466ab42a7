"""JAX's devices: their setup, the mesh that they form, and arrays on that mesh."""

import functools
import logging
import os
import re
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from cifar_jax.errors import UserError
from cifar_jax.parallel import cpu, environment, programs

_log = logging.getLogger(__name__)

# The process that has used JAX's devices, which those forked from it cannot.
_user: int | None = None


def check_not_forked() -> None:
    """Raises UserError in a process that was forked from one that uses JAX; it would hang."""
    if _user not in (None, os.getpid()):
        raise UserError(
            "this process was forked from one that uses JAX, whose threads are missing here: "
            'start it by multiprocessing.get_context("spawn") instead'
        )


def configure_jax(
    batch_size: int | None = None, num_cpu_devices: int | None = None, deterministic: bool = False
) -> None:
    """Sets JAX up for this process: CPU devices, threads and the persistent compilation cache.

    On a CPU several single-threaded devices are faster than one with several threads. Must be
    called before JAX starts its backend; afterwards it changes nothing, and says so if the devices
    are not those asked for.

    Args:
      batch_size: images that the devices must share evenly; None: no such condition.
      num_cpu_devices: devices that a CPU is divided into; None: JAX_NUM_CPU_DEVICES if it is set,
        else the largest number, up to the cores, that divides the batch and leaves a GiB of memory
        for each device.
      deterministic: whether a GPU must always give the same bits; a CPU always does.
    """
    check_not_forked()
    environment.say_what_changes_numbers()
    config: Any = jax.config
    if num_cpu_devices is None and config.jax_num_cpu_devices < 1:
        num_cpu_devices = _forced_devices() or cpu.default_num_devices(batch_size)
    try:
        if num_cpu_devices is not None:
            jax.config.update("jax_num_cpu_devices", num_cpu_devices)
    except RuntimeError:  # the backend is already running
        _say_started(num_cpu_devices, deterministic)
    if config.jax_num_cpu_devices > 1:
        _add_xla_flag("xla_cpu_multi_thread_eigen=false")
        # Otherwise XLA ends the process when one device waits 40 seconds for another, which happens
        # when many programs share the cores or this one was paused.
        _add_xla_flag("xla_cpu_collective_call_terminate_timeout_seconds=1000000")
    if deterministic:
        _add_xla_flag("xla_gpu_deterministic_ops=true")
    programs.use_cache()


@functools.cache  # once in a process
def _say_started(wanted: int | None, deterministic: bool) -> None:
    """Warns that JAX was started before, if it was started otherwise than this program would."""
    found = jax.local_device_count()
    if jax.default_backend() == "cpu" and found != wanted:
        _log.warning(
            "JAX was already started with %d CPU device%s, so this runs on %d and not on %s: to "
            "change that, start Python again, and use JAX only after cifar_jax or set "
            "JAX_NUM_CPU_DEVICES=%s before",
            *(found, "s" if found > 1 else "", found, wanted, wanted),
        )
    if deterministic and jax.default_backend() == "gpu":
        _log.warning("JAX was already started, so deterministic=True has no effect on its GPUs")


def _add_xla_flag(flag: str) -> None:
    """Sets a flag that XLA reads when its backend starts, unless the user has set it."""
    flags = os.environ.get("XLA_FLAGS", "")
    if flag.partition("=")[0] not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} --{flag}".strip()


def _forced_devices() -> int | None:
    """Returns the number of CPU devices that XLA's own flag sets, if it does."""
    flag = re.search(r"xla_force_host_platform_device_count=(\d+)", os.environ.get("XLA_FLAGS", ""))
    return int(flag[1]) if flag else None


def jit_once(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compiles a function that runs once; on a CPU with little optimization.

    The code for each array's random numbers is long: compiling the initial weights of a ResNet-20
    takes a third of the time this way. Drawing them takes hundredths of a second either way and
    gives the same bits.
    """
    is_cpu = jax.default_backend() == "cpu"
    return jax.jit(
        function, compiler_options={"xla_backend_optimization_level": 1} if is_cpu else None
    )


def make_mesh(batch_size: int | None = None, num_seeds: int = 1) -> Mesh:
    """Returns a mesh with the axes "seed" and "data".

    If there is one process and the number of its devices divides the number of seeds, each device
    trains its own seeds and exchanges nothing; otherwise all devices share each seed's batch.

    Args:
      batch_size: images per step, shared by the devices of all processes. None: a mesh of this
        process's own devices.
      num_seeds: the number of seeds that one program trains.

    Raises:
      UserError: there is no device, the devices do not divide the batch, or this process was
        forked from one that uses JAX.
    """
    global _user
    check_not_forked()
    _user = os.getpid()
    try:
        members = jax.local_devices() if batch_size is None else jax.devices()
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0] or "there are none"
        raise UserError(
            f"JAX cannot use its devices ({reason}): check JAX_PLATFORMS and the installation"
        ) from error
    num_devices = len(members)
    # A process writes the states of all seeds, so it must hold them.
    rows = num_devices if num_seeds % num_devices == 0 and jax.process_count() == 1 else 1
    if batch_size is not None and batch_size % (num_devices // rows):
        raise UserError(
            f"a batch of {batch_size} images cannot be shared evenly by {num_devices} devices: "
            f"set --config.batch_size to a multiple of {num_devices}, or use fewer devices"
        )
    shape, kinds = (rows, num_devices // rows), (AxisType.Auto,) * 2
    return jax.make_mesh(shape, ("seed", "data"), axis_types=kinds, devices=members)


def replicate(mesh: Mesh, tree: Any) -> Any:
    """Returns a tree of arrays, whole on every device."""
    return put(mesh, tree, PartitionSpec())


def put(mesh: Mesh, tree: Any, spec: PartitionSpec) -> Any:
    """Returns a tree of arrays, which are the same in every process, divided over the mesh."""
    sharding = NamedSharding(mesh, spec)

    def place(array: Any) -> jax.Array:
        if mesh.is_multi_process and jax.dtypes.issubdtype(array.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(place(jax.random.key_data(array)))
        if not mesh.is_multi_process:
            return jax.device_put(array, sharding)
        host = np.asarray(array)
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    return jax.tree.map(place, tree)


def abstract_arrays(mesh: Mesh, shapes: Any, spec: PartitionSpec | None = None) -> Any:
    """Returns the `jax.ShapeDtypeStruct`s of a tree with their sharding; by default replicated."""
    sharding = NamedSharding(mesh, spec or PartitionSpec())
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes
    )


def describe_devices() -> str:
    """Returns a description such as "2 CPU devices" or "8 TPU V4 devices in 4 processes"."""
    kinds = {device.device_kind for device in jax.devices()}
    count = jax.device_count()
    words = f"{count} {'/'.join(sorted(kinds)).upper()} device{'s' if count > 1 else ''}"
    return words + (f" in {jax.process_count()} processes" if jax.process_count() > 1 else "")
