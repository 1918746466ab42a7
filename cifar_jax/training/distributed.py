"""Training by several processes together, which `--distributed` asks for."""

import contextlib
import os
import re
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from ml_collections import ConfigDict

from cifar_jax.config import custom, fields, stored
from cifar_jax.errors import UserError
from cifar_jax.parallel import devices, processes
from cifar_jax.runs.signals import Signals
from cifar_jax.runs.workdir import lock

# What Open MPI and SLURM call the number of processes, in the order in which JAX asks them.
_COUNTS = ("OMPI_COMM_WORLD_SIZE", "SLURM_NTASKS")
# What names the first process's host there, as in "1.0;tcp://node7,10.0.0.7:41" and "node[07-09]".
_HOSTS = {
    "OMPI_MCA_orte_hnp_uri": r"tcp://(.+?)[,:]|tcp6://\[(.+?)[,\]]",
    "SLURM_STEP_NODELIST": r"^([^,\[]+)(?:\[([^,\-\]]+))?",
}


def train_together(
    config: ConfigDict,
    workdir: Path,
    train_here: Callable[[ConfigDict, Path, Signals], int],
    take_over: bool = False,
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
) -> int:
    """Joins the job's other processes and trains with them; returns the exit code.

    Args:
      config: a checked config, the same in all processes.
      workdir: the run's folder, which only the first process reads and writes.
      train_here: called with the config, the workdir and this process's signals once all processes
        have joined; returns the exit code.
      take_over: as for `workdir.lock`.
      coordinator: HOST:PORT of the first process; None: found by JAX.
      num_processes: the number of processes; None: found by JAX.
      process_id: the number of this process, from 0; None: found by JAX.

    Raises:
      UserError: the processes do not find each other, their configs differ, or one has ended.
    """
    _check_addresses(coordinator)
    count = num_processes or _count_processes()
    part = config.batch_size // config.optimizer.accumulation_steps // count
    devices.configure_jax(part or None, config.num_cpu_devices, config.deterministic)
    with (
        processes.job(coordinator, num_processes, process_id),
        contextlib.ExitStack() as stack,
    ):
        stack.enter_context(_only_python_prints())
        # Before the lease, which may be waited for: that long the processes do not wait to connect.
        values = dict(fields.flatten(stored.to_json(config)))
        values |= {
            f"the code of {field}": custom.digest_source(field, reference)
            for field, reference in custom.find_references(config).items()
        }
        own = ("data.data_dir", "data.path")  # may differ between machines
        processes.check_same({name: values[name] for name in values if name not in own})
        processes.run_on_first(lambda: stack.enter_context(lock(workdir, take_over)))
        received = stack.enter_context(Signals())
        return train_here(config, workdir, received)


@contextlib.contextmanager
def _only_python_prints() -> Iterator[None]:
    """Leaves the standard output to Python: Gloo prints there whom it is connected to."""
    stream = sys.stdout
    stream.flush()
    number = stream.fileno()
    kept, own = os.dup(number), os.dup(number)
    with open(own, "w", encoding=stream.encoding, errors=stream.errors) as sys.stdout:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), number)
        try:
            yield
        finally:
            sys.stdout = stream
            os.dup2(kept, number)
            os.close(kept)


def _count_processes() -> int:
    """Returns the number of processes that JAX will find, before it can be asked; 1 if unknown."""
    given = (os.environ.get(name, "") for name in _COUNTS)
    return next((int(count) for count in given if count.isdecimal() and int(count)), 1)


def _check_addresses(coordinator: str | None) -> None:
    """Checks that the names of the hosts have addresses, which gloo and JAX wait for or abort."""
    names = {socket.gethostname(): "this machine's own name: add it to /etc/hosts"}
    source, address = _find_coordinator(coordinator)
    if address:
        host, _, port = address.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
            raise UserError(f"{source}={address} is not HOST:PORT, such as 10.0.0.1:1234")
        names[host.strip("[]")] = f"of {source}: check it, or give the host's number"
    for name, words in names.items():
        try:
            socket.getaddrinfo(name, None)
        except (OSError, UnicodeError) as error:
            raise UserError(f"--distributed: there is no address for {name}, {words}") from error


def _find_coordinator(coordinator: str | None) -> tuple[str, str]:
    """Returns where JAX will find the address of the first process, and HOST:PORT; "" if unknown.

    Of what SLURM and Open MPI say, JAX makes the port itself.
    """
    given = os.environ.get
    if coordinator is not None:
        return "--coordinator", coordinator
    if address := given("JAX_COORDINATOR_ADDRESS"):
        return "JAX_COORDINATOR_ADDRESS", address
    for name, host in _HOSTS.items():
        if found := re.search(host, given(name, "")):
            return name, f"{''.join(part or '' for part in found.groups())}:1"
    return "", ""
