"""The surroundings of the tests: two CPU devices, and caches apart from the user's.

What XLA compiles is kept in the user's cache folder, for all workers, for the programs that tests
start, and for the next run. Everything else that a run caches is in a folder that is deleted.
"""

import atexit
import contextlib
import functools
import gc
import hashlib
import importlib.metadata
import logging
import os
import shutil
import signal
import tempfile
import time
from pathlib import Path
from unittest import mock

import pytest

from cifar_jax import files
from cifar_jax.parallel import cpu
from cifar_jax.runs import signals

MOST_DAYS = 30

# Tracing makes many objects that live long, which the collector would look through again and again.
gc.set_threshold(100_000, 50, 100)


def make_folder_of_programs(temporary):
    """Returns the folder of compiled programs for this version of JAX and kind of processor."""
    kind = hashlib.sha256(cpu.describe_processor().encode()).hexdigest()[:8]
    name = f"tests-jax-{importlib.metadata.version('jaxlib')}-{kind}"
    with contextlib.suppress(OSError):
        folder = (files.cache_folder() or Path(temporary)) / name
        folder.mkdir(parents=True, exist_ok=True)
        for path in folder.iterdir():  # programs that are still in use are compiled again
            if path.stat().st_mtime < time.time() - MOST_DAYS * 86_400:
                path.unlink(missing_ok=True)
        return str(folder)
    return temporary


_cache = tempfile.mkdtemp(prefix="cifar_jax-tests-")
atexit.register(shutil.rmtree, _cache, ignore_errors=True)
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = make_folder_of_programs(_cache)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"
os.environ["XDG_CACHE_HOME"] = _cache
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "2")
# Those of `configure_jax`, so that a program is the same whether a test has called it or not.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_cpu_multi_thread_eigen=false "
    "--xla_cpu_collective_call_terminate_timeout_seconds=1000000",
)


@pytest.fixture(autouse=True, scope="session")
def _programs_are_kept_whole():
    """Keeps every compiled program; none is seen by another worker before it is written."""
    import jax
    from jax._src import lru_cache

    def put(cache, key, value):
        path = Path(cache.path) / f"{key}-cache"
        if not path.exists():
            temporary = path.with_name(f".{os.getpid()}-{hashlib.sha256(key.encode()).hexdigest()}")
            temporary.write_bytes(value)
            temporary.replace(path)

    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    with mock.patch.object(lru_cache.LRUCache, "put", put):
        yield


@functools.lru_cache(maxsize=1)  # only where the last test had it otherwise
def optimize_little(wanted):
    import jax

    jax.config.update("jax_disable_most_optimizations", wanted)
    jax.clear_caches()


@pytest.hookimpl(tryfirst=True)  # before the fixtures, which compile too
def pytest_runtest_setup(item):
    """Has XLA optimize little for a test with the mark `numbers`, which saves time."""
    optimize_little(item.get_closest_marker("numbers") is not None)


@pytest.fixture(autouse=True)
def _the_log_is_restored():
    """Undoes what `main.main` does to the package's logger."""
    log = logging.getLogger("cifar_jax")
    before = (log.handlers, log.propagate, log.level)
    yield
    log.handlers, log.propagate, level = before
    log.setLevel(level)


@pytest.fixture(autouse=True)
def _the_signal_handlers_are_restored():
    """Undoes what a run leaves that was ended by a signal; SIGINT is not ignored."""
    before = {number: signal.getsignal(number) for number in signals.Signals.EXIT_CODES}
    if before[signal.SIGINT] == signal.SIG_IGN:  # as in the background of a shell script
        signal.signal(signal.SIGINT, signal.default_int_handler)
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


@pytest.fixture(params=["cpu", "accelerator"])
def platform_taken(request, monkeypatch):
    """Takes what each platform would, here on the CPU."""
    from jax import lax

    if request.param == "accelerator":
        monkeypatch.setattr(lax, "platform_dependent", lambda *args, cpu, default: default(*args))
