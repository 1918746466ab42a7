"""How many cores and how much memory this process may use. Imports no JAX."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

_CGROUP, _MEMBERSHIP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def num_cores() -> int:
    """Returns how many cores this process may use: those it may run on, or its quota of time."""
    known = hasattr(os, "sched_getaffinity")
    counts = [len(os.sched_getaffinity(0)) if known else os.cpu_count() or 1]
    for folder in _control_groups("cpu"):
        for files in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
            with contextlib.suppress(OSError, ValueError):  # no such file, or "max"
                quota, period = map(int, " ".join((folder / x).read_text() for x in files).split())
                if quota > 0 and period > 0:
                    counts.append(max(1, quota // period))
    return min(counts)


def host_memory() -> int:
    """Returns how many bytes of memory this host has, or its container or job may use."""
    sizes = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for folder in _control_groups("memory"):
        for file in ("memory.max", "memory.limit_in_bytes"):
            with contextlib.suppress(OSError, ValueError):  # no such file, or "max"
                sizes.append(int((folder / file).read_text()))
    return min(sizes)


def _control_groups(controller: str) -> Iterator[Path]:
    """Yields the folders of this process's control groups and of their parents, versions 1 and 2.

    The limits of all of them apply: systemd and SLURM set theirs on an outer or inner group.
    """
    own = {"": "", controller: ""}  # in a container the path may be unknown, or be that outside
    with contextlib.suppress(OSError):
        for line in _MEMBERSHIP.read_text().splitlines():
            _, names, path = line.split(":", 2)
            own |= {name: path for name in names.split(",") if name in own}
    for name, path in own.items():
        parts = [part for part in path.split("/") if part not in ("", "..")]
        for count in range(len(parts) + 1):
            yield _CGROUP.joinpath(name, *parts[:count])
