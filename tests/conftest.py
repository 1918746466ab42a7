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


# Not for all tests: BatchNorm multiplies [..., channels] by [channels], as NumPy would.
@pytest.fixture(scope="module")
def _strict_shapes():
    """Lets JAX combine arrays of one rank only: no axis is added unless the code says so."""
    import jax

    with jax.numpy_rank_promotion("raise"):
        yield


# Not for all tests: optax raises a float to the power of an integer count, and bfloat16 is computed
# in float32 where that is more exact.
@pytest.fixture(scope="module")
def _strict_types():
    """Lets JAX combine arrays of one type only: nothing is converted unless the code says so."""
    import jax

    with jax.numpy_dtype_promotion("strict"):
        yield
