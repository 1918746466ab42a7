"""JAX's own environment variables: ignored with a line where they would change a run."""

import json
import os
from unittest import mock

import pytest

from cifar_jax.parallel import environment
from tests import program

CHANGING = {
    "JAX_ENABLE_X64": "1",
    "JAX_DISABLE_JIT": "True",
    "JAX_NUMPY_DTYPE_PROMOTION": "strict",
    "JAX_NUMPY_RANK_PROMOTION": "raise",
    "JAX_TRANSFER_GUARD": "disallow",
    "JAX_THREEFRY_PARTITIONABLE": "off",
    "JAX_DEFAULT_PRNG_IMPL": "rbg",
    "JAX_RANDOM_SEED_OFFSET": "7",
    "JAX_DEFAULT_DEVICE": "1",
    "JAX_NO_TRACING": "1",
    "JAX_NO_EXECUTION": "1",
}


def check(capsys, **values):
    """Returns the variables that are left, and the lines about the others."""
    from cifar_jax.cli import parse

    parse.show_log()
    with mock.patch.dict(os.environ, values):
        environment.check_environment()
        environment.say_what_changes_numbers.__wrapped__()
        return {x for x in values if x in os.environ}, capsys.readouterr().err.splitlines()


def test_what_would_change_a_run_is_ignored_with_a_line(capsys):
    left, lines = check(capsys, **CHANGING)
    assert left == set()
    words = "is ignored: runs do not depend on it"
    assert sorted(lines) == sorted(f"{x}={value} {words}" for x, value in CHANGING.items())


def test_what_changes_nothing_needs_no_line(capsys):
    usual = {"JAX_ENABLE_X64": "False", "JAX_THREEFRY_PARTITIONABLE": "true", "JAX_DISABLE_JIT": ""}
    assert check(capsys, **usual) == (set(), [])
    kept = {"JAX_DEBUG_NANS": "1", "JAX_DEFAULT_MATMUL_PRECISION": "default"}
    kept |= {"JAX_SOFTMAX_CUSTOM_JVP": "True", "JAX_DISABLE_MOST_OPTIMIZATIONS": "no"}
    kept |= {"XLA_FLAGS": "--xla_force_host_platform_device_count=4 --xla_dump_to=/tmp/x"}
    assert check(capsys, **kept) == (set(kept), [])


def test_what_changes_numbers_on_purpose_is_kept_with_a_line(capsys):
    kept = {
        "JAX_DEFAULT_MATMUL_PRECISION": "highest",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "JAX_HIGH_DYNAMIC_RANGE_GUMBEL": "True",
        "JAX_SOFTMAX_CUSTOM_JVP": "off",
        "NVIDIA_TF32_OVERRIDE": "0",
        "XLA_FLAGS": "--xla_dump_to=/tmp/x --xla_cpu_enable_fast_math=true",
    }
    left, (line,) = check(capsys, **kept)
    assert left == set(kept)
    assert line == (
        "JAX_DEFAULT_MATMUL_PRECISION=highest, JAX_DISABLE_MOST_OPTIMIZATIONS=1, "
        "JAX_HIGH_DYNAMIC_RANGE_GUMBEL=True, JAX_SOFTMAX_CUSTOM_JVP=off, NVIDIA_TF32_OVERRIDE=0, "
        "XLA_FLAGS=--xla_cpu_enable_fast_math=true: numbers may differ from those without, and "
        "environment.json records it"
    )


@pytest.mark.slow
def test_a_run_says_once_what_changes_its_numbers_and_records_it(tmp_path):
    flag, workdir = program.write_config(tmp_path / "short.py"), tmp_path / "run"
    variables = {"JAX_DEFAULT_MATMUL_PRECISION": "highest"}
    code, _, err = program.run_apart(flag, f"--workdir={workdir}", environment=variables)
    assert code == 0
    assert err.count("JAX_DEFAULT_MATMUL_PRECISION=highest: numbers may differ") == 1
    recorded = json.loads((workdir / "environment.json").read_text())["variables"]
    assert recorded["JAX_DEFAULT_MATMUL_PRECISION"] == "highest"


def test_a_value_that_jax_refuses_gets_one_line(tmp_path):
    flag = program.write_config(tmp_path / "short.py")
    variables = {"JAX_DEFAULT_MATMUL_PRECISION": "wrong"}
    code, _, err = program.run_apart(flag, f"--workdir={tmp_path / 'run'}", environment=variables)
    assert (code, len(err.splitlines())) == (2, 1)
    assert err.startswith('error: JAX does not start: Invalid value "wrong" for JAX flag')


def test_a_platform_that_is_not_there_gets_one_line():
    arguments = ("--mode=evaluate", "--workdir=pretrained:mlp")
    variables = {"JAX_PLATFORMS": "nowhere"}
    code, _, err = program.run_apart(*arguments, environment=variables)
    assert (code, len(err.splitlines())) == (2, 1)
    assert err.startswith("error: JAX cannot use its devices (Unable to initialize backend")


@pytest.mark.slow
def test_a_run_does_not_depend_on_them(tmp_path):
    flag = program.write_config(tmp_path / "short.py", "bn_config")
    for name, variables in (("plain", {}), ("other", CHANGING)):
        workdir = f"--workdir={tmp_path / name}"
        assert program.run_apart(flag, workdir, environment=variables)[0] == 0
    assert program.difference(tmp_path / "plain", tmp_path / "other") == ""
