"""The benchmark of installing and testing: it runs the README's commands."""

import os
from pathlib import Path

import pytest

from benchmarks import project

README = Path(__file__).parents[2] / "README.md"
TEXT = """
<!-- ci: main -->
```bash
mkdir .venv && head -c 1000 /dev/zero > .venv/library && ln -s library .venv/link
not run
```

<!-- ci: test -->
```bash
head -c 500 /dev/zero > .venv/tests
sleep 0.2; echo test $XDG_CACHE_HOME ${TFDS_DATA_DIR:-none} ${PYTEST_ADDOPTS:-none} >> runs
```
"""


def test_the_commands_are_those_of_the_readme():
    install, run = project.read_commands(README.read_text(), "main")
    assert install.endswith("install -c constraints.txt -e .")
    assert run.endswith("main.py --config=configs/digits.py")
    install, test = project.read_commands(README.read_text(), "test")
    assert install.endswith('install -c constraints.txt -e ".[test]"')
    assert "-m pytest" in test
    with pytest.raises(ValueError, match="no block of commands after <!-- ci: other -->"):
        project.read_commands(README.read_text(), "other")


def test_installs_and_tests_twice_with_one_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", "somewhere")
    monkeypatch.setenv("PYTEST_ADDOPTS", "-k nothing")
    (folder := tmp_path / "project").mkdir()
    found = project.run(TEXT, folder)
    link = len(os.readlink(folder / ".venv" / "link"))
    assert found["install_bytes"] == 1000 + link
    assert set(found) == {
        *("install_seconds", "install_bytes"),
        *("test_seconds_first", "test_seconds_again"),
    }
    assert min(found["test_seconds_first"], found["test_seconds_again"]) >= 0.2
    assert (folder / "runs").read_text() == f"test {tmp_path}/project-cache none none\n" * 2


def test_a_command_that_fails_is_named(tmp_path):
    with pytest.raises(SystemExit, match="exit code 3 of: exit 3"):
        project.run(TEXT.replace("head -c 500 /dev/zero > .venv/tests", "exit 3"), tmp_path)
