"""main.py starts itself anew, once, where huge pages are to be had on request."""

import os
import platform
import sys

import pytest

from cifar_jax import huge_pages


class Restarted(Exception):
    """In place of `os.execve`, which does not return."""


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Returns a function that starts with a setting of the kernel and a tunable."""

    def execve(program, arguments, environment):
        raise Restarted(program, arguments, environment)

    def run(setting, tunables=None, libc="glibc"):
        (tmp_path / "enabled").write_text(setting)
        monkeypatch.setattr(huge_pages, "_SETTING", tmp_path / "enabled")
        monkeypatch.setattr(os, "execve", execve)
        monkeypatch.setattr(platform, "libc_ver", lambda: (libc, "2.36"))
        monkeypatch.setattr(sys, "orig_argv", ["python", "-W", "error", "main.py", "--mode=train"])
        monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
        if tunables is not None:
            monkeypatch.setenv("GLIBC_TUNABLES", tunables)
        huge_pages.restart()

    return run


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (None, "glibc.malloc.hugetlb=1"),
        ("glibc.malloc.check=3", "glibc.malloc.check=3:glibc.malloc.hugetlb=1"),
    ],
)
def test_restarts_with_the_same_arguments(start, before, after):
    with pytest.raises(Restarted) as restarted:
        start("always [madvise] never", before)
    program, arguments, environment = restarted.value.args
    assert program == sys.executable
    assert arguments[1:] == ["-W", "error", "main.py", "--mode=train"]
    assert environment == os.environ | {"GLIBC_TUNABLES": after}


@pytest.mark.parametrize(
    ("setting", "tunables", "libc"),
    [
        ("[always] madvise never", None, "glibc"),
        ("always madvise [never]", None, "glibc"),
        ("always [madvise] never", "glibc.malloc.hugetlb=1", "glibc"),
        ("always [madvise] never", "glibc.malloc.hugetlb=0", "glibc"),
        ("always [madvise] never", None, ""),
    ],
)
def test_goes_on_where_it_would_change_nothing(start, setting, tunables, libc):
    start(setting, tunables, libc)


def test_goes_on_without_the_setting(monkeypatch, tmp_path):
    monkeypatch.setattr(huge_pages, "_SETTING", tmp_path / "missing")
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    huge_pages.restart()
