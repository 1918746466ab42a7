"""The log of a run: metrics.jsonl and the curves for TensorBoard."""

import struct
import sys
import time

import pytest

from cifar_jax import text
from cifar_jax.evaluation import evaluate
from cifar_jax.reports import report
from cifar_jax.runs import history, logs, weights
from cifar_jax.runs.logs import Event, SessionLog

LINES = [{"step": step, "epoch": step / 2, "train_loss": 1 / step} for step in (1, 2, 3)]


def write(folder, step, lines, tensorboard=True):
    log = logs.Logs(folder, step, tensorboard=tensorboard)
    for line in lines:
        log.write(line)
    log.close()


def read_events(folder):
    """Returns the events of all files, sorted by file name; TFRecords are split by hand."""
    events = []
    for path in sorted((folder / "tensorboard").iterdir()):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            events.append(Event.FromString(data[12 : 12 + length]))
            data = data[16 + length :]
    return events


def test_lines_come_back(tmp_path):
    write(tmp_path, 0, LINES)
    assert history.read_lines(tmp_path / "metrics.jsonl") == LINES


def test_lines_that_an_earlier_start_wrote_later_are_deleted(tmp_path):
    write(tmp_path, 0, LINES, tensorboard=False)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "train')
    write(tmp_path, 2, [{"step": 3, "epoch": 1.5, "train_loss": 0.5}], tensorboard=False)
    assert history.read_lines(tmp_path / "metrics.jsonl") == [
        *LINES[:2],
        {"step": 3, "epoch": 1.5, "train_loss": 0.5},
    ]
    assert not (tmp_path / "tensorboard").exists()


def test_curves_hold_each_metric_at_its_step(tmp_path):
    write(tmp_path, 0, LINES)
    points = [
        (event.step, value.tag, value.simple_value)
        for event in read_events(tmp_path)
        for value in event.summary.value
    ]
    expected = [(x["step"], "train_loss", x["train_loss"]) for x in LINES]
    assert [point[:2] for point in points] == [point[:2] for point in expected]
    assert [point[2] for point in points] == pytest.approx([point[2] for point in expected])


def test_a_later_start_purges_the_curves_past_its_step(tmp_path):
    write(tmp_path, 2, LINES[2:])
    (start,) = [x for x in read_events(tmp_path) if x.HasField("session_log")]
    assert start.session_log.status == SessionLog.START
    assert start.step == 3


def shown_points(folder):
    """Returns the (step, value) that TensorBoard shows: a start purges what earlier files hold."""
    points = []
    for event in read_events(folder):
        if event.HasField("session_log"):
            points = [point for point in points if point[0] < event.step]
        points += [(event.step, value.simple_value) for value in event.summary.value]
    return points


def test_a_restart_from_step_0_shows_each_point_once(tmp_path):
    write(tmp_path, 0, LINES)
    write(tmp_path, 0, [{**line, "train_loss": 5.0} for line in LINES[:2]])
    assert shown_points(tmp_path) == [(1, 5.0), (2, 5.0)]
    assert len(list((tmp_path / "tensorboard").iterdir())) == 2  # also within one second


def test_a_write_that_fails_costs_the_curves_its_step_alone(tmp_path, monkeypatch, caplog):
    log, flush = logs.Logs(tmp_path, 0, tensorboard=True), logs.EventsWriter.flush
    failures = []

    def fail_once(writer):
        flush(writer)
        if not failures:
            failures.append(OSError(28, "No space left on device"))
            raise failures[0]

    for line in LINES:
        if line["step"] == 2:
            monkeypatch.setattr(logs.EventsWriter, "flush", fail_once)
        log.write({**line, "train_loss": float(line["step"])})
    log.close()
    assert shown_points(tmp_path) == [(1, 1.0), (3, 3.0)]
    assert caplog.messages == ["TensorBoard: step 2 is skipped: No space left on device"]


def test_off_a_terminal_a_line_a_minute_says_how_far_the_run_is(tmp_path, monkeypatch, capsys):
    now = 0.0
    monkeypatch.setattr(logs, "bar_stream", lambda: None)
    monkeypatch.setattr(logs.time, "monotonic", lambda: now)
    log = logs.Logs(tmp_path, 0, tensorboard=False)
    for now in (30, 61, 90, 122):
        log.progress(2, now, 390, loss=0.5)
    assert capsys.readouterr().out.splitlines() == [
        f"epoch 2: step {step} of 390  loss 0.5000" for step in (61, 122)
    ]


def test_a_line_a_minute_says_what_takes_long(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(text, "SILENT_SECONDS", 0.05)
    log = logs.Logs(tmp_path, 0, tensorboard=False)
    other = logs.Logs(tmp_path, 0, tensorboard=False, active=False)
    with log.during("compiling the training step"), other.during("nothing"):
        time.sleep(0.3)
    lines = capsys.readouterr().out.splitlines()
    assert set(lines) == {"compiling the training step, for 0:00 so far"}
    assert len(lines) > 1
    monkeypatch.setattr(text, "bar_stream", lambda: sys.stderr)
    with log.during("compiling the training step"):
        time.sleep(0.2)
    time.sleep(0.2)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("module", "name"), [(report, "make_report"), (evaluate, "evaluate_model")]
)
def test_reports_and_evaluations_say_that_they_take_long(monkeypatch, capsys, module, name):
    monkeypatch.setattr(text, "SILENT_SECONDS", 0.05)
    monkeypatch.setattr(weights, "list_runs", lambda _: time.sleep(0.3) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        getattr(module, name)("run")
    assert capsys.readouterr().out.startswith(("making the report", "evaluating"))
