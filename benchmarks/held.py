"""Runs main.py and reports in a file how much memory the C library has handed out to it.

    python -m benchmarks.held FILE FLAGS...

The process's resident memory is larger: with the allocator settings of `parallel.cpu` it keeps what
was freed.
"""

import ctypes
import mmap
import runpy
import struct
import sys
import threading
import time
from pathlib import Path

_FIELDS = (
    *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
    *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
)


class _Mallinfo2(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in _FIELDS]


def read(path: Path) -> int:
    """Returns the bytes in use that the file reports; 0 before the first report."""
    data = path.read_bytes() if path.exists() else b""
    return struct.unpack("<Q", data)[0] if len(data) == 8 else 0


def _report(path: Path) -> None:
    mallinfo2 = ctypes.CDLL(None).mallinfo2  # glibc from 2.33 on
    mallinfo2.restype = _Mallinfo2
    path.write_bytes(bytes(8))
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 8) as view:
        while True:
            found = mallinfo2()
            view[:] = struct.pack("<Q", found.uordblks + found.hblkhd)
            time.sleep(0.25)


if __name__ == "__main__":
    main = Path(__file__).resolve().parents[1] / "main.py"
    threading.Thread(target=_report, args=(Path(sys.argv[1]),), daemon=True).start()
    sys.argv = [str(main), *sys.argv[2:]]
    runpy.run_path(str(main), run_name="__main__")
