"""Rooms and files import one way; training needs no TensorFlow or PyTorch; files stay small."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "cifar_jax"

# A room may import from itself and from the rooms before it; rooms on one line not from each other.
ORDER = [
    {"errors", "limits", "text", "numpy_mlp"},
    {"files"},
    {"config"},
    {"ops", "augment", "optim"},
    {"models"},
    {"data"},
    {"parallel"},
    {"runs"},
    {"evaluation"},
    {"training"},
    {"reports"},
    {"export"},
    {"studies"},
    {"api"},
    {"cli"},
]
LEVEL = {room: level for level, rooms in enumerate(ORDER) for room in rooms}
MOST_LINES, MOST_FUNCTION_LINES = 250, 60
# `python -m cifar_jax.numpy_mlp` runs its command, which imports it.
COMMANDS = {("numpy_mlp", "cli.numpy_mlp")}


def read_imports(package):
    """Returns for each module of a package, "room.file", those that it imports, wherever in it."""
    paths = [path for path in package.rglob("*.py") if path.name != "__init__.py"]
    modules = {".".join(path.relative_to(package).with_suffix("").parts): path for path in paths}
    graph = {}
    for name, path in modules.items():
        found = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(package.name):
                place = node.module.removeprefix(package.name).removeprefix(".")
                parts = [".".join(filter(None, (place, alias.name))) for alias in node.names]
                found |= {x for x in [place, *parts] if x in modules}
                found |= {f"{x}." for x in parts if (package / x.replace(".", "/")).is_dir()}
            elif isinstance(node, ast.Import):
                dotted = [alias.name for alias in node.names if "." in alias.name]
                found |= {x.partition(".")[2] for x in dotted if x.startswith(f"{package.name}.")}
        graph[name] = {other for other in found - {name} if (name, other) not in COMMANDS}
    return graph


def find_violations(graph):
    """Returns a line for each import that goes against the order of rooms, and for each circle."""
    lines = []
    for name, others in graph.items():
        room = name.partition(".")[0]
        if room not in LEVEL:
            lines.append(f"{name}: the room {room} has no place in the order")
        for other in others:
            theirs = other.partition(".")[0]
            if theirs != room and LEVEL.get(theirs, 99) >= LEVEL.get(room, 99):
                lines.append(f"{name} imports {other}, which is not in an earlier room")
    left = {name: others & graph.keys() for name, others in graph.items()}
    while ends := [name for name, others in left.items() if not others & left.keys()]:
        for name in ends:
            del left[name]
    return lines + [f"these files import each other: {', '.join(sorted(left))}"] * bool(left)


def test_imports_go_one_way_and_in_no_circle():
    graph = read_imports(PACKAGE)
    assert len(graph) > 40
    assert not find_violations(graph)


@pytest.mark.parametrize(
    ("file", "line", "words"),
    [
        ("ops/a.py", "from cifar_jax.training import loop", "not in an earlier room"),
        ("ops/a.py", "def f():\n    from cifar_jax.cli.main import main", "not in an earlier room"),
        ("ops/a.py", "from cifar_jax.augment import batch", "not in an earlier room"),
        ("ops/a.py", "import cifar_jax.runs.logs", "not in an earlier room"),
        ("ops/a.py", "from cifar_jax import models", "not in an earlier room"),
        ("ops/a.py", "from cifar_jax.ops.b import g", "import each other: ops.a, ops.b"),
        ("cellar/a.py", "", "cellar has no place"),
    ],
)
def test_a_planted_violation_is_found(tmp_path, file, line, words):
    package = tmp_path / "cifar_jax"
    for name, text in (
        *(("training/loop.py", ""), ("cli/main.py", ""), ("augment/batch.py", "")),
        *(("runs/logs.py", ""), ("models/__init__.py", "")),
        ("ops/b.py", "from cifar_jax.ops.a import f"),
        (file, line),
    ):
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(text)
    (violation,) = find_violations(read_imports(package))
    assert words in violation


def find_shared_names(package):
    """Returns a line for each public function or class that several modules define."""
    places = {}
    for path in sorted(package.rglob("*.py")):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                places.setdefault(node.name, []).append(str(path.relative_to(package)))
    return [
        f"{name} is defined in {', '.join(paths)}"
        for name, paths in sorted(places.items())
        if len(paths) > 1 and name != "main"  # each command has its own
    ]


def test_public_names_are_defined_once():
    assert find_shared_names(PACKAGE) == []


@pytest.mark.parametrize("line", ["def load(path): ...", "class load: ..."])
def test_a_planted_second_name_is_found(tmp_path, line):
    for name, text in (
        ("data/a.py", f"{line}\ndef main(): ...\ndef _save(): ...\ndef a():\n    def b(): ..."),
        ("runs/b.py", "def load(): ...\ndef main(): ...\ndef _save(): ...\ndef b(): ..."),
    ):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(text)
    assert find_shared_names(tmp_path) == ["load is defined in data/a.py, runs/b.py"]


def test_files_and_functions_stay_small():
    for path in PACKAGE.rglob("*.py"):
        assert len(path.read_text().splitlines()) <= MOST_LINES, path
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < MOST_FUNCTION_LINES, f"{path}: {node.name}"


def imported_packages(path):
    """Returns the packages that a file imports, also those in programs that it holds as text."""
    found = set(re.findall(r"^\s*(?:.*[;'\"] *)?(?:from|import) +(\w+)", path.read_text(), re.M))
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").partition(".")[0])
    return found


def find_crossings(root):
    """Returns the files of benchmarks/ that import tests, and of tests/ that import benchmarks.

    tests/benchmarks/ tests the benchmarks, so it may import them; this file names both.
    """
    exempt = {root / "tests/benchmarks", root / "tests/test_architecture.py"}
    wrong = {"benchmarks": "tests", "tests": "benchmarks", "cifar_jax": "benchmarks"}
    return [
        f"{path.relative_to(root)} imports {other}"
        for folder, other in wrong.items()
        for path in sorted((root / folder).rglob("*.py"))
        if exempt.isdisjoint((path, *path.parents)) and other in imported_packages(path)
    ]


def test_benchmarks_import_no_tests_and_only_their_own_tests_import_them():
    assert find_crossings(ROOT) == []


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("benchmarks/a.py", "from tests import program"),
        ("benchmarks/peers/a.py", "def f():\n    import tests.program"),
        ("tests/runs/test_a.py", "from benchmarks import soak"),
        ("tests/faults/a.py", "import benchmarks.workers as workers"),
        ("tests/runs/test_a.py", 'TEXT = "import sys; from benchmarks import soak"'),
        ("cifar_jax/a.py", "from benchmarks import soak"),
    ],
)
def test_a_planted_crossing_is_found(tmp_path, file, line):
    allowed = {"tests/benchmarks/test_soak.py": "from benchmarks import soak"}
    for name, text in (allowed | {file: line}).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (crossing,) = find_crossings(tmp_path)
    assert crossing.startswith(f"{file} imports ")


def test_training_and_evaluation_import_neither_tensorflow_nor_torch(tmp_path):
    program = (
        "import sys; from pathlib import Path\n"
        "from cifar_jax.evaluation import evaluate; from cifar_jax.training import loop\n"
        "from cifar_jax.runs import signals; from tests import tiny\n"
        f"folder = Path({str(tmp_path)!r})\n"
        "config = tiny.config(num_steps=2, log__tensorboard=True)\n"
        "loop.train_model(config, folder, signals.Signals())\n"
        "evaluate.evaluate_model(folder)\n"
        "bad = {'tensorflow', 'torch', 'keras', 'matplotlib'} & set(sys.modules)\n"
        "assert not bad, bad"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=os.environ, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
