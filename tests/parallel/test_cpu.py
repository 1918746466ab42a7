"""main.py restarts itself once, with the allocator's settings."""

import os
import pdb
import platform
import subprocess
import sys

import pytest

from cifar_jax.parallel import cpu


class Restarted(Exception):
    """Raised in place of `os.execve`, which does not return."""


@pytest.fixture
def start(monkeypatch):
    """Returns a function that starts with these tunables and this C library."""

    def execve(program, arguments, environment):
        raise Restarted(program, arguments, environment)

    def run(tunables=None, libc="glibc"):
        monkeypatch.setattr(os, "execve", execve)
        monkeypatch.setattr(platform, "libc_ver", lambda: (libc, "2.36"))
        monkeypatch.setattr(sys, "orig_argv", ["python", "-W", "error", "main.py", "--mode=train"])
        monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
        if tunables is not None:
            monkeypatch.setenv("GLIBC_TUNABLES", tunables)
        cpu.restart()

    return run


def test_restarts_with_the_same_arguments(start):
    with pytest.raises(Restarted) as restarted:
        start()
    program, arguments, environment = restarted.value.args
    assert program == sys.executable
    assert arguments == [sys.executable, "-W", "error", "main.py", "--mode=train"]
    assert environment == os.environ | cpu.ALLOCATOR_ENVIRONMENT


@pytest.mark.parametrize(
    ("tunables", "libc"), [("", "glibc"), ("glibc.malloc.check=3", "glibc"), (None, "")]
)
def test_does_not_restart_if_the_variable_is_set_or_has_no_effect(start, tunables, libc):
    start(tunables, libc)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="settings of glibc")
def test_restarts_once_as_the_same_process():
    program = (
        "import os; from cifar_jax.parallel import cpu; print(os.getpid(), flush=True); "
        "cpu.restart(); print(os.environ['GLIBC_TUNABLES'])"
    )
    environment = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    first, second, tunables = done.stdout.split()
    assert first == second
    assert tunables == cpu.ALLOCATOR_ENVIRONMENT["GLIBC_TUNABLES"]


@pytest.mark.parametrize("watching", ["gettrace", "getprofile"])
def test_a_debugger_or_profiler_keeps_its_session(start, monkeypatch, watching):
    monkeypatch.setattr(sys, watching, lambda: object())
    start()


ENDING = ("-c", "continue", "-c", "quit")


@pytest.mark.parametrize(
    "tool",
    [("-m", "pdb", *ENDING), ("-mpdb", *ENDING), (pdb.__file__, *ENDING), ("-m", "cProfile")],
)
def test_pdb_and_cprofile_run_the_program_once(tmp_path, tool):
    script = tmp_path / "script.py"
    script.write_text("from cifar_jax.parallel import cpu\nprint('begun')\ncpu.restart()\n")
    environment = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    command = [sys.executable, *tool, str(script)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, input="")
    assert done.stdout.count("begun") == 1
