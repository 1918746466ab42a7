"""The benchmark of single operations times what it says, and its table names the fastest."""

import pytest

from benchmarks import operations
from benchmarks.peers import operations_jax
from results import tables


def test_the_programs_hold_the_operation_of_every_turn():
    """Else XLA would have taken it out of the loop, and the times would be of nothing."""
    for what in operations.OPERATIONS:
        small, large = (
            min(operations_jax.measure(what, 16, 16, 16, repeats) * repeats for _ in range(3))
            for repeats in (1, 12)
        )
        assert large > 3 * small, what


def test_work_of_an_operation():
    assert operations.gigaflops(32, 32, 32) == pytest.approx(1.208, abs=1e-3)


def test_table_of_the_operations():
    times = {"ours": [2.0, 1.0, 3.0], "pytorch": [2.5]}
    shape = {"what": "forward", "size": 32, "channels": 3, "features": 16}
    table = tables.operations(
        {
            "measurements": [{**shape, "milliseconds": times, "at_matrix_rate": 0.51}],
            "matrix_gigaflops_per_second": {"ours": 200.4, "pytorch": 100},
            "hardware": "one core",
            "versions": dict.fromkeys(times),
        }
    )
    assert "| 32x32, 3 to 16 | forward | **2.0** | 2.5 | 0.5 |\n" in table
    assert "200 by this project, 100 by PyTorch GFLOP/s" in table
