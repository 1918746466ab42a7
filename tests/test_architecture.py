"""Imports go one way; training needs neither TensorFlow nor PyTorch; modules stay small."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "cifar_jax"

# A module may import from its own layer's earlier lines and from the layers above it in this list.
LAYERS = [
    ["errors", "fields", "durations", "tables", "allocator", "groups", "muon"],
    [
        "workdir",
        "command",
        "curves",
        "arrays",
        "manifest",
        "quiet",
        "signals",
        "image_ops",
        "download",
        "numpy_mlp",
        "losses",
        "metrics",
        "ops",
        "plots",
        "photos",
        "diagnostics",
        "page",
    ],
    [
        "auto_augment",
        "augment",
        "mixing",
        "image_cache",
        "records",
        "prepare",
        "datasets",
        "models",
    ],
    ["summary", "optim", "config", "devices", "hosts", "logs", "checkpoint", "compare", "explore"],
    ["seeds", "sampling", "state", "steps", "scores", "views"],
    ["trained", "run", "trace"],
    ["evaluate", "predict", "report", "train", "numpy_mlp_command"],
    ["distributed"],
]
# The command of `python -m cifar_jax.numpy_mlp`, imported when that is run.
ALLOWED = {("numpy_mlp", "numpy_mlp_command")}
ORDER = {name: place for place, names in enumerate(LAYERS) for name in names}


def imports(path):
    """Yields the modules of this package that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "cifar_jax":
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("cifar_jax."):
            yield node.module.split(".")[1]
        elif isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
            yield from (parts[1] for parts in names if parts[0] == "cifar_jax" and parts[1:])


FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def module(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_one_way(path):
    own = module(path)
    assert own in ORDER, f"{own} has no layer"
    for other in imports(path):
        if other != own and (own, other) not in ALLOWED:
            assert ORDER[other] <= ORDER[own], f"{own} imports {other}, of a higher layer"


def test_no_circle():
    graph = {}
    for path in FILES:
        own = module(path)
        others = {other for other in imports(path) if (own, other) not in ALLOWED}
        graph.setdefault(own, set()).update(others - {own})
    while ends := [name for name, others in graph.items() if not others & graph.keys()]:
        for name in ends:
            del graph[name]
    assert not graph, f"these import each other: {sorted(graph)}"


def test_files_and_functions_stay_small():
    for path in FILES:
        assert len(path.read_text().splitlines()) <= 260, path
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 70, f"{path}: {node.name}"


def test_training_and_evaluation_import_neither_tensorflow_nor_torch(tmp_path):
    program = (
        "import sys; from pathlib import Path\n"
        "from cifar_jax import evaluate, signals, train; from tests import tiny\n"
        f"folder = Path({str(tmp_path)!r})\n"
        "train.train(tiny.config(num_steps=2, log__tensorboard=True), folder, signals.Signals())\n"
        "evaluate.evaluate(folder)\n"
        "bad = {'tensorflow', 'torch', 'keras', 'matplotlib'} & set(sys.modules)\n"
        "assert not bad, bad"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=os.environ, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
