"""Random command lines, most of them wrong: each must be accepted or get a clear error."""

import random
import shutil
from collections import Counter
from pathlib import Path
from typing import Any
from unittest import mock

from cifar_jax.cli import main as program_main
from cifar_jax.config import fields
from cifar_jax.training.check import check_config
from configs import default
from tests import program
from tests.faults.stops import SURVIVED

# These need another data set, another run or other devices.
_LEFT_OUT = {"--config.data.name", "--config.init_from", "--config.num_cpu_devices"}

_VALUES = (
    *("0", "1", "-1", "2", "3", "7", "64", "0.5", "0.9", "1.0", "-0.1", "1e-9", "1e30", "1e39"),
    *("nan", "inf", "-inf", "1e400", str(2**31), str(2**32), "9" * 400, "", " ", "True", "false"),
    *("None", "(1,)", "(1, 2)", "(2, 1)", "(0.5, 1)", "('a',)", "(nan,)", "()", "[1]", "{}", "(("),
    *("adam", "sgd", "lion", "rprop", "novograd", "cosine", "linear", "step", "one_cycle", "mlp"),
    *("digits", "cifar10", "../x", "a/b", "ö", "x" * 300, "%s", "host", "bfloat16", "float32"),
)


def random_overrides(rng: random.Random) -> list[str]:
    """Returns one to four --config.FIELD=VALUE, of which at most half make sense."""
    known = dict(fields.flatten(default.get_config()))
    names = [*known, "model.hidden_sizes", "model.activation", "model.width", "no_such", "model"]
    chosen = rng.sample(names, rng.randint(1, 4))
    return [f"--config.{name}={_value(known.get(name), rng)}" for name in chosen]


def _value(usual: Any, rng: random.Random) -> str:
    """Returns a random value, or one near the default."""
    if rng.random() < 0.4:
        return rng.choice(_VALUES)
    if isinstance(usual, bool):
        return str(rng.random() < 0.5)
    if isinstance(usual, int | float):
        return str(type(usual)(usual * rng.choice((0.5, 1, 2)) or rng.choice((0, 1))))
    return rng.choice(("1", "2", "0.5")) if usual is None else str(usual)


def try_config(flag: str, overrides: list[str]) -> tuple[int, str]:
    """Runs the program up to the check of the config; returns the exit code and the outcome."""

    def check() -> int:
        check_config(program_main.FLAGS.config, default.get_config())
        return 0

    with mock.patch.dict(program_main.MODES, train=check):
        result = program.run_here(flag, *overrides)
    return result[0], answered(*result, overrides)


def answered(code: int, _: str, err: str, overrides: list[str]) -> str:
    """Returns SURVIVED if stderr has nothing on success and only the program's own errors else."""
    lines = err.splitlines()
    if (code == 0 and not lines) or (
        code and lines and all(x.startswith("error: ") for x in lines)
    ):
        return SURVIVED
    return f"{overrides}: exit code {code}, {err}"


def try_command(flag: str, workdir: Path, rng: random.Random, seen: Counter[str]) -> str:
    """Runs the real command, which trains a step if it accepts the config."""
    overrides = [*random_overrides(rng), "--config.num_steps=1"]
    done = program.run_apart(flag, *overrides, f"--workdir={workdir}")
    seen["accepted" if done[0] == 0 else "refused"] += 1
    return answered(*done, overrides)


def try_training(flag: str, workdir: Path, rng: random.Random, seen: Counter[str]) -> str:
    """Draws until the check accepts a config, then trains a step of it in this process."""
    while True:
        overrides = [*random_overrides(rng), "--config.num_steps=1"]
        if _LEFT_OUT.isdisjoint(override.partition("=")[0] for override in overrides):
            code, outcome = try_config(flag, overrides)
            if outcome != SURVIVED:
                return outcome
            if code == 0:
                break
    done = program.run_here(flag, *overrides, f"--workdir={workdir}")
    shutil.rmtree(workdir, ignore_errors=True)
    seen["trained a step" if done[0] == 0 else "refused when the data were known"] += 1
    return answered(*done, overrides)
