"""The cache of compiled programs: what is damaged is rebuilt, and its size is bounded."""

import os
import subprocess
import sys
import zlib

import pytest

from cifar_jax.parallel import programs
from tests import program
from tests.few import slow

COMPILE = """
import warnings
warnings.simplefilter("error")
from cifar_jax.parallel import devices
devices.configure_jax()
import jax
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
print(jax.jit(lambda x: x + 1)(1), jax.jit(lambda x: x * 2.5)(1), jax.jit(lambda x: x - 3)(1))
"""


def write_entries(folder, count=3):
    """Writes sealed entries, the oldest first."""
    for number in range(count):
        path = folder / f"jit_f-{number}-cache"
        path.write_bytes(bytes([number]) * 100)
        os.utime(path, (number, number))
    programs.seal(folder)
    return sorted(folder.glob("*-cache"))


def damage(kind, paths):
    """Damages the first entry, or exchanges the first two."""
    first, second, _ = paths
    text, seal = first.read_bytes(), programs._seal_of(first)
    if kind == "a bit":
        first.write_bytes(bytes([text[0] ^ 4]) + text[1:])
    elif kind == "cut off":
        first.write_bytes(text[:50])
    elif kind == "exchanged":
        first.write_bytes(second.read_bytes())
        second.write_bytes(text)
    elif kind == "exchanged with the seals":
        other = programs._seal_of(second).read_text()
        programs._seal_of(second).write_text(seal.read_text())
        seal.write_text(other)
        damage("exchanged", paths)
    elif kind == "no seal":
        seal.unlink()
    elif kind == "another seal":
        seal.write_bytes(b"\xff")
    elif kind == "a folder":
        first.unlink()
        first.mkdir()
    return 2 if "exchanged" in kind else 1


KINDS = ["a bit", "cut off", "exchanged", "exchanged with the seals", "no seal", "another seal"]


@pytest.mark.parametrize("kind", [*KINDS, "a folder"])
def test_unsound_entries_are_removed(kind, tmp_path):
    paths = write_entries(tmp_path)
    programs.remove_unsound(tmp_path)
    assert sorted(tmp_path.glob("*-cache")) == paths
    lost = damage(kind, paths)
    programs.remove_unsound(tmp_path)
    assert sorted(tmp_path.glob("*-cache")) == paths[lost:]
    assert len(list(tmp_path.iterdir())) == 2 * (3 - lost)


def test_the_oldest_entries_beyond_the_size_are_removed(tmp_path, monkeypatch):
    paths = write_entries(tmp_path)
    monkeypatch.setattr(programs, "MOST_BYTES", 250)
    programs.remove_unsound(tmp_path)
    assert sorted(tmp_path.glob("*-cache")) == paths[1:]


def test_other_programs_entries_stay_unless_they_cannot_be_unpacked(tmp_path, monkeypatch):
    first, second, third = write_entries(tmp_path)
    for path in (first, second):
        programs._seal_of(path).unlink()
    first.write_bytes(zlib.compress(b"abc"))
    second.write_bytes(zlib.compress(b"abc" * 50)[:-4])
    (zstandard := tmp_path / "jit_z-0-cache").write_bytes(b"\x28\xb5\x2f\xfd...")
    programs.remove_unsound(tmp_path, own=False)
    assert sorted(tmp_path.glob("*-cache")) == sorted([first, third, zstandard])
    monkeypatch.setattr(programs, "MOST_BYTES", 1)
    programs.remove_unsound(tmp_path, own=False)
    assert len(list(tmp_path.glob("*-cache"))) == 3


def test_a_folder_that_cannot_be_written_is_named_once_and_replaced(tmp_path):
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path)}
    environment["JAX_COMPILATION_CACHE_DIR"] = "/proc/nope"
    command = [sys.executable, "-c", COMPILE]
    options = {"capture_output": True, "text": True, "cwd": program.ROOT}
    done = subprocess.run(command, env=environment, **options)
    words = "/proc/nope cannot be written: programs are kept in a folder of this package"
    assert (done.returncode, done.stdout) == (0, "2 2.5 -2\n")
    assert done.stderr == f"JAX_COMPILATION_CACHE_DIR={words}\n"
    assert len(list(tmp_path.rglob("*-cache"))) >= 3


@pytest.mark.parametrize("place", ["ours", slow("theirs")])
def test_what_is_damaged_is_compiled_again_without_a_word(tmp_path, place):
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path)}
    environment.pop("JAX_COMPILATION_CACHE_DIR")
    if place == "theirs":
        environment["JAX_COMPILATION_CACHE_DIR"] = str(tmp_path / "mine")

    def start():
        command = [sys.executable, "-c", COMPILE]
        options = {"capture_output": True, "text": True, "cwd": program.ROOT}
        done = subprocess.run(command, env=environment, **options)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout == "2 2.5 -2\n"
        entries = sorted(tmp_path.rglob("*-cache"))
        assert all(programs._seal_of(path).exists() for path in entries)
        return {path: path.stat().st_mtime_ns for path in entries}

    first = start()
    assert len(first) >= 3
    whole = {path: path.read_bytes() for path in first}
    one, two, three, *_ = whole
    one.write_bytes(whole[two])
    two.write_bytes(whole[one])
    three.write_bytes(whole[three][:-9])
    second = start()
    assert {path for path in second if second[path] != first[path]} == {one, two, three}
    assert start() == second
