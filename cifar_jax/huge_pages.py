"""Memory in pages of 2 MiB, on Linux."""

import os
import platform
import sys
from pathlib import Path

_SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_TUNABLE = "glibc.malloc.hugetlb"
# With which the C library asks for huge pages where they are there for whoever asks.
ENVIRONMENT = {"GLIBC_TUNABLES": f"{_TUNABLE}=1"}


def restart() -> None:
    """Starts this program anew with huge pages, where they are there for whoever asks for them.

    A step's activations are hundreds of MiB, which XLA allocates for each call. In pages of 4 KiB,
    a virtual machine spent up to a third of a step of vgg_bn on page faults and address
    translation. The C library has to be told before it starts; what the user has told it holds.
    """
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    if _TUNABLE in tunables or platform.libc_ver()[0] != "glibc":
        return
    try:
        on_request = "[madvise]" in _SETTING.read_text()
    except OSError:
        return
    if on_request and sys.executable:
        added = ENVIRONMENT["GLIBC_TUNABLES"]
        environment = os.environ | {"GLIBC_TUNABLES": ":".join(filter(None, [tunables, added]))}
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)
