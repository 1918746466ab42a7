"""Runs the program, in this process or in one of its own, and compares what runs leave behind."""

import contextlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import numpy as np
import orbax.checkpoint as ocp

from cifar_jax.cli import flags, main

ROOT = Path(__file__).parent.parent
# The most that any process may take, on a machine that is busy with other work too.
SECONDS = 300
# A column of metrics.jsonl that the same run gives again, to the bit.
EXACT = ("step", "epoch", "train_loss", "train_accuracy", "eval_loss", "eval_accuracy")


def run_here(*arguments: str) -> tuple[int, str, str]:
    """Returns (exit code, stdout, stderr) of `python main.py ARGUMENTS`, run in this process."""
    for name in [name for name in flags.FLAGS if name.startswith("config.")]:
        delattr(flags.FLAGS, name)
    flags.FLAGS.unparse_flags()
    for flag in flags.FLAGS.get_key_flags_for_module(flags):
        flag.unparse()
    sys.modules.pop("config_config", None)  # the last call's config file
    argv = ["main.py", *arguments]
    out, err = io.StringIO(), io.StringIO()
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        mock.patch.object(sys, "argv", argv),
    ):
        try:
            code = main.main(argv)
        except SystemExit as end:
            code = int(end.code or 0)
    return code, out.getvalue(), err.getvalue()


def assert_refused(result: tuple[int, str, str], *parts: str) -> None:
    code, out, err = result
    lines = err.splitlines()
    assert code == 2
    assert out == ""
    assert len(lines) == len(parts), err
    for line, part in zip(sorted(lines), sorted(parts), strict=True):
        assert line.startswith("error: ")
        assert part in line
        assert len(line) < 700


def start(
    *arguments: str, environment: Mapping[str, str | None] | None = None, **options: Any
) -> subprocess.Popen[str]:
    """Starts `python main.py ARGUMENTS`; `communicate` returns its output.

    Args:
      *arguments: of main.py.
      environment: changes of the environment; None removes a variable.
      **options: of `subprocess.Popen`.
    """
    variables: dict[str, str | None] = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        **(environment or {}),
    }
    return subprocess.Popen(
        [sys.executable, ROOT / "main.py", *arguments],
        env={name: value for name, value in variables.items() if value is not None},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def run_apart(*arguments: str, **options: Any) -> tuple[int, str, str]:
    """Returns (exit code, stdout, stderr) of `python main.py ARGUMENTS` in a process of its own."""
    with start(*arguments, **options) as process:
        out, err = process.communicate(timeout=SECONDS)
    return process.returncode, out, err


def write_config(path: Path, kind: str = "config", /, **fields: Any) -> str:
    """Writes a config file that gives `tiny.KIND(**fields)`; returns the flag for it."""
    path.write_text(
        f"from tests import tiny\n\n\ndef get_config():\n    return tiny.{kind}(**{fields!r})\n"
    )
    return f"--config={path}"


def last_state(workdir: Path) -> list[tuple[str, np.ndarray]]:
    """Returns every array of a run's newest checkpoint, by name."""
    folder = workdir.absolute() / "checkpoints"
    steps = [int(path.name) for path in folder.iterdir() if path.name.isdecimal()]
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        tree = reader.restore(folder / str(max(steps)) / "state")
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return sorted((jax.tree_util.keystr(path), np.asarray(leaf)) for path, leaf in leaves)


def difference(workdir: Path, other: Path) -> str:
    """Returns what differs between two finished runs of the same config, "" if nothing does."""
    states = [last_state(workdir), last_state(other)]
    if [name for name, _ in states[0]] != [name for name, _ in states[1]]:
        return "other arrays"
    for (name, ours), (_, theirs) in zip(*states, strict=True):
        if ours.dtype != theirs.dtype or ours.tobytes() != theirs.tobytes():
            return f"the array {name}"
    lines = [exact_lines(workdir), exact_lines(other)]
    if lines[0] != lines[1]:
        return f"metrics.jsonl: {lines[0]} and {lines[1]}"
    results = [json.loads((path / "result.json").read_text()) for path in (workdir, other)]
    for name in ("step", "test_accuracy", "test_loss", "num_correct"):
        if results[0][name] != results[1][name]:
            return f"{name} of result.json"
    return ""


def exact_lines(workdir: Path) -> list[Sequence[Any]]:
    """Returns the lines of metrics.jsonl without what depends on the clock."""
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [[line.get(name) for name in EXACT] for line in lines]
