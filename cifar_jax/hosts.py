"""Several processes that make one training together, by JAX's own distributed runtime.

Every process runs the same program on its part of each batch. What touches the run's folder is done
by the first process alone, and what it finds, or that it fails, goes to the others: so they stop,
save and go on at the same step, and the folder may lie where only the first one sees it.

A process that ends without the others ends them too: on a CPU their next exchange fails at once,
elsewhere JAX misses its heartbeat.
"""

import atexit
import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from cifar_jax import signals as signals_lib
from cifar_jax import workdir as workdir_lib
from cifar_jax.errors import UserError

# A process that has not been heard for that long counts as dead, in seconds.
HEARTBEAT_TIMEOUT = 30
# The processes of a job wait that long for each other at its start; then JAX aborts them.
JOIN_TIMEOUT = 300
# The last process may come that much later to the end than the first (it draws the report).
_SHUTDOWN_TIMEOUT = 600
# Bytes that are sent at a time: sizes of arrays are int32.
_PART = 2**28
# What a failed exchange says when the other side is gone.
_LOST = ("gloo", "nccl", "connection", "socket", "unavailable", "deadline", "peer", "distributed")


@contextlib.contextmanager
def job(
    workdir: Path,
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
) -> Iterator[signals_lib.Signals]:
    """Joins the other processes of a job; the first one holds the run's folder.

    To be entered before JAX starts its backend, after `devices.configure`.

    Args:
      workdir: of the run.
      coordinator: HOST:PORT of the first process. What is None, here and below, is found by JAX
        (SLURM, Open MPI, Kubernetes, Cloud TPU).
      num_processes: how many there are.
      process_id: which of them this one is, from 0.

    Yields:
      The signals of this process.

    Raises:
      UserError: the processes do not find each other, the folder is in use, or one has ended.
    """
    _join(coordinator, num_processes, process_id)
    try:
        with contextlib.ExitStack() as stack:
            ask_first(lambda: stack.enter_context(workdir_lib.lock(workdir)))
            yield stack.enter_context(signals_lib.Signals())
        jax.distributed.shutdown()
    except BaseException as error:
        known = _lost_peer(error) or error
        if jax.distributed.is_initialized():
            # JAX would wait for the others at its own exit. What is registered last runs first.
            atexit.register(_leave, _exit_code(known))
        if known is error:
            raise
        raise known from error


def _join(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
    given = None not in (coordinator, num_processes, process_id)
    # Its handler would take SIGTERM from ours; `agree` does what it is for.
    jax.config.update("jax_enable_preemption_service", False)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # While JAX waits, Python would not hear a Ctrl-C.
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
    """Returns words for an exchange that failed since another process has ended."""
    text = " ".join(str(error).split())
    if not isinstance(error, jax.errors.JaxRuntimeError) or not any(
        word in text.lower() for word in _LOST
    ):
        return None
    return UserError(
        f"another process of the job has ended ({text[:150]}): start the same command again, on "
        "as many processes as you like; it goes on from the last checkpoint",
        exit_code=1,
    )


def _exit_code(error: BaseException) -> int:
    if isinstance(error, KeyboardInterrupt):
        return 130
    code = getattr(error, "exit_code", None) or getattr(error, "code", None)
    return code if isinstance(code, int) else 1


def _leave(code: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def is_first() -> bool:
    """Whether this process is the one that reads and writes the run's folder."""
    return not jax.distributed.is_initialized() or jax.process_index() == 0


def ask_first(ask: Callable[[], Any]) -> Any:
    """Returns the answer of the first process, which alone calls the function.

    Args:
      ask: returns JSON values; those of another kind come as None. Where it raises, the first
        process does, and the others end quietly with its exit code.
    """
    if not jax.distributed.is_initialized():
        return ask()
    failure: Exception | None = None
    message = b""
    if is_first():
        answer, code = None, 0
        try:
            answer = ask()
        except Exception as error:
            failure, code = error, _exit_code(error)
        message = json.dumps([code, answer], default=lambda _: None).encode()
    code, answer = json.loads(_broadcast(message))
    if code:
        jax.distributed.shutdown()
        raise failure or SystemExit(code)
    return answer


def check_same(values: Mapping[str, Any]) -> None:
    """Raises UserError where this process has other values, by name, than the first one."""
    first = ask_first(lambda: dict(values))
    if other := [name for name in {**values, **first} if values.get(name) != first.get(name)]:
        name = other[0]
        raise UserError(
            f"{name} is {values.get(name)!r} here and {first.get(name)!r} in the first process: "
            "start all with the same command"
        )


def first_then_others(make: Callable[[], Any]) -> Any:
    """Returns what the function makes, on every process; the first one is done before the others.

    For what is put onto a disk that they may share.
    """
    made = _make_on_first(make)
    return made if is_first() else make()


def share(make: Callable[[], Any], shapes: Any) -> Any:
    """Returns the tree of arrays that the first process makes, the same bits on every one.

    Args:
      make: returns the tree; called by the first process only.
      shapes: the tree's `jax.ShapeDtypeStruct`s.
    """
    made = _make_on_first(make)
    if not jax.distributed.is_initialized():
        return made
    leaves, structure = jax.tree.flatten(shapes)
    data = b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(made))
    data, place, arrays = _broadcast(data), 0, []
    for leaf in leaves:
        size = int(np.prod(leaf.shape))
        arrays.append(np.frombuffer(data, leaf.dtype, size, place).reshape(leaf.shape))
        place += arrays[-1].nbytes
    return jax.tree.unflatten(structure, arrays)


def agree(received: int | None, seconds: float) -> tuple[int | None, float]:
    """Returns a signal that any process has received, and the time of the slowest, to all alike.

    Args:
      received: the signal that this process has received.
      seconds: that the last call took here.
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

    ask_first(run)
    return made


def _broadcast(message: bytes) -> bytes:
    """Returns the first process's message."""
    from jax.experimental import multihost_utils

    send = multihost_utils.broadcast_one_to_all
    length = np.asarray(send(np.frombuffer(len(message).to_bytes(8, "big"), np.uint8)))
    size = int.from_bytes(length.tobytes(), "big")
    parts = []
    for first in range(0, size, _PART):
        count = min(_PART, size - first)
        # Of few sizes, since each is compiled.
        buffer = np.zeros(max(1024, 1 << (count - 1).bit_length()), np.uint8)
        if is_first():
            buffer[:count] = np.frombuffer(message, np.uint8, count, first)
        parts.append(np.asarray(send(buffer))[:count].tobytes())
    return b"".join(parts)
