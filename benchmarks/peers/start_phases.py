"""Starts a training as `main.py` does, and says where the time before the first step went.

Takes the arguments of main.py; BEGUN is the time at which the process was started. Prints the
seconds of each phase as one line of JSON after the first step, and ends there.
"""

import functools
import json
import os
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from cifar_jax.parallel import cpu

BEGUN = "BEGUN"
# The event under which JAX reports how long it compiled a program or read it from its cache.
COMPILE = "/jax/core/compile/backend_compile_duration"


def main() -> None:
    """Imports, trains and prints; never returns."""
    begun = last = float(os.environ[BEGUN])
    seconds: dict[str, float] = defaultdict(float)

    def mark(phase: str) -> None:
        nonlocal last
        now = time.time()
        seconds[phase], last = now - last, now

    def timed(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            start = time.time()
            result = function(*args, **kwargs)
            seconds["data"] += time.time() - start
            return result

        return run

    def listen(event: str, duration_secs: float, **kwargs: Any) -> None:
        if event == COMPILE:
            seconds["compile"] += duration_secs

    def stop(run: Any, progress: Any) -> None:
        seconds["trace"] = time.time() - begun - sum(seconds.values())
        print(json.dumps({name: round(value, 3) for name, value in seconds.items()}), flush=True)
        os._exit(0)

    mark("python")
    import jax  # isort: split
    import flax.linen  # noqa: F401
    import optax  # noqa: F401
    import orbax.checkpoint  # noqa: F401

    mark("libraries")
    from cifar_jax.cli.main import main as run_command
    from cifar_jax.data import datasets
    from cifar_jax.training import run as run_lib

    mark("package")
    jax.monitoring.register_event_duration_secs_listener(listen)
    datasets.load_for = timed(datasets.load_for)
    run_lib.update_bar = stop
    sys.exit(run_command(sys.argv))


if __name__ == "__main__":
    cpu.restart()
    main()
