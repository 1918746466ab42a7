"""Several processes that train one model together, by JAX's own distributed runtime.

Every process runs the same program on its part of each batch. Only the first one touches the run's
folder and broadcasts what it finds there, or that it fails. So all of them stop, save and resume at
the same step, and the folder need not be visible to the other processes.

If one process ends, so do the others: on a CPU their next exchange fails at once, elsewhere JAX
misses the heartbeat.
"""

import atexit
import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from cifar_jax.errors import UserError

# A process counts as dead when it has not been heard from for this long, in seconds.
HEARTBEAT_TIMEOUT = 30
# How long the processes of a job wait for each other at the start; then JAX aborts them.
JOIN_TIMEOUT = 300
# Seconds between the first and the last process to finish (one of them draws the report).
_SHUTDOWN_TIMEOUT = 600
# Bytes per message: sizes of arrays are int32.
_PART = 2**28
# Words in the message of an exchange that failed because the other side has gone.
_LOST = ("gloo", "nccl", "connection", "socket", "unavailable", "deadline", "peer", "distributed")


@contextlib.contextmanager
def job(
    coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None
) -> Iterator[None]:
    """Joins the other processes of a job, and leaves it at the end.

    Must be entered after `devices.configure_jax` and before JAX starts its backend. JAX itself
    finds the arguments that are None (SLURM, Open MPI, Kubernetes, Cloud TPU).

    Args:
      coordinator: HOST:PORT of the first process.
      num_processes: the number of processes.
      process_id: the number of this process, from 0.

    Raises:
      UserError: the processes do not find each other, or one of them has ended.
    """
    _join(coordinator, num_processes, process_id)
    try:
        yield
        jax.distributed.shutdown()
    except BaseException as error:
        known = _lost_peer(error) or error
        if jax.distributed.is_initialized():
            # At exit JAX would wait for the others; the function registered last is called first.
            atexit.register(_leave, _exit_code(known))
        if known is error:
            raise
        raise known from error


def _join(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
    given = None not in (coordinator, num_processes, process_id)
    # JAX's preemption service would replace our handler of SIGTERM; `agree_to_stop` does its work.
    jax.config.update("jax_enable_preemption_service", False)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # While JAX waits, Python would not react to Ctrl-C.
    handler = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        jax.distributed.initialize(
            coordinator,
            num_processes,
            process_id,
            cluster_detection_method="deactivate" if given else None,
            initialization_timeout=JOIN_TIMEOUT,
            heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT,
            shutdown_timeout_seconds=_SHUTDOWN_TIMEOUT,
        )
    except (ValueError, TypeError, IndexError, RuntimeError) as error:
        raise UserError(
            f"--distributed: the processes do not find each other ({str(error).splitlines()[0]}): "
            "give each the same --coordinator=HOST:PORT and --num_processes, and its own "
            "--process_id from 0"
        ) from error
    finally:
        signal.signal(signal.SIGINT, handler)


def _lost_peer(error: BaseException) -> UserError | None:
    """Returns the error to show for an exchange that failed because another process has ended."""
    text = " ".join(str(error).split())
    if not isinstance(error, jax.errors.JaxRuntimeError) or not any(
        word in text.lower() for word in _LOST
    ):
        return None
    return UserError(
        f"another process of the job has ended ({text[:150]}): start the same command again, on "
        "any number of processes; it resumes from the last checkpoint",
        exit_code=1,
    )


def _exit_code(error: BaseException) -> int:
    if isinstance(error, KeyboardInterrupt):
        return 130
    code = getattr(error, "exit_code", None) or getattr(error, "code", None)
    return code if isinstance(code, int) else 1


def _leave(code: int) -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, OSError, ValueError):  # closed, or a broken pipe
            stream.flush()
    os._exit(code)


def is_first() -> bool:
    """Whether this is the process that reads and writes the run's folder."""
    return not jax.distributed.is_initialized() or jax.process_index() == 0


def run_on_first(function: Callable[[], Any]) -> Any:
    """Calls a function in the first process and returns its result in all of them.

    Args:
      function: returns JSON values; in the other processes, values of other types become None. If
        it raises, the exception is raised in the first process, and the others end quietly with
        its exit code.
    """
    if not jax.distributed.is_initialized():
        return function()
    failure: Exception | None = None
    message = b""
    if is_first():
        result, code = None, 0
        try:
            result = function()
        except Exception as error:
            failure, code = error, _exit_code(error)
        message = json.dumps([code, result], default=lambda _: None).encode()
    code, result = json.loads(_broadcast_bytes(message))
    if code:
        jax.distributed.shutdown()
        raise failure or SystemExit(code)
    return result


def check_same(values: Mapping[str, Any]) -> None:
    """Raises UserError if a value in this process differs from the first process's, by name."""
    first = run_on_first(lambda: dict(values))
    if other := [name for name in {**values, **first} if values.get(name) != first.get(name)]:
        name = other[0]
        raise UserError(
            f"{name} is {values.get(name)!r} here and {first.get(name)!r} in the first process: "
            "start all with the same command"
        )


def first_then_others(make: Callable[[], Any]) -> Any:
    """Calls a function in every process, in the first one before the others.

    For functions that write to a disk which the processes may share.
    """
    made = _make_on_first(make)
    return made if is_first() else make()


def broadcast(make: Callable[[], Any], shapes: Any) -> Any:
    """Returns in every process, bit for bit, the tree of arrays that the first process makes.

    Args:
      make: returns the tree; called in the first process only.
      shapes: the tree's `jax.ShapeDtypeStruct`s.
    """
    made = _make_on_first(make)
    if not jax.distributed.is_initialized():
        return made
    leaves, structure = jax.tree.flatten(shapes)
    data = b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(made))
    data, place, arrays = _broadcast_bytes(data), 0, []
    for leaf in leaves:
        size = int(np.prod(leaf.shape))
        arrays.append(np.frombuffer(data, leaf.dtype, size, place).reshape(leaf.shape))
        place += arrays[-1].nbytes
    return jax.tree.unflatten(structure, arrays)


def agree_to_stop(received: int | None, seconds: float) -> tuple[int | None, float]:
    """Returns in every process a signal that any of them has received, and the longest time.

    Args:
      received: the signal that this process has received, if any.
      seconds: the time that the last call took in this process.
    """
    if not jax.distributed.is_initialized():
        return received, seconds
    from jax.experimental import multihost_utils

    each = multihost_utils.process_allgather(np.array([received or 0, seconds], np.float32))
    return int(each[:, 0].max()) or None, float(each[:, 1].max())


def _make_on_first(make: Callable[[], Any]) -> Any:
    made = None

    def run() -> None:
        nonlocal made
        made = make()

    run_on_first(run)
    return made


def _broadcast_bytes(message: bytes) -> bytes:
    """Returns the first process's message."""
    from jax.experimental import multihost_utils

    send = multihost_utils.broadcast_one_to_all
    length = np.asarray(send(np.frombuffer(len(message).to_bytes(8, "big"), np.uint8)))
    size = int.from_bytes(length.tobytes(), "big")
    parts = []
    for first in range(0, size, _PART):
        count = min(_PART, size - first)
        # Few different sizes, because each is compiled.
        buffer = np.zeros(max(1024, 1 << (count - 1).bit_length()), np.uint8)
        if is_first():
            buffer[:count] = np.frombuffer(message, np.uint8, count, first)
        parts.append(np.asarray(send(buffer))[:count].tobytes())
    return b"".join(parts)
