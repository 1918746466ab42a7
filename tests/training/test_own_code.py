"""A model, an optimizer and an augmentation of the user's own, from training to evaluation."""

import hashlib
import json
import shutil

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

import cifar_jax
from cifar_jax.augment import own
from cifar_jax.errors import UserError
from cifar_jax.evaluation import evaluate
from cifar_jax.export import subject
from cifar_jax.models import registry
from cifar_jax.runs import sources
from cifar_jax.training import check
from configs import folder as folder_config
from tests import program, tiny
from tests.models.test_own import GOOD

CODE = (
    GOOD
    + """
import optax

def create(learning_rate, momentum=0.5):
    return optax.chain(optax.trace(momentum), optax.scale_by_learning_rate(learning_rate))

def invert(key, images):
    return 255 - images
"""
)
CONFIG = """
from ml_collections import ConfigDict
from tests import tiny

def get_config(**fields):
    config = tiny.config(num_steps=2, optimizer__name="mine.py:create",
        augment__custom="mine.py:invert", data__validation_examples=0)
    with config.unlocked():
        config.model = ConfigDict({"name": "mine.py:Net", "features": 3})
    return config
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of the config file and the code, in which nobody is, and a run in another one."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "project").mkdir()
    (folder / "project" / "mine.py").write_text(CODE)
    (folder / "project" / "config.py").write_text(CONFIG)
    flags = (f"--config={folder / 'project' / 'config.py'}", f"--workdir={folder / 'run'}")
    code, out, err = program.run_here(*flags)
    assert (code, err) == (0, ""), err
    return folder, flags, out


def test_the_code_beside_the_config_file_trains_and_is_kept(trained):
    folder, _, out = trained
    code = folder / "project" / "mine.py"
    assert "total: 70" in out
    record = json.loads((folder / "run" / "code" / "sources.json").read_text())
    assert sorted(record) == ["augment.custom", "model.name", "optimizer.name"]
    for field, source in record.items():
        assert source["path"] == str(code)
        assert (folder / "run" / "code" / f"{field}.py").read_text() == CODE
    assert json.loads((folder / "run" / "config.json").read_text())["model"]["features"] == 3


@pytest.mark.parametrize("name", [(), ("--config.model.name=mine.py:{model}",)])
def test_options_of_a_model_beside_its_config_can_be_set(trained, name):
    folder, flags, _ = trained
    model = json.loads((folder / "run" / "config.json").read_text())["model"]["name"]
    more = [x.format(model=model.rpartition(":")[2]) for x in name]
    wrong = (flags[0], f"--workdir={folder / 'other'}", *more, "--config.model.features=5")
    code, _, err = program.run_here(*wrong, "--config.batch_size=0")
    assert (code, err) == (2, "error: batch_size is 0 but must be greater than 0\n")


def test_checking_it_does_not_start_jax(trained):
    """JAX's devices are set up later; with this backend starting them would be an error."""
    wrong = (*trained[1], "--config.batch_size=0")
    code, out, err = program.run_apart(*wrong, environment={"JAX_PLATFORMS": "none"})
    assert (code, out) == (2, "")
    assert [line.split(" ")[:2] for line in err.splitlines()] == [["error:", "batch_size"]]


def test_it_is_found_where_it_was_and_where_we_are(trained, tmp_path, monkeypatch):
    folder, _, _ = trained
    accuracy = evaluate.evaluate_model(folder / "run").accuracy
    assert accuracy == json.loads((folder / "run" / "result.json").read_text())["test_accuracy"]
    moved = tmp_path / "run"
    shutil.copytree(folder / "run", moved)
    record = moved / "code" / "sources.json"
    record.write_text(record.read_text().replace(str(folder), "/gone"))
    config = cifar_jax.load(moved).config  # the reference itself has the path
    assert config.model.name == f"{folder / 'project' / 'mine.py'}:Net"


def test_code_that_changed_is_not_used_and_the_copy_only_on_demand(trained, tmp_path, monkeypatch):
    folder, flags, _ = trained
    code, run = folder / "project" / "mine.py", folder / "run"
    evaluation = ("--mode=evaluate", f"--workdir={run}")
    before = program.run_here(*evaluation)
    try:
        code.write_text(CODE.replace("nn.relu", "nn.gelu"))
        _, out, err = program.run_here(*evaluation)
        assert (out, err.count("\n")) == ("", 1)
        assert f"{code}:Net is not what {run} was trained with: undo that; to run the copy" in err
        code_of, out, err = program.run_here(*flags)
        assert (code_of, len(err.splitlines())) == (2, 4)
        assert f"{code} has changed since this run began; the text that it had is in {run}" in err
        code.unlink()
        _, out, err = program.run_here(*evaluation)
        assert (out, err.count("\n")) == ("", 1)
        assert f"{code}:Net, the model of {run}, is not here: start where it is; to run" in err
        assert program.run_here(*evaluation, "--stored_code") == before
        assert cifar_jax.load(run, stored_code=True).model.features == 3
        copy = run / "code" / "model.name.py"
        copy.write_text(CODE + "raise SystemExit('run')\n")
        _, out, err = program.run_here(*evaluation, "--stored_code")
        assert f"{copy} is missing or is not what the run was trained with" in err
        copy.write_text(CODE)
    finally:
        code.write_text(CODE)
    assert program.run_here(*evaluation) == before


def test_a_workdir_that_names_its_own_code_does_not_run_it(tmp_path, monkeypatch):
    """Such as one from the internet, whose config leads to the copy, with its right hash."""
    code = tmp_path / "run" / "code"
    code.mkdir(parents=True)
    text = "raise SystemExit('run')\n"
    for name in ("mine.py", "model.name.py", "mine_module.py"):
        (code / name).write_text(text)
    for reference, place in (
        ("mine.py:Net", code),
        ("run/code/mine.py:Net", tmp_path),
        (f"{code}/mine.py:Net", tmp_path),
        ("mine_module:Net", code),
        ("elsewhere.py:Net", tmp_path),
    ):
        monkeypatch.chdir(place)
        config = ConfigDict({"model": {"name": reference}})
        sha256 = hashlib.sha256(text.encode()).hexdigest()
        record = {"model.name": {"path": str(code / "mine.py"), "sha256": sha256}}
        (code / "sources.json").write_text(json.dumps(record))
        for workdir in (tmp_path / "run", tmp_path / "run" / "code" / ".."):
            with pytest.raises(
                UserError, match=r"to run the copy that is kept in .* look at it first"
            ):
                sources.use_sources(config, workdir)
        used = sources.use_sources(config, tmp_path / "run", stored_code=True)
        assert used.model.name == f"{code / 'model.name.py'}:Net"
        with pytest.raises(UserError, match="SystemExit: run"):
            registry.create(used.model.name, 10)


def test_a_folder_run_starts_from_it_with_the_code_where_it_was(trained, tmp_path, monkeypatch):
    """And not with code that the workdir itself holds and names."""
    for number in range(4):
        path = tmp_path / "pets" / str(number % 2) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4), number).save(path)
    folder, _, _ = trained
    code, run = folder / "project" / "mine.py", tmp_path / "run"
    shutil.copytree(folder / "run", run)
    monkeypatch.chdir(tmp_path)
    settings = json.loads((run / "config.json").read_text())
    settings["model"]["name"], settings["optimizer"]["name"] = "mine.py:Net", "mine.py:create"
    (run / "config.json").write_text(json.dumps(settings))
    config = folder_config.get_config(f"{tmp_path / 'pets'},{run}")
    assert (config.model.name, config.model.features) == (f"{code}:Net", 3)
    assert (config.optimizer.name, config.augment.custom) == (f"{code}:create", f"{code}:invert")
    kept = json.loads((run / "code" / "sources.json").read_text())
    for field, name in (("model", "Net"), ("optimizer", "create")):
        inside = str(run / "code" / f"{field}.name.py")
        changed = {**settings, field: {**settings[field], "name": f"{inside}:{name}"}}
        (run / "config.json").write_text(json.dumps(changed))
        own = {**kept, f"{field}.name": {**kept[f"{field}.name"], "path": inside}}
        (run / "code" / "sources.json").write_text(json.dumps(own))
        with pytest.raises(UserError, match=f"{name} is not what {run} was .* with: undo that$"):
            folder_config.get_config(f"{tmp_path / 'pets'},{run}")


def test_an_exported_model_needs_the_same_code(trained, tmp_path):
    folder, _, _ = trained
    code = folder / "project" / "mine.py"
    flags = ("--mode=export", f"--workdir={folder / 'run'}", "--formats=safetensors")
    assert program.run_here(*flags, f"--output={tmp_path}")[0] == 0
    file = tmp_path / "model.safetensors"
    assert cifar_jax.load(file).model.features == 3
    try:
        code.write_text(CODE.replace("nn.relu", "nn.gelu"))
        with pytest.raises(UserError, match=f"is not what {file} was trained with: undo that$"):
            cifar_jax.load(file)
        exported = subject.read_subject(folder / "run", stored_code=True)
        result = json.loads((folder / "run" / "result.json").read_text())
        assert exported.about["test"]["accuracy"] == result["test_accuracy"]
        refused = program.run_here(*flags, "--stored_code", f"--output={tmp_path}")
        assert refused[0] == 2
        assert "cannot be combined with --formats=safetensors, a file that holds no" in refused[2]
    finally:
        code.write_text(CODE)


def test_a_class_of_a_module_is_kept_by_the_file_that_defines_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    package = tmp_path / "my_own_package"
    package.mkdir()
    (package / "__init__.py").write_text("from my_own_package.nets import Net")
    (package / "nets.py").write_text(GOOD)
    config = tiny.config()
    for name in ("my_own_package:Net", "my_own_package.nets:Net"):
        with config.unlocked():
            config.model = ConfigDict({"name": name})
        check.check_config(config)
        sources.keep_sources(config, tmp_path)
        assert (tmp_path / "code" / "model.name.py").read_text() == GOOD
        assert sources.find_changes(config, tmp_path) == []
        assert sources.use_sources(config, tmp_path / "run", record=sources.read_record(tmp_path))
        (package / "nets.py").write_text(GOOD + "# changed")
        (change,) = sources.find_changes(config, tmp_path)
        assert change.startswith(f"{package / 'nets.py'} has changed since this run began")
        (package / "nets.py").write_text(GOOD)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("create = 3", "optimizer.name is 'mine.py:create', which is not a function with the arg"),
        ("def create(rate): ...", "is not a function with the argument learning_rate"),
        ("def create(learning_rate): return 3", "it returns 3, which is no optax transformation"),
        ("def create(learning_rate, a): ...", "missing 1 required positional argument: 'a'"),
        ("def create(learning_rate): return learning_rate / 0", "cannot train like this"),
        ("def creat(learning_rate): ...", "has no 'create'; did you mean 'creat'?"),
    ],
)
def test_what_an_optimizer_lacks_is_named(tmp_path, monkeypatch, text, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(UserError) as caught:
        check.check_config(tiny.config(optimizer__name="mine.py:create"))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("invert = 3", "which is not a function (key, images) -> images"),
        ("def invert(images): ...", "takes 1 positional argument but 2 were given"),
        (
            "def invert(key, images): return images / 255",
            "returns float32 [2, 32, 32, 1] for images",
        ),
        (
            "def invert(key, images): return images[:, 1:]",
            "returns uint8 [2, 31, 32, 1] for images",
        ),
        ("def invert(key, images): pass", "which returns <class 'NoneType'>"),
        ("", "has no 'invert': it has nothing"),
    ],
)
def test_what_an_augmentation_lacks_is_named(tmp_path, monkeypatch, text, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(UserError) as caught:
        check.check_config(tiny.config(augment__custom="mine.py:invert"))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"augment.custom is 'invert': name a function as FILE.py:"):
        check.check_config(tiny.config(augment__custom="invert"))


def test_an_augmentation_gets_a_key_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(
        "import jax\ndef noise(key, images): return jax.random.bits(key, images.shape, 'uint8')"
    )
    key, images = jax.random.key(0), np.zeros((2, 3, 3, 1), np.uint8)
    made = own.augment_by("mine.py:noise", key, images)
    others = [key, *jax.random.split(key, 6), *jax.random.split(key, 4)]
    assert not any((jax.random.bits(x, images.shape, "uint8") == made).all() for x in others)
