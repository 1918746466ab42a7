"""The run that the tests export."""

import shutil
from pathlib import Path

import pytest

RUN = Path(__file__).parents[1] / "data" / "format-1"


@pytest.fixture
def run(tmp_path):
    """A copy of a small run on the digits, with moving averages."""
    return Path(shutil.copytree(RUN, tmp_path / "run"))
