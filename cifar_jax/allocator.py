"""The C library's memory: kept between calls, the large blocks alone given back, in huge pages."""

import os
import platform
import sys

# glibc's tunables: ask for huge pages; take blocks below 32 MiB, the most that all versions allow
# here, from the heaps, and leave what is freed there for the next call. The larger ones, a call's
# activations, are mapped and given back: in a heap small blocks settle in their places, and the
# next call takes as much again (14 GB where 6 are enough for a speedrun). The threads have heaps
# of their own: in a common one the devices' threads wait for each other, all the longer the more
# pieces a compilation has left there (a step of ResNet-20 took 1.4 times as long).
ENVIRONMENT = {
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=33554432"
    ":glibc.malloc.trim_threshold=68719476736"
}


def restart() -> None:
    """Starts this program anew with these settings, which the C library reads as it starts.

    A step's activations are hundreds of MiB, which XLA asks for anew for each call. To give them
    back and to get them again in pages of 4 KiB took a third of the time of training on a virtual
    machine. Where GLIBC_TUNABLES is set already, even to nothing, that holds.
    """
    if "GLIBC_TUNABLES" in os.environ or platform.libc_ver()[0] != "glibc" or not sys.executable:
        return
    environment = os.environ | ENVIRONMENT
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)
