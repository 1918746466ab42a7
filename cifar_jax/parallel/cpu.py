"""What only a CPU needs: its memory allocator, and the number of devices that it is divided into.

Imports no JAX, because `restart` comes before JAX is imported.
"""

import os
import platform
import re
import sys
from pathlib import Path

from cifar_jax import limits

# A call of the compiled train program takes about this long on a CPU, so that signals are handled
# soon.
CALL_SECONDS = 1.0
# Each device holds the training set, the state and its activations. On hosts with many cores the
# number of devices is limited to what still pays and to what fits in memory.
MAX_DEFAULT_DEVICES = 16
_BYTES_PER_DEVICE = 2**30

# glibc's tunables: use huge pages; take blocks below 32 MiB (the most that all versions allow) from
# the heaps, and keep freed ones there for the next call. Larger blocks, a call's activations, are
# mapped and returned: in a heap, small blocks would take their places and the next call would need
# as much memory again (14 GB where 6 are enough for a speedrun). Each thread has its own heap: with
# a common one the devices' threads wait for each other, the longer the more fragments a compilation
# has left there (a step of ResNet-20 took 1.4 times as long).
ALLOCATOR_ENVIRONMENT = {
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=33554432"
    ":glibc.malloc.trim_threshold=68719476736"
}


def restart() -> None:
    """Restarts this program with allocator settings that the C library reads when it starts.

    A step's activations are hundreds of MiB, which XLA allocates again for each call. Returning
    them and getting them again in pages of 4 KiB took a third of the training time on a virtual
    machine. Does nothing if GLIBC_TUNABLES is already set, even to an empty string, or if a
    debugger or profiler watches this program, which would lose its session.
    """
    if "GLIBC_TUNABLES" in os.environ or platform.libc_ver()[0] != "glibc" or not sys.executable:
        return
    if _is_watched():
        return
    environment = os.environ | ALLOCATOR_ENVIRONMENT
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


def _is_watched() -> bool:
    monitoring = getattr(sys, "monitoring", None)  # from Python 3.12 on
    tools = [monitoring.get_tool(number) for number in range(6)] if monitoring else []
    # pdb no longer traces after `continue`: "-m pdb", "-mpdb", ".../pdb.py" or ".../pdb3".
    words = sys.orig_argv[: len(sys.orig_argv) - len(sys.argv)]
    started_by = any(re.fullmatch(r"(-\w*m|.*/)?(i?pdb|pudb)(\.py|[\d.]*)", word) for word in words)
    return bool(started_by or sys.gettrace() or sys.getprofile() or any(tools))


def default_num_devices(batch_size: int | None) -> int:
    """Returns the largest number of devices, up to the cores, that divides the batch.

    Args:
      batch_size: images per step; None: any number divides it.
    """
    most = min(limits.num_cores(), MAX_DEFAULT_DEVICES, limits.host_memory() // _BYTES_PER_DEVICE)
    counts = range(1, max(1, most) + 1)
    return max(n for n in counts if batch_size is None or batch_size % n == 0)


def describe_processor() -> str:
    """Returns the processor's model and instruction sets, which distinguish kinds of processors."""
    fields = ("model name", "flags", "Features", "CPU ")  # the last two are ARM's
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return "".join(sorted({line for line in lines if line.startswith(fields)}))
    except OSError:
        return platform.processor() or platform.machine()
