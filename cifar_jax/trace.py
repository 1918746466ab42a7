"""The trace of some steps, for a profile."""

import contextlib
from collections.abc import Callable, Iterator

import jax

from cifar_jax import hosts
from cifar_jax.run import Run


@contextlib.contextmanager
def tracer(run: Run) -> Iterator[Callable[[int], None]]:
    """Gives a function to call before each call of the program: it traces the config's steps."""
    first = run.config.log.profile_start if hosts.is_first() else run.durations.total
    last = first + run.config.log.profile_steps
    active = False

    def trace(step: int) -> None:
        nonlocal active
        if not active and first <= step < last:
            jax.profiler.start_trace(str(run.workdir / "profile"))
            active = True
        elif active and step >= last:
            jax.profiler.stop_trace()
            active = False

    try:
        yield trace
    finally:
        trace(last)
