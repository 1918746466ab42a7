"""The C library's memory, kept between calls and in pages of 2 MiB."""

import os
import platform
import sys

# glibc's tunables: ask for huge pages; take large blocks from the one heap, too (threads with heaps
# of their own would map them anew), and leave what is freed there for the next call.
ENVIRONMENT = {
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1:glibc.malloc.arena_max=1"
    ":glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=68719476736"
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
