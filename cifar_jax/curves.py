"""Curves for TensorBoard, written without TensorFlow."""

import sys
import time
from pathlib import Path
from typing import Any

# tensorboardX imports PyTorch where it finds it, which takes seconds and serves nothing here.
_had_torch = "torch" in sys.modules
if not _had_torch:
    sys.modules["torch"] = None  # type: ignore[assignment]
try:
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto.event_pb2 import Event, SessionLog
    from tensorboardX.summary import scalar
finally:
    if not _had_torch:
        del sys.modules["torch"]


class Curves:
    """An event file of one start of a run.

    Not tensorboardX's SummaryWriter: its thread dies of a full disk and then blocks the run. Here
    a write that fails raises OSError.
    """

    def __init__(self, folder: Path, step: int):
        """Opens a file that replaces, from after `step` on, what earlier starts wrote."""
        folder.mkdir(exist_ok=True)
        self._writer = EventsWriter(str(folder / "events"))
        if step:
            self._add(step=step + 1, session_log=SessionLog(status=SessionLog.START))

    def write(self, step: int, values: dict[str, float]) -> None:
        """Adds a point to each of the named curves."""
        for name, value in values.items():
            self._add(step=step, summary=scalar(name, value))
        self._writer.flush()

    def close(self) -> None:
        """Ends the file."""
        self._writer.close()

    def _add(self, **fields: Any) -> None:
        self._writer.write_event(Event(wall_time=time.time(), **fields))
