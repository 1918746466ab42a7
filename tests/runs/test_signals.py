"""The signals that ask a run to stop."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cifar_jax.runs import signals as signals_lib


def run(program):
    """Runs a program inside `Signals`; returns its exit code and what it printed."""
    beginning = (
        "import hashlib, os, signal, threading, time\n"
        "from cifar_jax.runs import signals\n"
        "def send(pause):\n"
        "    for number in (signal.SIGTERM, signal.SIGINT):\n"
        "        os.kill(os.getpid(), number); time.sleep(pause)\n"
        "with signals.Signals() as noted:\n"
        "    noted.defer()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", beginning + program],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout


@pytest.mark.parametrize(
    ("number", "code"),
    [
        *((signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)),
        *((signal.SIGUSR1, 138), (signal.SIGUSR2, 140), (signal.SIGXCPU, 152)),
    ],
)
def test_a_signal_ends_the_preparation_and_is_noted_in_the_loop(number, code, capfd):
    signal.signal(number, signal.SIG_DFL)  # it may be ignored: SIGHUP is under nohup
    with pytest.raises(SystemExit) as caught, signals_lib.Signals():
        os.kill(os.getpid(), number)
    assert caught.value.code == code
    with signals_lib.Signals() as signals:
        signals.defer()
        assert signals.received is None
        os.kill(os.getpid(), number)
        assert signals.received == number
    assert signal.getsignal(number) == signal.SIG_DFL
    name = signal.Signals(number).name
    assert capfd.readouterr().err == f"\n{name}: stopped\n\n{name}: saving, then stopping\n"


def test_a_second_signal_ends_a_call_that_does_not_return():
    """Python's own handlers wait for such a call, as they do for a step or a compilation by XLA."""
    program = (
        "    threading.Thread(target=send, args=(1,), daemon=True).start()\n"
        "    hashlib.pbkdf2_hmac('sha256', b'', b'', 2**31 - 1); print('still here')\n"
    )
    assert run(program) == (130, "")


def test_the_limit_of_cpu_time_is_a_warning_however_often_it_comes():
    """The system repeats SIGXCPU in every second until the hard limit; another signal counts."""
    limited = (
        "    import resource\n"
        "    resource.setrlimit(resource.RLIMIT_CPU, (1, 60))\n"
        "    begin = time.process_time()\n"
        "    while time.process_time() - begin < 2.4: pass\n"
    )
    assert run(limited + "print(noted.received)\n") == (0, f"{int(signal.SIGXCPU)}\n")
    assert run(limited + "    send(0.5)\n    print('still here')\n") == (143, "")


def test_a_signal_sent_twice_at_once_is_one():
    """`timeout` sends it to the process and to its group."""
    program = "    send(0); time.sleep(0.5); print(noted.received)\n"
    assert run(program) == (0, f"{int(signal.SIGTERM)}\n")


def test_a_signal_during_shutdown_prints_no_traceback():
    """After a signal the system's handlers are in place, without one the earlier handlers."""
    program = "    send(0)\nos.kill(os.getpid(), signal.SIGINT); print('still here')\n"
    assert run(program) == (-signal.SIGINT, "")
    before = signal.getsignal(signal.SIGINT)
    with signals_lib.Signals():
        pass
    assert signal.getsignal(signal.SIGINT) is before


def test_a_signal_that_nohup_ignores_is_still_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals_lib.Signals() as signals:
            os.kill(os.getpid(), signal.SIGHUP)
            assert signals.received is None
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
