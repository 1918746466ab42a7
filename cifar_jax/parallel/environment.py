"""JAX's own environment variables, most of which every mode obeys. Imports no JAX."""

import functools
import logging
import os
import re

from cifar_jax.errors import UserError

# Variables under which a run would compute other numbers than the same command without them, or
# would not run at all, with the value of each that changes nothing.
_CHANGING = {
    "JAX_DEFAULT_DEVICE": "",
    "JAX_DEFAULT_DTYPE_BITS": "64",
    "JAX_DEFAULT_PRNG_IMPL": "threefry2x32",
    "JAX_DISABLE_JIT": "0",
    "JAX_ENABLE_X64": "0",
    "JAX_NO_EXECUTION": "0",
    "JAX_NO_TRACING": "0",
    "JAX_NUMPY_DTYPE_PROMOTION": "standard",
    "JAX_NUMPY_RANK_PROMOTION": "allow",
    "JAX_RANDOM_SEED_OFFSET": "0",
    "JAX_THREEFRY_PARTITIONABLE": "1",
    "JAX_TRANSFER_GUARD": "allow",
    "JAX_TRANSFER_GUARD_DEVICE_TO_DEVICE": "allow",
    "JAX_TRANSFER_GUARD_DEVICE_TO_HOST": "allow",
    "JAX_TRANSFER_GUARD_HOST_TO_DEVICE": "allow",
}
# Variables that are kept though they change numbers, because that is what they are for, with the
# value of each that changes nothing.
_KEPT = {
    "JAX_ACCURATE_ERF_INV": None,
    "JAX_ALLOW_F16_REDUCTIONS": "0",
    "JAX_DEFAULT_MATMUL_PRECISION": "default",
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "0",
    "JAX_EXEC_TIME_OPTIMIZATION_EFFORT": "0.0",
    "JAX_HIGH_DYNAMIC_RANGE_GUMBEL": "0",
    "JAX_OPTIMIZATION_LEVEL": None,
    "JAX_SOFTMAX_CUSTOM_JVP": "1",
    "JAX_USE_DIRECT_LINEARIZE": "1",
    "JAX_USE_HLO_LOGISTIC_LOWERING": None,
    "JAX_USE_SHARDY_PARTITIONER": "1",
    "NVIDIA_TF32_OVERRIDE": None,
}
# Flags of XLA that change no numbers: the number of devices, what is written, how long is waited.
_XLA_KEPT = re.compile(
    "--xla_(force_host_platform_device_count|dump_|cpu_collective_|gpu_deterministic_ops"
    "|cpu_multi_thread_eigen|hlo_profile|gpu_cuda_data_dir)"
)
# The ways in which JAX writes 0 and 1.
_TRUTH = dict.fromkeys(("true", "t", "yes", "y", "on"), "1")
_TRUTH |= dict.fromkeys(("false", "f", "no", "n", "off"), "0")

_log = logging.getLogger(__name__)


def check_environment() -> None:
    """Removes the variables that would change a run, each with a line; before JAX is imported.

    Raises:
      UserError: JAX's import would fail.
    """
    for name, usual in _CHANGING.items():
        value = os.environ.get(name, usual)
        if _TRUTH.get(value.lower(), value) not in (usual, ""):
            _log.warning("%s=%s is ignored: runs do not depend on it", name, value)
        os.environ.pop(name, None)
    value = os.environ.get("JAX_NUM_CPU_DEVICES", "1")
    if not value.removeprefix("-").isdecimal():
        raise UserError(f"JAX_NUM_CPU_DEVICES is {value!r}: unset it or make it a number")


@functools.cache  # once in a process
def say_what_changes_numbers() -> None:
    """Says which variables are kept though they change numbers, because that is what they are for.

    To be called once JAX has been imported, which refuses wrong values.
    """
    kept = [
        f"{name}={os.environ[name]}"
        for name, usual in _KEPT.items()
        if _TRUTH.get((value := os.environ.get(name, "")).lower(), value) not in ("", usual)
    ]
    flags = os.environ.get("XLA_FLAGS", "").split()
    if flags := [flag for flag in flags if not _XLA_KEPT.match(flag)]:
        kept.append(f"XLA_FLAGS={' '.join(flags)}")
    if kept:
        words = "numbers may differ from those without, and environment.json records it"
        _log.warning("%s: %s", ", ".join(kept), words)
