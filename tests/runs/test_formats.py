"""Reading runs: those of earlier formats, and never anything that could run code."""

import ast
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import cifar_jax
from cifar_jax.data import cache
from cifar_jax.errors import UserError
from cifar_jax.evaluation import trained
from cifar_jax.runs import checkpoint, manifest
from cifar_jax.runs.checkpoint import Checkpoints
from tests import program, sample_run

DATA = Path(__file__).parents[1] / "data"
FORMATS = sorted(DATA.glob("format-*"))
ROOT = Path(__file__).parents[2]


def test_a_run_of_the_present_format_is_kept():
    assert DATA / f"format-{manifest.FORMAT}" in FORMATS


@pytest.mark.parametrize("folder", FORMATS, ids=lambda path: path.name)
def test_a_run_of_an_earlier_format_gives_the_same_logits(folder):
    logits = cifar_jax.load(folder).predict_logits(sample_run.images(), 4)
    expected = json.loads((folder / "logits.json").read_text())
    np.testing.assert_allclose(logits, expected, atol=1e-4)
    assert np.ptp(expected) > 0.1


@pytest.mark.parametrize("folder", FORMATS, ids=lambda path: path.name)
def test_a_run_of_an_earlier_format_is_evaluated_and_resumed(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "run")
    workdir = f"--workdir={tmp_path / 'run'}"
    code, out, err = program.run_here("--mode=evaluate", workdir)
    assert (code, err) == (0, "")
    assert "checkpoint of step 3: test accuracy 6.11% (22 of 360)" in out
    (tmp_path / "more.py").write_text(
        "from tests import sample_run\ndef get_config():\n    return sample_run.config(5)\n"
    )
    code, out, err = program.run_here(f"--config={tmp_path / 'more.py'}", workdir)
    assert (code, err) == (0, "")
    assert "resuming from the checkpoint of step 3" in out


def test_a_changed_model_in_the_meta_is_named(tmp_path):
    """The arrays belong to another model than the description: the differences are named."""
    shutil.copytree(FORMATS[-1], tmp_path / "run")
    folder = tmp_path / "run" / "checkpoints" / "3"
    meta = json.loads((folder / "meta.json").read_text())
    meta["config"]["model"]["conv_features"] = [2, 3]
    (folder / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(UserError, match=r"is damaged|has no intact checkpoint"):
        cifar_jax.load(tmp_path / "run")
    manifest.write_manifest(folder)
    with pytest.raises(
        UserError,
        match=r"another model: in it, .*/mean is float32 \[2\] instead of float32 \[3\];",
    ) as caught:
        cifar_jax.load(tmp_path / "run")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["config", "data", "progress"])
@pytest.mark.parametrize("value", [None, [1], {}])
def test_a_meta_with_a_missing_part_is_named(tmp_path, name, value):
    shutil.copytree(FORMATS[-1], tmp_path / "run")
    folder = tmp_path / "run" / "checkpoints" / "3"
    meta = json.loads((folder / "meta.json").read_text())
    (folder / "meta.json").write_text(json.dumps(meta | {name: value}))
    manifest.write_manifest(folder)
    (tmp_path / "more.py").write_text(
        "from tests import sample_run\ndef get_config():\n    return sample_run.config(5)\n"
    )
    command = [f"--config={tmp_path / 'more.py'}"] if name == "progress" else ["--mode=evaluate"]
    code, _, err = program.run_here(*command, f"--workdir={tmp_path / 'run'}")
    if name == "progress":
        assert (code, err.count("\n")) == (1, 2)
        assert "3-0: its progress cannot be read\nerror: no checkpoint of " in err
    else:
        assert (code, err.count("\n")) == (2, 2)
        words = "it has no config" if name == "config" else "its data have a wrong "
        assert err.startswith(f"skipping the damaged checkpoint {folder}: {words}")
        assert err.endswith(f"error: {tmp_path / 'run'} has no intact checkpoint\n")


@pytest.mark.parametrize(
    ("name", "value"),
    [*[("mean", value) for value in ([], [0.5, 0.5], 0.5, ["x"])], ("image_shape", [])],
)
def test_a_mean_or_shape_that_does_not_fit_is_named(tmp_path, name, value, caplog):
    shutil.copytree(FORMATS[-1], tmp_path / "run")
    folder = tmp_path / "run" / "checkpoints" / "3"
    meta = json.loads((folder / "meta.json").read_text())
    meta["data"][name] = value
    (folder / "meta.json").write_text(json.dumps(meta))
    manifest.write_manifest(folder)
    with pytest.raises(UserError, match=r"run has no intact checkpoint$"):
        cifar_jax.load(tmp_path / "run")
    words = f"skipping the damaged checkpoint {folder}: its data have a wrong {name}"
    assert caplog.messages == [words]


# Modules that run code from a file, or might.
UNSAFE = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "yaml"}


def find_unsafe(source):
    """Returns the code in a source that unpickles, or loads arrays that may be pickles."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.split(".")[0] in UNSAFE]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in UNSAFE:
            found.append(node.module)
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            settings = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            loads = name in ("np.load", "numpy.load", "np.lib.format.read_array")
            if settings.get("allow_pickle", "False" if not loads else "") != "False":
                found.append(ast.unparse(node))
            if name in ("eval", "exec", "__import__"):
                found.append(ast.unparse(node))
    return found


def test_no_module_unpickles():
    for path in (*(ROOT / "cifar_jax").rglob("*.py"), ROOT / "main.py"):
        found = find_unsafe(path.read_text())
        if path.name == "custom.py":  # runs the code that the user's own config names
            found.remove("exec(compile(text, path, 'exec'), module.__dict__)")
        assert found == [], path
    for bad in (
        "import pickle",
        "from dill import load",
        "np.load('x')",
        "np.load('x', allow_pickle=True)",
        "np.save('x', y, allow_pickle=True)",
        "eval('x')",
    ):
        assert len(find_unsafe(bad)) == 1, bad


class Bomb:
    """An object that fails the test when it is unpickled."""

    def __reduce__(self):
        return (pytest.fail, ("unpickled",))


def test_pickled_arrays_in_the_cache_are_damage(tmp_path, caplog):
    images, labels = np.zeros((3, 4, 4, 3), np.uint8), np.arange(3, dtype=np.int32)

    def load():
        return cache.load_or_build(tmp_path, "set", "train", lambda: (images, labels, ("a",)))

    load()
    (file,) = (tmp_path / "decoded").glob("train-images-*.npy")
    file.unlink()
    np.save(file, np.array([Bomb()], object), allow_pickle=True)
    np.testing.assert_array_equal(load().images, images)
    assert "damaged" in caplog.text


def test_a_pickle_in_a_checkpoint_is_damage(tmp_path):
    shutil.copytree(FORMATS[-1], tmp_path / "run")
    folder = tmp_path / "run" / "checkpoints" / "3"
    np.save(folder / "state" / "x.npy", np.array([Bomb()], object), allow_pickle=True)
    assert manifest.find_damage(folder) == "state/x.npy does not belong to it"
    with pytest.raises(UserError, match="has no intact checkpoint"):
        cifar_jax.load(tmp_path / "run")


@pytest.mark.parametrize("which", ["last", "3", "best"])
def test_a_checkpoint_that_a_run_deletes_while_it_is_read(tmp_path, monkeypatch, caplog, which):
    run = tmp_path / "run"
    shutil.copytree(FORMATS[-1], run)
    restore = checkpoint.Checkpoints.restore

    def restore_late(self, step, wanted):
        if step == 3:  # meanwhile the run has saved others
            folder = (run / "checkpoints" / "3").rename(run / "checkpoints" / "4")
            meta = json.loads((folder / "meta.json").read_text())
            meta["progress"]["step"] = 4
            (folder / "meta.json").write_text(json.dumps(meta))
            manifest.write_manifest(folder)
        return restore(self, step, wanted)

    monkeypatch.setattr(Checkpoints, "restore", restore_late)
    monkeypatch.setattr(Checkpoints, "_best", lambda self, steps: steps[-1])
    if which == "3":
        with pytest.raises(UserError, match="no checkpoint '3'; there are last, 4"):
            cifar_jax.load(run, which)
    else:
        assert trained.load(run, which).step == 4
    assert caplog.records == []
