"""The promises of docs/guarantees.md name tests that exist, run, and check something."""

import ast
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
PAGE = TESTS.parent / "docs" / "guarantees.md"
NUM_PROMISES = 33


def read_promises(text):
    """Returns the rows of the page's table: (promise, [(file, test)])."""
    rows = []
    for promise, tests in re.findall(r"^\| (?!promise)([^|]+) \| ([^|]*`) \|$", text, re.M):
        named, file = [], ""
        for name in re.findall(r"`([^`]*)`", tests):
            file, _, test = (file + name if name.startswith("::") else name).partition("::")
            named.append((file, test))
        rows.append((promise, named))
    return rows


def find_problem(file, test):
    """Returns what is wrong with a test that a promise names, "" if nothing is."""
    if not (TESTS / file).is_file():
        return "there is no such file"
    tree = ast.parse((TESTS / file).read_text())
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    if not test.startswith("test_") or test not in functions:
        return "there is no such test"
    if any(
        "skip(" in ast.unparse(mark) or "xfail" in ast.unparse(mark)
        for mark in functions[test].decorator_list
    ):
        return "it does not run"
    # What it checks may be in functions of its file.
    left, seen = [test], set()
    while left:
        name = left.pop()
        seen.add(name)
        for node in ast.walk(functions[name]):
            if isinstance(node, ast.Assert) or "raises" in getattr(node, "attr", ""):
                return ""
            called = getattr(node, "id", "")
            if called.startswith("assert") or getattr(node, "attr", "").startswith("assert"):
                return ""
            if called in functions.keys() - seen:
                left.append(called)
    return "it checks nothing"


def test_each_promise_has_its_tests():
    text = PAGE.read_text()
    promises = read_promises(text)
    table = text.partition("|---|---|\n")[2].partition("\n\n")[0]
    assert len(promises) == len(table.splitlines()) == NUM_PROMISES
    problems = [
        f"{promise}: {file}::{test}: {problem}"
        for promise, named in promises
        for file, test in named or [("", "")]
        if (problem := find_problem(file, test))
    ]
    assert not problems


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ("def test_b():\n    assert 1", "no such test"),
        ("@pytest.mark.skip(reason='')\ndef test_a():\n    assert 1", "does not run"),
        ("def f():\n    pass\ndef test_a():\n    f()", "checks nothing"),
    ],
)
def test_a_promise_without_a_test_is_found(tmp_path, monkeypatch, body, problem):
    monkeypatch.setattr("tests.test_promises.TESTS", tmp_path)
    (tmp_path / "test_x.py").write_text(body)
    assert problem in find_problem("test_x.py", "test_a")
    (tmp_path / "test_x.py").write_text("def f():\n    assert 1\ndef test_a():\n    f()")
    assert find_problem("test_x.py", "test_a") == ""
