"""The benchmark of single operations times what it says, and its table names the fastest."""

import re

import pytest

from benchmarks import operations
from benchmarks.peers import operations_jax
from results import tables
from tests.few import some


def loop_text(program, repeats):
    """Returns the text of the loop with that many turns in a program, and of all that it calls."""
    parts = dict(re.findall(r"^%?([\w.-]+) \([^\n]*\{\n(.*?)^\}", program, re.M | re.S))
    (name,) = re.findall(rf'body=%?([\w.-]+),.*known_trip_count":\{{"n":"{repeats}"', program)
    text, names = "", [name]
    while names:
        part = parts.pop(names.pop(), "")
        text += part
        names += re.findall(r"(?:body|calls|to_apply)=%?([\w.-]+)", part)
    return text


@pytest.mark.parametrize("what", some([operations.OPERATIONS[1]], operations.OPERATIONS))
def test_the_operation_stays_in_the_loop(what):
    """Otherwise the time of many turns would be that of one."""
    case = operations_jax.make_case(what, 16, 16, 16)
    program = operations_jax.compile_repeated(*case, repeats=37)
    assert re.search(r" (convolution|dot)\(", loop_text(program.func.as_text(), 37))


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
