"""What may be resumed, and from what: other data, other runs' checkpoints, finished runs."""

import dataclasses
import errno
import json
import os
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import cifar_jax
from cifar_jax.config import durations
from cifar_jax.data import datasets
from cifar_jax.data.datasets import Split
from cifar_jax.errors import UserError
from cifar_jax.models.registry import create_model
from cifar_jax.optim import build, schedules
from cifar_jax.runs import history, manifest, provenance
from cifar_jax.runs import signals as signals_lib
from cifar_jax.runs import workdir as workdir_lib
from cifar_jax.runs.checkpoint import Checkpoints
from cifar_jax.training import check, loop, resume, start, step
from cifar_jax.training.state import TrainState, make_init
from tests import own_set, program, tiny


def train(folder, **fields):
    folder.mkdir(exist_ok=True)
    return loop.train_model(tiny.config(**fields), folder, signals_lib.Signals())


@pytest.fixture(scope="module")
def half(tmp_path_factory):
    """A run of which one epoch of two is made: steps 5 of 10, by a schedule that may be longer."""
    folder = tmp_path_factory.mktemp("resume") / "half"
    assert train(folder, num_epochs=1.0) == 0
    (folder / "result.json").unlink()
    return folder


@pytest.fixture
def run(half, tmp_path):
    return Path(shutil.copytree(half, tmp_path / "run"))


def change_data(monkeypatch, change):
    load = datasets.load_dataset

    def load_other(*arguments):
        return change(load(*arguments))

    monkeypatch.setattr(datasets, "load_dataset", load_other)


def change_test(dataset, labels):
    test = dataset.splits["test"]
    splits = {**dataset.splits, "test": Split(test.images, labels(test.labels))}
    return dataclasses.replace(dataset, splits=splits)


def change_train(dataset, images=lambda x: x, labels=lambda x: x):
    train = dataset.splits["train"]
    splits = {**dataset.splits, "train": Split(images(train.images), labels(train.labels))}
    return dataclasses.replace(dataset, splits=splits)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda x: dataclasses.replace(x, class_names=(*"1023456789",)),
            "class 0 was '0' and is now '1'",
        ),
        (
            lambda x: change_train(x, lambda y: y[:1400], lambda y: y[:1400]),
            "num_images was {'train': 320, 'test': 360, 'validation': 1117} and is now",
        ),
        (
            lambda x: change_train(x, labels=lambda y: 9 - y),
            "the labels of train and validation differ",
        ),
        (lambda x: change_test(x, lambda y: 9 - y), "the labels of test differ"),
        (lambda x: dataclasses.replace(x, mean=(0.25,)), "mean was ["),
    ],
)
def test_other_data_are_refused_by_name(run, monkeypatch, change, words):
    change_data(monkeypatch, change)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(UserError) as caught:
        train(run, num_epochs=2.0)
    assert f"was trained on other data: {words}" in str(caught.value)
    assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}


def test_a_checkpoint_without_a_fingerprint_is_resumed(run):
    """Earlier versions wrote none."""
    folder = run / "checkpoints" / "5"
    meta = json.loads((folder / "meta.json").read_text())
    for name in ("num_images", "labels_sha256"):
        del meta["data"][name]
    (folder / "meta.json").write_text(json.dumps(meta))
    manifest.write_manifest(folder)
    assert train(run, num_epochs=2.0) == 0


def test_a_checkpoint_with_the_training_labels_alone_is_resumed(run, monkeypatch):
    """So did earlier versions describe them."""
    folder = run / "checkpoints" / "5"
    meta = json.loads((folder / "meta.json").read_text())
    meta["data"]["labels_sha256"] = meta["data"]["labels_sha256"]["train"]
    (folder / "meta.json").write_text(json.dumps(meta))
    manifest.write_manifest(folder)
    with monkeypatch.context() as patch:
        change_data(patch, lambda x: change_train(x, labels=lambda y: 9 - y))
        with pytest.raises(UserError, match="the labels of train differ"):
            train(run, num_epochs=2.0)
    assert train(run, num_epochs=2.0) == 0


def test_a_checkpoint_of_another_run_is_not_continued(run, tmp_path, caplog):
    train(tmp_path / "other", seed=3, num_epochs=2.0)
    (tmp_path / "other" / "checkpoints" / "10").rename(run / "checkpoints" / "10")
    assert train(run, num_epochs=2.0) == 0
    (line,) = [line for line in caplog.messages if "moved" in line]
    assert line.endswith("it belongs to another run: seed was 3 and is now 0")
    assert cifar_jax.load(run).step == 10
    train(tmp_path / "whole", num_epochs=2.0)
    assert program.difference(run, tmp_path / "whole") == ""


def test_a_renamed_checkpoint_is_damage(run, caplog):
    shutil.copytree(run / "checkpoints" / "5", run / "checkpoints" / "7")
    assert Checkpoints(run, writable=False).find("last") == 5
    assert caplog.messages[0].endswith("7: it is the checkpoint of step 5")
    with pytest.raises(UserError, match="damaged: it is the checkpoint of step 5"):
        cifar_jax.load(run, "7")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("step", "5"), ("seconds", None), ("sums", []), ("sums", {"loss": ["a", 1]})),
        *(("sums", {"resume": [1, 1]}), ("stepping", -1)),
    ],
)
def test_progress_that_cannot_be_read_is_not_believed(run, field, value, caplog):
    folder = run / "checkpoints" / "5"
    meta = json.loads((folder / "meta.json").read_text())
    meta["progress"][field] = value
    (folder / "meta.json").write_text(json.dumps(meta))
    manifest.write_manifest(folder)
    with pytest.raises(UserError, match=r"no checkpoint of .* can be used, all are in"):
        train(run, num_epochs=2.0)
    assert list((run / "damaged_checkpoints").iterdir())
    with pytest.raises(UserError, match="to start this run from the beginning"):  # and again
        train(run, num_epochs=2.0)


@pytest.mark.parametrize(
    ("part", "value"),
    [
        *(("data.class_names", 5), ("data.class_names", None), ("data.mean", [float("nan")])),
        *(("data.std", [0]), ("config", [1]), ("config.test_time.views", "bogus")),
    ],
)
def test_a_checkpoint_that_says_what_cannot_be_is_passed_over(run, caplog, part, value):
    """Its sums are right; the one before it is taken."""
    folder = shutil.copytree(run / "checkpoints" / "5", run / "checkpoints" / "7")
    meta = json.loads((folder / "meta.json").read_text())
    meta["progress"]["step"] = 7
    *parts, name = part.split(".")
    place = meta
    for inner in parts:
        place = place[inner]
    place[name] = value
    (folder / "meta.json").write_text(json.dumps(meta))
    manifest.write_manifest(folder)
    assert cifar_jax.load(run).step == 5
    (line,) = caplog.messages
    assert line.startswith(f"skipping the damaged checkpoint {folder}: its ") or "no config" in line
    with pytest.raises(UserError, match=r"checkpoints/7 is damaged: it"):
        cifar_jax.load(run, "7")
    assert train(run, num_epochs=2.0) == 0
    assert (run / "damaged_checkpoints" / "7-0").is_dir()
    assert cifar_jax.load(run).step == 10


def test_an_error_of_the_system_is_not_damage(run, monkeypatch):
    def fail(*_):
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    with monkeypatch.context() as patch:
        patch.setattr(manifest.hashlib, "file_digest", fail)
        with pytest.raises(UserError, match=r"cannot be read \(Stale file handle\): nothing was"):
            train(run, num_epochs=2.0)
    assert not (run / "damaged_checkpoints").exists()
    with monkeypatch.context() as patch:
        patch.setattr(os, "listdir", fail)
        with pytest.raises(OSError, match="Stale"):
            train(run, num_epochs=2.0)
    assert train(run, num_epochs=2.0) == 0
    lines = history.read_lines(run / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(1, 11))


def test_a_finished_run_is_left_as_it_is(tmp_path, monkeypatch):
    flag = program.write_config(tmp_path / "c.py", num_epochs=1.0)
    workdir = f"--workdir={tmp_path / 'run'}"
    code, out, _ = program.run_here(flag, workdir)
    assert code == 0
    assert f"5 steps (1 epoch) in {tmp_path / 'run'}\n" in out
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    again = (flag, workdir, "--config.test_time.views=mirror", "--config.log.tensorboard=True")
    code, out, err = program.run_here(*again)
    assert (code, err) == (0, "")
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    words = f"is finished: step 5, test accuracy {result['test_accuracy']:.2%}; nothing was changed"
    assert words in out
    left = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    assert left == files


def test_a_longer_run_that_died_at_its_start_is_not_finished(tmp_path):
    config = tiny.config(num_epochs=1.0, schedule__name="constant")
    assert train(tmp_path / "run", num_epochs=1.0, schedule__name="constant") == 0
    result = resume.find_result(config, tmp_path / "run")
    assert result is not None
    config.num_epochs = 2.0
    resume.record_start(config, tmp_path / "run", 5, None)
    assert resume.find_result(config, tmp_path / "run") is None
    config.num_epochs = 1.0
    del result["test_accuracy"]
    (tmp_path / "run" / "result.json").write_text(json.dumps(result))
    assert resume.find_result(config, tmp_path / "run") is None


def test_a_damaged_list_of_starts_does_not_stop_a_run(run, caplog):
    for content in ("{", '{"starts": 3}', '{"starts": [3]}', "{}"):
        (run / "starts.json").write_text(content)
        caplog.clear()
        assert resume.read_starts(run) == []
        (line,) = caplog.messages
        assert "starts.json is damaged" in line
    assert train(run, num_epochs=2.0) == 0
    assert [one["step"] for one in resume.read_starts(run)] == [5]


def test_a_list_of_starts_that_cannot_be_read_now_is_not_begun_anew(run, monkeypatch):
    read, before = Path.read_bytes, (run / "starts.json").read_bytes()

    def fail(path):
        if path.name == "starts.json":
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return read(path)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", fail)
        with pytest.raises(UserError, match="cannot be read: Stale"):
            train(run, num_epochs=2.0)
    assert (run / "starts.json").read_bytes() == before
    assert train(run, num_epochs=2.0) == 0
    assert [one["step"] for one in resume.read_starts(run)] == [0, 5]


def test_every_start_is_listed_with_its_steps(run):
    train(run, num_epochs=2.0)
    starts = json.loads((run / "result.json").read_text())["starts"]
    assert [one["step"] for one in starts] == [0, 5]
    assert starts == resume.read_starts(run)
    assert {"commit", "command", "processor", "devices", "versions"} <= starts[0].keys()


def test_the_text_of_the_config_file_is_kept(tmp_path):
    flag = program.write_config(tmp_path / "c.py", num_steps=1)
    program.run_here(flag, f"--workdir={tmp_path / 'run'}")
    assert (tmp_path / "run/config_file.py").read_text() == (tmp_path / "c.py").read_text()


def test_the_commit_is_of_files_that_git_tracks(tmp_path, monkeypatch):
    def git(*words):
        options = ("-c", "user.name=x", "-c", "user.email=x")
        done = program.subprocess.run(
            ["git", *options, *words], cwd=tmp_path, check=True, capture_output=True, text=True
        )
        return done.stdout.strip()

    file = tmp_path / "cifar_jax" / "runs" / "provenance.py"
    file.parent.mkdir(parents=True)
    file.write_text("")
    git("init")
    git("commit", "--allow-empty", "-m", "x")
    monkeypatch.setattr(provenance, "__file__", str(file))
    assert provenance.commit() is None  # as installed inside another project's repository
    git("add", ".")
    git("commit", "-m", "x")
    head = git("rev-parse", "HEAD")
    assert provenance.commit() == head
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "mine.py").write_text("")
    assert provenance.commit() == f"{head}+"


def test_the_best_epoch_is_kept_where_saves_come_at_other_steps(tmp_path):
    fields = {"num_epochs": 3.0, "eval_every_steps": 2, "checkpoint__every_steps": 7}
    train(tmp_path / "run", optimizer__learning_rate=0.02, **fields)
    logged = {
        line["step"]: line["eval_accuracy"]
        for line in history.read_lines(tmp_path / "run/metrics.jsonl")
        if "eval_accuracy" in line
    }
    best = cifar_jax.load(tmp_path / "run", "best").step
    assert logged[best] == max(logged.values())


def test_a_folder_in_the_place_of_a_file_is_named_before_training(run):
    (run / "result.json").mkdir()
    with pytest.raises(UserError, match=r"result.json is a folder, where the run writes a file"):
        train(run, num_epochs=2.0)


def test_init_from_other_classes_of_the_same_number_gets_a_new_head(half):
    old = cifar_jax.load(half)
    config = tiny.config()
    model = create_model(config, 10)
    lengths = durations.resolve_durations(config, 320)
    fresh = make_init(config, lengths, model, old.image_shape)(jax.random.key(5))
    same = start.transplant(half, fresh, old.class_names)
    other = start.transplant(half, fresh, (*"abcdefghij",))
    kernel = np.asarray(old.variables["params"]["head"]["kernel"])
    np.testing.assert_array_equal(same.params["head"]["kernel"], kernel)
    np.testing.assert_array_equal(other.params["head"]["kernel"], fresh.params["head"]["kernel"])
    hidden = old.variables["params"]["Dense_0"]["kernel"]
    np.testing.assert_array_equal(other.params["Dense_0"]["kernel"], hidden)


@pytest.mark.parametrize(
    ("change", "shape", "words"),
    [
        (
            {},
            (32, 32, 3),
            r"params.Dense_0.kernel has the shape \[1024, 16\] there and \[3072, 16\]",
        ),
        (
            {},
            (28, 28, 1),
            r"\[1024, 16\] there and \[784, 16\] here: .* data.image_size and data.c",
        ),
        (
            {"hidden_sizes": (8,)},
            (32, 32, 1),
            r"(kernel|bias) has the shape .*: give the model the same",
        ),
        (
            {"hidden_sizes": (16, 8)},
            (32, 32, 1),
            r"only this run has params.Dense_1.(kernel|bias), that",
        ),
    ],
)
def test_init_from_another_model_names_the_layer(half, tmp_path, monkeypatch, change, shape, words):
    config = tiny.config()
    config.model.update(change)
    lengths = durations.resolve_durations(config, 320)
    fresh = make_init(config, lengths, create_model(config, 10), shape)(jax.random.key(5))
    with pytest.raises(UserError, match=f"^init_from {half} does not fit: .*{words}"):
        start.transplant(half, fresh, (*"0123456789",))
    # It is named before the data are read.
    monkeypatch.setattr(datasets, "load_run_data", lambda *_: pytest.fail("loaded the data"))
    config.init_from, config.data.image_size, config.data.channels = str(half), shape[0], shape[2]
    with pytest.raises(UserError, match=f"^init_from {half} does not fit: .*{words}"):
        resume.check_workdir(config, tmp_path)
    fitting = tiny.config(init_from=str(half))
    resume.check_workdir(fitting, tmp_path)


@pytest.mark.parametrize(
    ("fields", "shapes"),
    [
        ({"data__image_size": 16}, r"\[1024, 16\] there and \[256, 16\] here"),
        ({"data__channels": 3}, r"\[1024, 16\] there and \[3072, 16\] here"),
        ({"data__name": "folder", "data__path": "x"}, r"\[1024, 16\] there and \[3072, 16\] here"),
        ({"data__name": "small"}, r"\[1024, 16\] there and \[20, 16\] here"),
    ],
)
def test_images_of_another_shape_are_refused_before_the_data(
    half, tmp_path, monkeypatch, fields, shapes
):
    own_set.prepare(tmp_path, "small", train=[(n % 2, "L") for n in range(10)])
    config = tiny.config(init_from=str(half), data__data_dir=str(tmp_path), **fields)
    monkeypatch.setattr(datasets, "load_for", lambda _: 1 / 0)
    with pytest.raises(UserError, match=f"does not fit: params.Dense_0.kernel .* {shapes}"):
        loop.train_model(config, tmp_path / "run", signals_lib.Signals())


def test_the_average_of_a_short_run_follows_the_weights():
    """Decay min(0.999, (1 + t) / (10 + t)), against NumPy."""
    config = tiny.config(ema_decay=0.999)
    model = create_model(config, 10)
    lengths = durations.resolve_durations(config, 320)
    state = make_init(config, lengths, model, (32, 32, 1))(jax.random.key(0))
    optimizer = build.create_optimizer(config, lengths)
    one_step = jax.jit(step.make_train_step(model, optimizer, config, (0.5,), (0.5,), 5))
    batch = (jnp.zeros((8, 32, 32, 1), jnp.uint8), jnp.zeros(8, jnp.int32), jnp.arange(8))
    expected = np.asarray(state.params["head"]["bias"], np.float64)
    for number in range(4):
        state, _ = one_step(state, batch, jax.random.key(1))
        decay = min(0.999, (1 + number) / (10 + number))
        expected = decay * expected + (1 - decay) * np.asarray(state.params["head"]["bias"])
    assert isinstance(state, TrainState)
    np.testing.assert_allclose(state.ema["params"]["head"]["bias"], expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "group", "pattern"), [("sgd", "frozen", "a"), ("frozen", "sgd", "b")]
)
def test_frozen_parameters_do_not_shrink_the_others_updates(name, group, pattern):
    config = tiny.config(optimizer__name=name, optimizer__clip_norm=1.0)
    from configs import default

    with config.unlocked():
        config.optimizer.groups.one = default.get_group(pattern)
    config.optimizer.groups.one.name = group
    optimizer = build.combine_rules(config.optimizer, lambda step: 1.0, {"one": lambda step: 1.0})
    params = {"a": jnp.zeros(2), "b": jnp.zeros(2)}
    gradient = {"a": jnp.array([300.0, 400.0]), "b": jnp.array([0.6, 0.0])}
    state = optimizer.init(params)
    updates, _ = optimizer.update(gradient, state, params)
    assert state[0] == optax.EmptyState()  # as in the checkpoints of earlier versions
    np.testing.assert_allclose(updates["b"], [-0.6, 0.0], rtol=1e-6)
    np.testing.assert_allclose(updates["a"], [0.0, 0.0])


def test_a_milestone_within_the_warmup_stays_where_it_is():
    config = tiny.config(schedule__name="step", schedule__factor=0.1)
    lengths = durations.Durations(5, 20, 10, 0, 0, (4, 15))
    rate = schedules.shape_schedule(config.schedule, 1.0, lengths)
    expected = [0.1 * n * (0.1 if n >= 4 else 1.0) for n in range(10)]
    expected += [0.1] * 5 + [0.01] * 5
    np.testing.assert_allclose([float(rate(n)) for n in range(20)], expected, rtol=1e-5)
    plain = durations.Durations(5, 20, 10, 0, 0, (15,))
    before = optax.join_schedules(
        [
            optax.linear_schedule(0.0, 1.0, 10),
            optax.piecewise_constant_schedule(1.0, {5: 0.1}),
        ],
        [10],
    )
    now = schedules.shape_schedule(config.schedule, 1.0, plain)
    assert [float(now(n)) for n in range(20)] == [float(before(n)) for n in range(20)]


def test_lines_of_the_log_that_cannot_be_read_are_skipped(tmp_path, caplog):
    path = tmp_path / workdir_lib.METRICS
    path.write_text('{"step": 1, "epoch": 1.0}\n{"step": 2}\n{"step": 3, "epo')
    assert history.read_history(tmp_path) == [{"step": 1, "epoch": 1.0}]
    states = [line.rpartition(" is ")[2] for line in caplog.messages]
    assert states == ["damaged and skipped", "incomplete and skipped"]


def test_a_split_that_earlier_versions_left_out_is_no_difference():
    """They did not use a set's own validation split."""
    old = {"num_images": {"train": 5, "test": 2}}
    new = {"num_images": {"train": 5, "test": 2, "validation": 3}}
    resume._check_data(old, new, Path("run"))
    with pytest.raises(UserError, match="num_images was"):
        resume._check_data(old, {"num_images": {"train": 6, "test": 2}}, Path("run"))


@pytest.mark.parametrize(
    "name", ["checkpoints", "damaged_checkpoints", "code", "tensorboard", "report", "profile"]
)
def test_a_file_where_a_folder_is_needed_is_refused_before_the_data(tmp_path, name):
    (tmp_path / name).touch()
    with pytest.raises(UserError, match=f"{name} is a file, where the run needs a folder: move it"):
        resume.check_workdir(tiny.config(), tmp_path)


def test_a_trained_run_is_finished_with_the_views_of_its_checkpoints(run):
    with pytest.raises(
        UserError, match=r"is trained, and its checkpoints have test_time \{.*plain"
    ):
        train(run, num_epochs=1.0, test_time__views="mirror")
    assert not (run / "result.json").exists()
    assert train(run, num_epochs=1.0) == 0


def test_a_size_that_the_model_does_not_take_is_refused_before_the_data():
    config = tiny.config(model={"name": "lenet"}, data__image_size=8)
    with pytest.raises(UserError, match="8"):
        check.check_config(config)
