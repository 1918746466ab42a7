"""The README's promises name tests that exist."""

import ast
import re
from pathlib import Path

TESTS = Path(__file__).parent
README = TESTS.parent / "README.md"


def promises():
    """Returns the rows of the README's table: (promise, [(file, test)])."""
    section = README.read_text().partition("## What it promises\n")[2].partition("\n## ")[0]
    rows = []
    for promise, tests in re.findall(r"^\| (?!promise)([^|]+) \| (`[^|]+`) \|$", section, re.M):
        named, file = [], ""
        for name in re.findall(r"`([^`]*)`", tests):
            file, _, test = (file + name if name.startswith("::") else name).partition("::")
            named.append((file, test))
        rows.append((promise, named))
    return rows


def test_each_promise_has_its_tests():
    rows = promises()
    assert len(rows) >= 10
    for promise, named in rows:
        assert named, promise
        for file, test in named:
            tree = ast.parse((TESTS / file).read_text())
            functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
            assert test.startswith("test_"), promise
            assert test in functions, f"{promise}: {file}::{test}"
