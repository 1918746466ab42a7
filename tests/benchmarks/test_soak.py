"""A long run keeps its memory, its open files and its threads; benchmarks/soak.py has the hour."""

import os
import sys

import numpy as np
import pytest

from benchmarks import soak
from cifar_jax.runs.checkpoint import Checkpoints
from results import tables
from tests.faults import damages

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc is Linux's")


def looks(**rises):
    """Returns an hour's series, of which some rise by so much, with noise and a warm-up."""
    noise = np.random.default_rng(0).normal(size=3600)
    return [
        {
            "seconds": float(second),
            soak.IN_USE: 400 + noise[second] + rises.get("in_use", 0) * second / 3600,
            "memory, MiB": 500 + noise[second] + rises.get("memory", 0) * second / 3600,
            "open files": 40 + rises.get("files", 0) * second / 3600,
            "threads": 20 + rises.get("threads", 0) * second / 3600 - 5 * (second < 600),
        }
        for second in range(3600)
    ]


@pytest.mark.parametrize(
    "leak", [{}, {"in_use": 90}, {"memory": 700}, {"files": 6}, {"threads": 6}]
)
def test_a_rise_fails(leak):
    trends = soak.fit(looks(**leak))
    failed = {name for name, one in trends.items() if not one["passed"]}
    names = {
        "in_use": soak.IN_USE,
        "memory": "memory, MiB",
        "files": "open files",
        "threads": "threads",
    }
    assert failed == {names[name] for name in leak}
    assert trends["memory, MiB"]["per_hour"] == pytest.approx(leak.get("memory", 0), abs=1)


def held():
    return [len(os.listdir(f"/proc/self/{name}")) for name in ("fd", "task")]


@pytest.mark.slow
def test_saves_and_restores_hold_no_files_and_no_threads(tmp_path):
    def work(first, last):
        checkpoints = Checkpoints(tmp_path)
        for step in range(first, last):
            checkpoints.save(step, damages.small_state(step), {})
            checkpoints.wait()
            checkpoints.restore(step, damages.abstract_state())
        checkpoints.close()

    work(1, 20)  # TensorStore's pool of threads has its full size then
    before = held()
    work(20, 40)
    assert all(now <= then + 2 for now, then in zip(held(), before, strict=True))


def test_a_look_at_this_process(tmp_path):
    reported = tmp_path / "reported"
    reported.write_bytes((3 * 2**20).to_bytes(8, "little"))
    found = soak.look(os.getpid(), reported)
    assert found[soak.IN_USE] == 3
    assert found["memory, MiB"] > 50
    assert found["open files"] >= 3
    with pytest.raises(FileNotFoundError):
        soak.look(2**22 + 1, reported)


@pytest.mark.slow
def test_a_minute(tmp_path):
    result = soak.soak(1.0, soak.DEFAULT, tmp_path / "run")
    assert result["passed"], result["trends"]
    assert result["saves"] >= 1
    assert result["evaluations"] >= 1
    assert 10 < len(result["series"]) <= soak.MOST_POINTS
    assert all(50 < look[soak.IN_USE] < look["memory, MiB"] for look in result["series"])
    assert "| open files |" in tables.soak(result)
