"""The loop: interruptions, logs, results, and starting from other runs."""

import dataclasses
import errno
import io
import json
import signal
import sys
import types
from unittest import mock

import jax
import numpy as np
import pytest

import cifar_jax
from cifar_jax import files
from cifar_jax.config import durations
from cifar_jax.data import datasets
from cifar_jax.errors import UserError
from cifar_jax.evaluation import evaluate, trained
from cifar_jax.models import speedrun
from cifar_jax.optim import build
from cifar_jax.parallel import devices
from cifar_jax.runs import history, logs, workdir
from cifar_jax.runs import signals as signals_lib
from cifar_jax.training import check, loop
from cifar_jax.training.run import Progress
from tests import program, tiny


class StopAt(signals_lib.Signals):
    """Acts as a user who presses Ctrl-C during a certain step."""

    def __init__(self, monkeypatch, step):
        super().__init__()
        original = loop.run_lib.update_bar

        def update_bar(run, progress):
            if progress.step >= step:
                self.received = signal.SIGINT
            original(run, progress)

        monkeypatch.setattr(loop.run_lib, "update_bar", update_bar)


def start(config, folder, signals=None):
    check.check_config(config)
    folder.mkdir(exist_ok=True)
    return loop.train_model(config, folder, signals or signals_lib.Signals())


def assert_same_bits(one, other):
    one, other = cifar_jax.load(one).variables, cifar_jax.load(other).variables
    jax.tree.map(np.testing.assert_array_equal, one, other)


def log_lines(folder):
    """Returns the log without what depends on the clock."""
    lines = history.read_lines(folder / workdir.METRICS)
    return [
        {name: line[name] for name in line if name not in ("seconds", "images_per_second")}
        for line in lines
    ]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The workdir of an undisturbed run of the network with BatchNorm, dropout and averages."""
    folder = tmp_path_factory.mktemp("run") / "whole"
    assert start(bn_config(), folder) == 0
    return folder


def bn_config(**fields):
    defaults = {"augment__crop_padding": 2, "augment__cutmix_alpha": 1.0, "ema_decay": 0.5}
    defaults |= {"model__conv_features": (8,)}
    return tiny.bn_config(**defaults | {"schedule__name": "linear"} | fields)


def test_a_run_stopped_in_mid_epoch_ends_in_the_same_bits(finished, tmp_path, monkeypatch):
    folder = tmp_path / "stopped"
    with monkeypatch.context() as patch:
        code = start(bn_config(steps_per_call=1), folder, StopAt(patch, 3))
    assert code == 130
    assert cifar_jax.load(folder).step == 3
    assert not (folder / workdir.RESULT).exists()
    assert start(bn_config(steps_per_call=4), folder) == 0
    assert_same_bits(finished, folder)
    assert log_lines(finished) == log_lines(folder)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", [tiny.speedrun_config, tiny.resnet_config])
def test_a_recipe_with_muon_stopped_in_mid_epoch_ends_in_the_same_bits(
    tmp_path, monkeypatch, recipe
):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    start(recipe(), whole)
    with monkeypatch.context() as patch:
        assert start(recipe(steps_per_call=1), stopped, StopAt(patch, 7)) == 130
    # The checkpoint holds what depends on the images: it is not computed again.
    monkeypatch.setattr(loop.start, "params_from_data", None)
    assert start(recipe(steps_per_call=2), stopped) == 0
    assert program.difference(whole, stopped) == ""
    scores = evaluate.evaluate_model(stopped)
    assert scores.num_correct == json.loads((whole / workdir.RESULT).read_text())["num_correct"]


@pytest.mark.slow
@pytest.mark.parametrize(("size", "stride"), [(64, 2), (128, 4)])
def test_a_resnet_trains_on_larger_images(tmp_path, capsys, size, stride):
    config = tiny.resnet_config(data__image_size=size, num_steps=3, data__validation_examples=0)
    start(config, tmp_path)
    words = f"the stem has a stride of {stride}, for images of {size}x{size}"
    assert words in capsys.readouterr().out
    model = cifar_jax.load(tmp_path)
    assert (model.image_shape, model.step) == ((size, size, 1), 3)
    result = json.loads((tmp_path / workdir.RESULT).read_text())
    assert result["num_images"] == 360
    images = np.zeros((2, size, size, 1), np.uint8)
    assert np.isfinite(model.predict(images)).all()


def test_the_stem_is_whitened_by_the_first_images_and_stays(tmp_path):
    config = tiny.speedrun_config(
        **{"num_steps": 3, "model__group_features": (8,), "optimizer__name": "sgd"},
        **{"test_time__views": "plain", "test_time__confidence_threshold": None},
    )
    start(config, tmp_path)
    run = cifar_jax.load(tmp_path)
    digits = datasets.carve_validation(datasets.load_dataset("digits"), 1117, config.seed)
    images = digits.splits["train"].images[:5000]
    normalized = (images / 255 - np.array(run.mean)) / np.array(run.std)
    expected = speedrun.whitening_kernel(normalized)
    np.testing.assert_allclose(run.variables["params"]["stem"]["kernel"], expected, rtol=1e-3)
    assert np.abs(run.variables["params"]["stem"]["bias"]).max() > 0


def test_the_log_and_the_result_agree_with_the_evaluation(finished, capsys):
    lines = [line for line in log_lines(finished) if "eval_loss" in line]
    assert [line["step"] for line in lines] == [5, 10]
    assert [line["epoch"] for line in lines] == [1, 2]
    # The rates of the steps just made, of a fall from 1e-3 to 0 in 10 steps.
    assert [line["learning_rate"] for line in lines] == pytest.approx([6e-4, 1e-4])
    result = json.loads((finished / workdir.RESULT).read_text())
    scores = evaluate.evaluate_model(finished)
    assert f"({scores.num_correct} of 360)" in capsys.readouterr().out
    assert (result["num_correct"], result["num_images"]) == (scores.num_correct, 360)
    assert result["test_loss"] == scores.loss
    validation = evaluate.evaluate_model(finished, split="validation")
    assert lines[1]["eval_accuracy"] == validation.accuracy
    assert lines[1]["eval_loss"] == validation.loss
    digits = datasets.load_dataset("digits").splits["test"]
    probabilities = cifar_jax.load(finished).predict(digits.images)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-6)
    assert (probabilities.argmax(axis=1) == digits.labels).sum() == scores.num_correct


def test_class_weights_reach_the_loss_and_are_one_for_each_class(tmp_path):
    losses = []
    for name, weights in (("plain", None), ("double", (2,) * 10)):
        start(tiny.config(num_steps=1, loss__class_weights=weights), tmp_path / name)
        losses.append(log_lines(tmp_path / name)[0]["train_loss"])
    assert losses[1] == pytest.approx(2 * losses[0], rel=1e-6)
    with pytest.raises(UserError, match="has 3 numbers, but the data have 10 classes"):
        start(tiny.config(loss__class_weights=(1, 2, 3)), tmp_path / "wrong")
    assert not (tmp_path / "wrong").exists()


def test_lines_within_an_epoch_are_the_means_of_their_steps(tmp_path):
    """And they change no weight."""
    lines = {}
    for every in (1, 2, 0):
        start(tiny.config(log__every_steps=every, steps_per_call=4), tmp_path / str(every))
        lines[every] = history.read_lines(tmp_path / str(every) / workdir.METRICS)
        assert_same_bits(tmp_path / str(every), tmp_path / "1")
    names = ("train_loss", "train_accuracy")
    steps = np.array([[line[name] for name in names] for line in lines[1]])
    assert len(steps) == 10
    for every, ends in ((2, [2, 4, 5, 6, 8, 10]), (0, [5, 10])):
        assert [line["step"] for line in lines[every]] == ends
        for line, first in zip(lines[every], [0, *ends], strict=False):
            expected = steps[first : line["step"]].mean(axis=0)
            np.testing.assert_allclose([line[name] for name in names], expected, rtol=1e-12)
            assert ("eval_loss" in line) == ("seconds" in line) == (line["step"] in (5, 10))
            assert line["learning_rate"] == np.float32(1e-3)
    whole = history.whole_lines(lines[2])
    for line, expected in zip(whole, lines[0], strict=True):
        assert line["train_loss"] == pytest.approx(expected["train_loss"], rel=1e-12)
        assert line["eval_loss"] == expected["eval_loss"]
    assert history.whole_lines(lines[0]) == lines[0]


def test_lines_within_an_epoch_wait_for_later_ones_but_not_past_a_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr(logs, "_WAIT_SECONDS", 1e9)
    appended = []
    monkeypatch.setattr(logs, "_append", lambda path, text: appended.append(text.count("\n")))
    start(tiny.config(steps_per_call=1, checkpoint__every_steps=3), tmp_path)
    # Of steps 1 to 3, before the checkpoint; 4 and 5, at the end of the epoch; and so on.
    assert appended == [3, 2, 1, 3, 1]


def test_a_quick_try_of_a_recipe_warms_up_in_a_share_of_it(tmp_path, capsys):
    quick = {"schedule__warmup_epochs": 3.0, "num_epochs": 0.0, "num_steps": 10}
    start(tiny.config(**quick), tmp_path)
    words = "the warm-up of 15 steps is as long as the run or longer: it takes 1 steps, 10% of the"
    assert words in capsys.readouterr().out
    rates = [line["learning_rate"] for line in history.read_lines(tmp_path / workdir.METRICS)]
    assert rates == [0, *[np.float32(1e-3)] * 9]
    with pytest.raises(UserError, match=r"the warm-up of .* took 1 steps, .* would now take 15"):
        start(tiny.config(**quick | {"num_steps": 20}), tmp_path)


def test_the_result_names_the_best_epoch(finished):
    lines = [line for line in log_lines(finished) if "eval_loss" in line]
    best = max(lines, key=lambda line: line["eval_accuracy"])
    names = ("step", "epoch", "eval_accuracy", "eval_loss")
    result = json.loads((finished / workdir.RESULT).read_text())
    assert result["best"] == {name: best[name] for name in names}


def test_the_best_on_the_validation_split_is_kept(finished):
    lines = [line for line in log_lines(finished) if "eval_loss" in line]
    accuracies = {line["step"]: line["eval_accuracy"] for line in lines}
    assert accuracies[cifar_jax.load(finished, "best").step] == max(accuracies.values())


@pytest.mark.parametrize("batch_size", [1, 7, 128, 10_000])
def test_every_batch_size_counts_every_image_once(finished, batch_size, monkeypatch):
    digits = datasets.load_dataset("digits")
    part = datasets.Split(*(array[:50] for array in digits.splits["test"][:2]))
    monkeypatch.setattr(
        datasets,
        "load_run_data",
        lambda *_, **__: dataclasses.replace(digits, splits={"test": part}),
    )
    expected = cifar_jax.load(finished).predict(part.images).argmax(axis=1) == part.labels
    scores = evaluate.evaluate_model(finished, batch_size=batch_size)
    assert (scores.num_correct, scores.num_images) == (expected.sum(), 50)


def test_streaming_ends_where_residence_does(tmp_path):
    for placement in ("device", "host"):
        config = tiny.config(data__placement=placement, augment__crop_padding=2)
        start(config, tmp_path / placement)
    one, other = (cifar_jax.load(tmp_path / name).variables for name in ("device", "host"))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), one, other)


def test_a_finished_run_trains_for_more_epochs_if_the_schedule_allows(tmp_path):
    constant = {"schedule__name": "constant", "data__validation_examples": 1300}
    start(tiny.config(num_epochs=1.0, **constant), tmp_path / "a")
    start(tiny.config(num_epochs=2.0, **constant), tmp_path / "a")
    start(tiny.config(num_epochs=2.0, **constant), tmp_path / "b")
    assert_same_bits(tmp_path / "a", tmp_path / "b")


def test_fewer_steps_than_made_are_refused(tmp_path):
    start(tiny.config(num_steps=3), tmp_path)
    with pytest.raises(UserError, match="has made 3 steps already, more than the 2 asked for"):
        start(tiny.config(num_steps=2), tmp_path)
    assert files.read_json(tmp_path / workdir.CONFIG)["num_steps"] == 3


def test_the_time_left_ignores_the_time_before_the_first_step(monkeypatch):
    clock = iter((0.0, 62.0, 62.0, 64.0))
    stopwatch = types.SimpleNamespace(monotonic=lambda: next(clock))
    monkeypatch.setattr(loop.run_lib, "time", stopwatch)
    progress = Progress()
    progress.add(4, 2.0)
    assert progress.pace() == 1.0


def test_the_time_includes_earlier_starts(monkeypatch):
    clock = types.SimpleNamespace(now=10.0, monotonic=lambda: clock.now)
    monkeypatch.setattr(loop.run_lib, "time", clock)
    progress = Progress()
    clock.now = 35.0
    progress.add(4, 2.0)
    assert progress.seconds == 25
    saved = json.loads(json.dumps(progress.saved()))
    clock.now = 1000.0
    progress = Progress()
    clock.now = 1003.0
    progress.resume(saved)
    clock.now = 1010.0
    progress.add(1, 2.0)
    assert (progress.step, progress.seconds) == (5, 25 + 10)


def test_a_config_that_differs_is_refused_by_field(tmp_path):
    start(tiny.config(num_steps=1), tmp_path)
    with pytest.raises(UserError) as refusal:
        start(tiny.config(num_steps=1, seed=1, optimizer__learning_rate=0.5), tmp_path)
    assert "optimizer.learning_rate was 0.001 and is now 0.5" in str(refusal.value)
    assert "seed was 0 and is now 1" in str(refusal.value)


def test_a_loss_that_is_not_finite_keeps_the_last_good_checkpoint(tmp_path):
    config = tiny.config(
        optimizer__name="sgd", optimizer__learning_rate=1e-3, checkpoint__every_steps=1
    )
    schedule = build.create_schedule

    def explode(config, durations):
        rate = schedule(config, durations)
        return lambda step: jax.numpy.where(step < 4, rate(step), 1e38)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "create_schedule", explode)
        with pytest.raises(UserError, match="not finite") as stop:
            start(config, tmp_path)
    assert stop.value.exit_code == 1
    run = cifar_jax.load(tmp_path)
    assert run.step == 4
    assert str(run.step) in str(stop.value)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(run.variables))


def test_another_set_needs_neither_training_images_nor_class_names(finished, monkeypatch):
    own = evaluate.evaluate_model(finished)
    load, run = datasets.load_dataset, cifar_jax.load(finished)
    run = run._replace(class_names=tuple("abcdefghij"))
    monkeypatch.setattr(trained, "load_seeds", lambda *_: [run])

    def score_other(names):
        def load_other(name, data_dir, splits):
            assert splits == ("test",)
            loaded = load("digits", data_dir, splits)
            return dataclasses.replace(loaded, class_names=tuple(names))

        monkeypatch.setattr(datasets, "load_dataset", load_other)
        return evaluate.evaluate_model(finished, dataset_name="other")

    assert score_other("abcdefghij") == score_other("0123456789") == own
    with pytest.raises(UserError, match="other has other classes"):
        score_other("jihgfedcba")
    many = [f"c{number}" for number in range(30)]
    run = run._replace(class_names=tuple(many))
    monkeypatch.setattr(trained, "load_seeds", lambda *_: [run])
    with pytest.raises(UserError, match=r"\(c20, .* c28\) than the model \(c20, .* c29\)"):
        score_other([*many[:28], "c29", "c28"])


def test_starting_from_another_runs_weights(tmp_path, capsys):
    start(tiny.config(), tmp_path / "old")
    line = f"starting from the weights of {tmp_path / 'old'}\n"
    assert "starting from" not in capsys.readouterr().out
    start(tiny.config(init_from=str(tmp_path / "old"), num_steps=1), tmp_path / "new")
    assert line in capsys.readouterr().out
    old, new = (cifar_jax.load(tmp_path / name).variables["params"] for name in ("old", "new"))
    moved = jax.tree.map(lambda a, b: np.abs(np.asarray(a) - b).max(), old, new)
    assert max(jax.tree.leaves(moved)) < 2e-3  # one step of Adam at 1e-3


def test_another_number_of_classes_gets_a_new_head(finished):
    run = cifar_jax.load(finished)
    config = bn_config()
    model = loop.create_model(config, 7)
    lengths = durations.resolve_durations(config, 320)
    create = loop.start.make_init(config, lengths, model, run.image_shape)
    fresh = devices.jit_once(create)(jax.random.key(5))
    state = loop.start.transplant(finished, fresh, (*"abcdefg",))
    # What evaluation used, averages and batch statistics, is both the start and its averages.
    expected = run.variables["params"] | {"head": fresh.params["head"]}
    expected = {"params": expected, "batch_stats": run.variables["batch_stats"]}
    jax.tree.map(np.testing.assert_array_equal, state.ema, expected)
    started = {"params": state.params, "batch_stats": state.batch_stats}
    jax.tree.map(np.testing.assert_array_equal, started, expected)
    assert np.abs(state.batch_stats["BatchNorm_0"]["mean"]).max() > 0
    other = dataclasses.replace(fresh, params={"head": {}})
    with pytest.raises(UserError, match="does not fit: only that run has"):
        loop.start.transplant(finished, other, (*"abcdefg",))


def test_a_loaded_model_averages_the_views_of_its_config(finished):
    run = cifar_jax.load(finished)
    images = datasets.load_dataset("digits").splits["test"].images[:20]
    plain, mirrored = (run.predict_logits(x, 20) for x in (images, images[:, :, ::-1]))
    config = run.config.copy_and_resolve_references()
    config.test_time.views = "mirror"
    found = run._replace(config=config).predict_logits(images, 20)
    np.testing.assert_allclose(found, (plain + mirrored) / 2, atol=1e-5)
    assert np.abs(plain - mirrored).max() > 0.1


def test_images_of_another_shape_are_refused(finished):
    with pytest.raises(UserError, match="uint8 images of shape"):
        cifar_jax.load(finished).predict(np.zeros((2, 28, 28, 1), np.uint8))


@pytest.mark.parametrize("code", [130, None])
def test_a_reader_who_has_gone_costs_no_step(code, tmp_path, monkeypatch):
    """As `| head` and, with a signal, a `| tee` in a terminal that is closed."""
    monkeypatch.setattr("builtins.print", mock.Mock(side_effect=BrokenPipeError))
    config = tiny.config(num_steps=4, steps_per_call=1, eval_every_steps=1)
    signals = StopAt(monkeypatch, 1) if code else signals_lib.Signals()
    if code:
        assert start(config, tmp_path / "run", signals) == code
    else:
        with pytest.raises(BrokenPipeError):
            start(config, tmp_path / "run", signals)
    assert workdir.list_steps(tmp_path / "run") == [1]
    assert [line["step"] for line in log_lines(tmp_path / "run")] == [1]


@pytest.mark.parametrize("stream", ["none", "closed", "hung up"])
def test_a_terminal_that_was_closed_is_no_error(stream, tmp_path, monkeypatch):
    opened = io.StringIO()
    if stream == "closed":
        opened.close()
    elif stream == "hung up":
        opened = mock.Mock(closed=False, isatty=lambda: True, encoding="utf-8")
        opened.write.side_effect = OSError(errno.EIO, "")
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, None if stream == "none" else opened)
    log = logs.Logs(tmp_path, 0, tensorboard=False)
    log.progress(1, 1, 2, loss=0.5)
    log.say("words")
    log.progress(1, 2, 2, loss=0.5)
    log.close()
    assert log.unread is None


def test_an_error_at_the_end_does_not_keep_the_rest_open(tmp_path, monkeypatch):
    closed = []
    monkeypatch.setattr(loop.Logs, "close", mock.Mock(side_effect=OSError("no room")))
    close = loop.Checkpoints.close
    monkeypatch.setattr(loop.Checkpoints, "close", lambda own: closed.append(close(own)))
    with pytest.raises(OSError, match="no room"):
        start(tiny.config(num_steps=1), tmp_path / "run")
    assert len(closed) == 1
