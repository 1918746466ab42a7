"""The signals that ask a run to stop. Imports no JAX."""

import contextlib
import errno
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any

# `timeout` and some schedulers send a signal twice at once, to the process and to its group.
_SAME_SIGNAL = 0.1  # seconds


class Signals:
    """Notes the signals that end a program, so that a run can save and end between two steps.

    These are Ctrl-C's, `kill`'s, a closed terminal's, and those that SLURM, Grid Engine and
    `ulimit -t` send as a warning. One that the program was started to ignore, as `nohup` does with
    SIGHUP, is still ignored. SIGQUIT (Ctrl-\\) is left alone: it ends a program that hangs.

    While there is nothing to save, a signal raises SystemExit. Once `defer` has been called, the
    first signal only sets `received`. A second one always ends the process at once, from a thread:
    Python's handlers wait for the end of a compiled program or of a compilation. After the `with`
    block of a run that a signal has ended, the system's own handlers are in place.
    """

    # 128 and the signal's number, as a shell reports it.
    EXIT_CODES: Mapping[int, int] = {
        number: 128 + number
        for number in map(
            int,
            (
                *(signal.SIGINT, signal.SIGTERM, signal.SIGHUP),
                *(signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU),
            ),
        )
    }

    def __init__(self) -> None:
        self.received: int | None = None
        self._deferred = False
        self._old: dict[int, Any] = {}

    def __enter__(self) -> "Signals":
        reading, self._writing = os.pipe()
        os.set_blocking(self._writing, False)
        self._old_writing = signal.set_wakeup_fd(self._writing, warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._watch, args=(reading,), daemon=True)
        self._thread.start()
        for number in self.EXIT_CODES:
            if signal.getsignal(number) != signal.SIG_IGN:
                self._old[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            # Python's own handler would print a traceback while the interpreter shuts down.
            keep = self.received is None and handler is not None  # None: it was not set by Python
            signal.signal(number, handler if keep else signal.SIG_DFL)
        signal.set_wakeup_fd(self._old_writing)
        os.close(self._writing)
        self._thread.join()

    def defer(self) -> None:
        """From now on the run looks at `received` between its steps."""
        self._deferred = True

    def end(self) -> None:
        """From now on there is nothing to save; a signal that has come already ends the program."""
        self._deferred = False
        if self.received is not None:
            raise SystemExit(self.EXIT_CODES[self.received])

    def exit_code(self, number: int) -> int:
        """Returns the exit code of a run that was saved because of a signal.

        Raises:
          BrokenPipeError: the signal is SIGPIPE, which stands for `Logs.unread`.
        """
        if number == signal.SIGPIPE:
            raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
        return self.EXIT_CODES[number]

    def _note(self, number: int, _: object) -> None:
        if self.received is not None:
            return
        self.received = number
        words = "saving, then stopping" if self._deferred else "stopped"
        with contextlib.suppress(OSError):
            # Not print: the signal may have interrupted one.
            os.write(2, f"\n{signal.Signals(number).name}: {words}\n".encode())
        if not self._deferred:
            raise SystemExit(self.EXIT_CODES[number])

    def _watch(self, reading: int) -> None:
        """Reads the numbers of the signals that arrive; ends the process at the second one."""
        first = 0.0
        with open(reading, "rb", buffering=0) as pipe:
            while number := pipe.read(1):
                code = self.EXIT_CODES.get(number[0])
                # Past the limit of its time, the system sends SIGXCPU again in every second.
                if not code or (first and number[0] == signal.SIGXCPU):
                    continue
                first = first or time.monotonic()
                if time.monotonic() - first > _SAME_SIGNAL:
                    os._exit(code)


class Interrupts(Signals):
    """The same for a program that goes on after the run, such as a notebook.

    Only Ctrl-C is noted, and it raises KeyboardInterrupt: at once while there is nothing to save,
    otherwise when it comes a second time. In another thread than the main one nothing is noted.
    """

    def __enter__(self) -> "Interrupts":
        if threading.current_thread() is threading.main_thread():
            self._old[signal.SIGINT] = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def end(self) -> None:
        """From now on there is nothing to save; an interrupt that has come already is raised."""
        self._deferred = False
        if self.received is not None:
            raise KeyboardInterrupt

    def _note(self, number: int, _: object) -> None:
        if self.received is not None or not self._deferred:
            raise KeyboardInterrupt
        self.received = number
        with contextlib.suppress(OSError, RuntimeError):  # it may have interrupted another print
            print("interrupted: saving, then stopping", file=sys.stderr, flush=True)
