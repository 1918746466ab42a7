"""Training by several processes together, which `--distributed` asks for."""

from pathlib import Path

from ml_collections import ConfigDict

from cifar_jax import config as config_lib
from cifar_jax import devices, fields, hosts
from cifar_jax import train as train_lib


def train(
    config: ConfigDict,
    workdir: Path,
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
) -> int:
    """Joins the job's other processes and trains with them; returns the exit code.

    Args:
      config: a checked config, the same in all processes.
      workdir: the run's folder, which the first process alone reads and writes.
      coordinator: see `hosts.job`, as for the other two.
      num_processes: how many there are.
      process_id: which of them this one is, from 0.

    Raises:
      UserError: the processes do not find each other, differ in their configs, or one has ended; or
        as `train.train`.
    """
    part = config.batch_size // config.optimizer.accumulation_steps // (num_processes or 1)
    devices.configure(part or None, config.num_cpu_devices, config.deterministic)
    with hosts.job(workdir, coordinator, num_processes, process_id) as signals:
        values = dict(fields.flatten(config_lib.to_json(config)))
        hosts.check_same({name: values[name] for name in values if name != "data.data_dir"})
        return train_lib.train(config, workdir, signals)
