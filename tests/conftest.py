"""Two virtual CPU devices and caches of the tests' own, before JAX starts."""

import atexit
import logging
import os
import shutil
import signal
import tempfile

import pytest

_cache = tempfile.mkdtemp(prefix="cifar_jax-tests-")
atexit.register(shutil.rmtree, _cache, ignore_errors=True)
os.environ["XDG_CACHE_HOME"] = _cache
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "2")


@pytest.fixture(autouse=True)
def _the_log_as_it_was():
    """Takes back what `main.main` does to the package's logger."""
    log = logging.getLogger("cifar_jax")
    before = (log.handlers, log.propagate, log.level)
    yield
    log.handlers, log.propagate, level = before
    log.setLevel(level)


@pytest.fixture(autouse=True)
def _the_signals_as_they_were():
    """Takes back what a run that a signal has ended leaves."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
    before = {number: signal.getsignal(number) for number in numbers}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
