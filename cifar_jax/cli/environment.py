"""JAX's own environment variables, most of which every mode obeys. Imports no JAX."""

import logging
import os

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
