"""A folder to run commands in."""

from pathlib import Path

import pytest

from tests import program


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty current directory from which configs/ can be reached."""
    (tmp_path / "configs").symlink_to(program.ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    return tmp_path
