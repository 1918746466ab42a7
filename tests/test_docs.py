"""README.md, docs/ and CONTRIBUTING.md name what exists: files, links, flags, fields, functions."""

import ast
import re
from pathlib import Path

import pytest
from absl import flags

import cifar_jax.cli.main  # noqa: F401 (defines the flags)
from cifar_jax.config.fields import flatten
from configs import default

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
PAGES += sorted(ROOT.glob("docs/*.md"))
PACKAGE = ROOT / "cifar_jax"
MOST_README_LINES = 200
FOLDERS = ("cifar_jax", "configs", "tests", "benchmarks", "results", "docs")
# What a run writes, and what the reader of an example writes.
NOT_HERE = {
    *(
        "config.json",
        "config_file.py",
        "calibration.json",
        "environment.json",
        "starts.json",
        "result.json",
    ),
    *(
        "search.html",
        "audit.html",
        "lock.json",
        "meta.json",
        "predictions.json",
        "report.html",
        "report/report.html",
    ),
    *("my_models.py", "my_optim.py", "my_augment.py", "FILE.py"),
    *("stripes.py", "configs/two_layers.py", "run_stablehlo.py", "model.stablehlo.json"),
}

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= MOST_README_LINES


@each_page
def test_links_lead_somewhere(page):
    for link in map("".join, re.findall(r'\]\(([^)\s]+)\)|src="([^"]+)"', page.read_text())):
        path, _, place = link.partition("#")
        target = page.parent / path if path else page
        assert link.startswith("https://") or target.exists(), link
        if place:
            titles = re.findall(r"^#+ (.*)$", target.read_text(), re.M)
            anchors = [re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles]
            assert place in anchors, link


@each_page
def test_named_files_exist(page):
    every = [str(path) for folder in FOLDERS for path in (ROOT / folder).rglob("*.*")]
    every += [str(path) for path in ROOT.glob("*.*")]
    for name in re.findall(r"`([\w./-]+\.(?:py|json|md|cff|html))[:`]", page.read_text()):
        assert name in NOT_HERE or any(path.endswith(f"/{name}") for path in every), name


@each_page
def test_named_flags_and_fields_exist(page):
    text = page.read_text()
    fields = {name for name, _ in flatten(default.get_config())}
    for name in re.findall(r"(?:--|`)config\.(?!json)([a-z_.]*[a-z_])", text):
        whole = name in fields or name == "optimiser.learning_rate"  # an example of a mistake
        part = name == "optimizer.groups" or any(field.startswith(f"{name}.") for field in fields)
        assert whole or part, name
    known = {"help", *flags.FLAGS}
    for command in re.findall(r"python main\.py((?:[^\n`]*\\\n)*[^\n`]*)", text):
        assert set(re.findall(r"--(\w+)", command.partition("#")[0])) <= known, command
        for file in re.findall(r"configs/\w+\.py", command):
            assert file in NOT_HERE or (ROOT / file).exists(), command


def read_names(*folders):
    """Returns every name in the code of some folders: functions, fields, arguments, strings."""
    names = set()
    for path in [path for folder in folders for path in (ROOT / folder).rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            names |= {getattr(node, kind, None) for kind in ("name", "id", "attr", "arg")}
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                names.update(re.findall(r"\w+", node.value))
    return names


def test_names_in_the_architecture_exist():
    text = (ROOT / "docs" / "architecture.md").read_text()
    found = set()
    for code in re.findall(r"`([^`]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL)):
        if not re.search(r"\.(py|jsonl?)\b|/|--", code):
            found |= set(re.findall(r"[A-Za-z_]\w+", code))
    assert len(found) > 60
    assert not found - read_names("cifar_jax", "configs")
    # "`name` in `file`", and the rows of tables: | `name` | `file` |.
    pairs = re.findall(r"`(\w+)`(?: in |\n *in | \| )`([\w/]+\.py)`", text)
    assert len(pairs) > 20
    for name, file in pairs:
        assert re.search(
            rf"\b(def|class) {name}\b|^{name}\b", (PACKAGE / file).read_text(), re.M
        ), (
            name,
            file,
        )
