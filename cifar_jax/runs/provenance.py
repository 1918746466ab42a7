"""What a result depends on besides its config: versions, machine, commit, command."""

import contextlib
import os
import platform
import socket
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

_PACKAGES = (
    *("cifar_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "clu"),
    *("ml-collections", "tensorflow-datasets", "numpy"),
)

# The beginnings of the names of variables by which what is computed may change.
_VARIABLES = ("JAX_", "XLA_", "LIBTPU_INIT_ARGS", "NVIDIA_TF32_OVERRIDE")


def versions() -> dict[str, str]:
    """Returns the versions of Python and of the packages that a result depends on."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def environment() -> dict[str, Any]:
    """Returns the time, the versions, the machine, the commit, this process's command, and the
    variables of its environment that JAX and XLA read.
    """
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions(),
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "host": socket.gethostname(),
        "commit": commit(),
        "command": sys.argv,
        "variables": {x: y for x, y in sorted(os.environ.items()) if x.startswith(_VARIABLES)},
    }


def _processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Returns the processor's name and its widest vector instructions, as Linux reports them."""
    fields: dict[str, str] = {}
    with contextlib.suppress(OSError):
        for line in cpuinfo.read_text().splitlines():
            name, _, value = line.partition(":")
            fields.setdefault(name.strip(), value.strip())
    if not (processor := fields.get("model name", "")):
        return platform.processor() or platform.machine()
    flags = fields.get("flags", "").split()
    vectors = [words for flag, words in (("avx512f", "AVX-512"), ("avx2", "AVX2")) if flag in flags]
    return f"{processor} ({vectors[0]})" if vectors else processor


def commit() -> str | None:
    """Returns the commit of this package's checkout, with "+" if files differ; None without one.

    Measurements and the pages generated from them are not compared; a new file in the package or
    among the configs is a difference. Inside another project's repository, which does not track
    this file, there is no commit.
    """
    folder = Path(__file__).parent

    def git(*words: str) -> str:
        command = ["git", *words]
        return subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=10, check=True
        ).stdout.strip()

    measured = (":(top)", *(f":(top,exclude){x}" for x in ("results/*.json", "README.md", "docs")))
    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)
        differing = git("status", "--porcelain", "-uno", "--", *measured)
        code = (":(top)cifar_jax/**.py", ":(top)configs/**.py")
        differing += git("ls-files", "--others", "--exclude-standard", "--", *code)
        return git("rev-parse", "HEAD") + ("+" if differing else "")
    except (OSError, subprocess.SubprocessError):
        return None
