"""Keeps words off the console that Orbax says of what is told already, and finds short ones."""

import logging
import os
import re
import sys
from typing import Any


def quiet_orbax() -> None:
    """Silences Orbax's log, and what its threads say after a save that has failed.

    It logs its settings as warnings and a failed save at length; what matters, it raises.
    """
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    if getattr(sys.unraisablehook, "__name__", "") != _NAME:
        sys.unraisablehook = _without_closed_loops(sys.unraisablehook)


def reason(error: BaseException) -> str:
    """Returns why a save failed, where it can in the system's words, in one line."""
    # TensorStore's text holds the system's answer among much else.
    number = getattr(error, "errno", None)
    if match := re.search(r"os_error_code='(\d+)'", str(error)):
        number = int(match[1])
    return os.strerror(number) if number else f"{type(error).__name__} {error}".split("\n")[0][:200]


def _without_closed_loops(hook: Any) -> Any:
    def quiet_hook(unraisable: Any) -> None:
        # TensorStore's threads still write when the save, and its event loop, has ended.
        error = unraisable.exc_value
        if not (isinstance(error, RuntimeError) and str(error) == "Event loop is closed"):
            hook(unraisable)

    return quiet_hook


_NAME = "quiet_hook"
