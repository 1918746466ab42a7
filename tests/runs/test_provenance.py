"""The environment of a run: versions, machine, commit."""

import json
import os
import platform
import socket
import subprocess
import sys

import pytest

from cifar_jax.runs import provenance


def test_the_environment_names_versions_and_machine(monkeypatch):
    monkeypatch.setenv("JAX_SOFTMAX_CUSTOM_JVP", "0")
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=true")
    environment = provenance.environment()
    assert environment["versions"]["python"] == sys.version.split()[0]
    assert {"jax", "flax", "optax", "orbax-checkpoint", "numpy"} <= environment["versions"].keys()
    assert environment["host"] == socket.gethostname()
    assert environment["cores"] == os.cpu_count()
    assert environment["variables"]["JAX_SOFTMAX_CUSTOM_JVP"] == "0"
    assert environment["variables"]["XLA_FLAGS"] == "--xla_cpu_enable_fast_math=true"
    assert all(name.startswith(("JAX_", "XLA_")) for name in environment["variables"])
    json.dumps(environment)


def test_the_commit_is_none_outside_a_checkout(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert provenance.commit() is None


def test_measurements_do_not_mark_the_commit_as_changed(tmp_path, monkeypatch):
    def git(*words):
        options = ("-c", "user.name=x", "-c", "user.email=x")
        subprocess.run(["git", *options, *words], cwd=tmp_path, check=True, capture_output=True)

    files = [tmp_path / name for name in ("results/a.json", "README.md", "package/a.py")]
    for file in files:
        file.parent.mkdir(exist_ok=True)
        file.write_text("before")
    git("init")
    git("add", ".")
    git("commit", "-m", "x")
    monkeypatch.setattr(provenance, "__file__", str(files[2]))
    found = []
    for file in files:
        file.write_text("after")
        found.append(provenance.commit())
    assert len(found[0]) == 40
    assert found == [found[0], found[0], found[0] + "+"]


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("fma avx2 avx512f avx512bw", "Abacus 3000 (AVX-512)"),
        ("fma avx avx2 f16c", "Abacus 3000 (AVX2)"),
        ("sse2", "Abacus 3000"),
    ],
)
def test_the_processor_is_named_with_its_vector_instructions(tmp_path, flags, expected):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor\t: 0\nmodel name\t: Abacus 3000\nflags\t\t: {flags}\n\n" * 2)
    assert provenance._processor(cpuinfo) == expected
    other = platform.processor() or platform.machine()
    assert provenance._processor(tmp_path / "missing") == other
