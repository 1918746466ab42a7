"""`--mode=report`: its files, its page, and its numbers compared with the evaluation's."""

import base64
import csv
import io
import json
import os
import re
import shutil
from html.parser import HTMLParser
from unittest import mock

import jax
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from cifar_jax import api, files
from cifar_jax.config import stored
from cifar_jax.data import datasets
from cifar_jax.evaluation import evaluate, trained
from cifar_jax.models import registry
from cifar_jax.reports import findings, page, plots, report, style
from cifar_jax.runs import history
from tests import browser, program, tiny

CURVES = {"loss", "accuracy", "learning_rate"}
PREDICTIONS = {"confusion_matrix", "class_scores", "calibration", "predictions", "mistakes"}


@pytest.fixture(scope="module", autouse=True)
def _coarse_pictures():
    """Drawing takes most of the time here; no test depends on the resolution."""
    with mock.patch.object(style, "_DPI", 40):
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The workdir of a run that ended with a report, and what it printed."""
    folder = tmp_path_factory.mktemp("report")
    flag = program.write_config(folder / "short.py", num_epochs=1.0, log__report=True)
    code, out, err = program.run_here(flag, f"--workdir={folder / 'run'}")
    assert (code, err) == (0, "")
    return folder / "run", out.splitlines()


def made_up(tmp_path, monkeypatch, class_names, logits, labels):
    """Returns the page of made-up predictions of 8 x 8 colour images."""
    config = tiny.config()
    with config.unlocked():
        config.model = {"name": "simple_cnn"}
    model = registry.create("simple_cnn", len(class_names))
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (len(labels), 8, 8, 3), np.uint8)
    shapes = jax.eval_shape(model.init, jax.random.key(0), images.astype(np.float32))
    variables = jax.tree.map(lambda leaf: random.normal(size=leaf.shape), shapes)
    statistics = ((0.5,) * 3, (0.2,) * 3)
    run = trained.Trained(config, model, variables, class_names, *statistics, (8, 8, 3), 7)
    predictions = evaluate.Predictions(run, images, labels, logits)
    monkeypatch.setattr(evaluate, "predict_split", lambda *_, **__: iter([predictions]))
    (tmp_path / "config.json").write_text(json.dumps(stored.to_json(config)))
    return report.make_report(tmp_path).read_text()


class Links(HTMLParser):
    """Collects what a page loads or links to, and its text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.links, self.texts = [], [], []
        self.feed(re.sub("</?span>", "", text))  # around the words of a command

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        names = ("src", "srcset", "href", "data", "action", "poster")
        self.links += [value for name, value in attrs if name in names]

    def handle_data(self, data):
        self.texts.append(data)


def assert_self_contained(text):
    found = Links(text)
    assert found.links
    for link in found.links:
        if link == "predictions.csv":
            continue
        head, _, data = link.partition(",")
        assert head == "data:image/png;base64"
        Image.open(io.BytesIO(base64.b64decode(data, validate=True))).verify()
    assert not {"script", "link", "iframe", "object"} & set(found.tags)
    assert "default-src 'none'; img-src data:;" in text
    assert "url(" not in text
    assert "@import" not in text
    return found


def test_files_of_the_report_at_the_end_of_training(finished):
    folder = finished[0] / "report"
    pictures = {path.stem for path in folder.glob("*.png")}
    assert pictures == CURVES | PREDICTIONS  # an MLP has no filters
    for path in folder.glob("*.png"):
        assert Image.open(path).convert("L").getextrema()[0] < 200  # something is drawn
    tags = assert_self_contained((folder / "report.html").read_text()).tags
    assert tags.count("img") == tags.count("source") == len(pictures)


def test_numbers_equal_those_of_the_evaluation(finished):
    workdir, lines = finished
    code, out, _ = program.run_here("--mode=evaluate", f"--workdir={workdir}")
    scores = out.splitlines()[0].partition(": ")[2]
    assert code == 0
    assert lines[-1] == f"{workdir}/report/report.html: the checkpoint of step 5, {scores}"
    with (workdir / "report" / "predictions.csv").open(newline="") as file:
        head, *rows = csv.reader(file)
    assert head == [
        *("index", "split", "original_index", "truth", "predicted", "correct", "loss"),
        *(f"probability of {digit}" for digit in range(10)),
    ]
    result = json.loads((workdir / "result.json").read_text())
    assert [row[:3] for row in rows] == [[f"{n}", "test", f"{n}"] for n in range(360)]
    rows = [row[2:] for row in rows]
    assert sum(int(row[3]) for row in rows) == result["num_correct"]
    assert all((row[1] == row[2]) == (row[3] == "1") for row in rows)
    probabilities = np.array([row[5:] for row in rows], float)
    truth = np.array([row[1] for row in rows], int)
    assert [int(row[2]) for row in rows] == probabilities.argmax(axis=1).tolist()
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)
    loss = -np.log(probabilities[np.arange(360), truth])
    assert loss.mean() == pytest.approx(result["test_loss"], rel=1e-4)
    np.testing.assert_allclose([float(row[4]) for row in rows], loss, rtol=1e-4, atol=1e-6)
    texts = Links((workdir / "report" / "report.html").read_text()).texts
    assert f"{result['test_accuracy']:.2%}" in texts
    assert f"{result['test_loss']:.4f}" in texts


def test_the_page_names_the_best_epoch(finished):
    workdir, lines = finished
    best = files.read_json(workdir / "result.json")["best"]
    assert best == api.TrainedRun(workdir).result["best"]
    accuracy = f"{best['eval_accuracy']:.2%}"
    assert (
        f"best on the validation split: epoch 1, accuracy {accuracy} (--checkpoint=best)" in lines
    )
    texts = Links((workdir / "report" / "report.html").read_text()).texts
    assert texts[texts.index(f"best epoch, with {accuracy} on validation") + 1] == "1"


def test_the_learning_rate_is_drawn_from_the_first_step_on(finished, monkeypatch):
    workdir, _ = finished
    drawn = []
    monkeypatch.setattr(plots, "plot_curves", lambda *parts, **_: drawn.append(parts) or Figure())
    config = tiny.config(num_epochs=1.0, schedule__warmup_epochs=0.5)
    rows = history.read_history(workdir)
    assert len(list(findings.draw_curves(rows, config, "validation"))) == 3
    ((histories, _, split), *_) = [one for one in drawn if one[1] == ("learning_rate",)]
    first, *rest = histories["run"]
    assert (split, rest) == ("validation", rows)
    assert first == {"epoch": 0.0, "learning_rate": 0.0}


def test_the_page_shows_config_layers_and_commands(finished):
    workdir, _ = finished
    texts = Links((workdir / "report" / "report.html").read_text()).texts
    assert "data.validation_examples" in texts
    assert "Layers: 16,570 trainable parameters" in texts
    again = f"python main.py --mode=report --workdir={workdir}"
    assert any(text.endswith(again) and f"--workdir={workdir}\n" in text for text in texts)


def test_another_split_and_checkpoint(finished, tmp_path):
    shutil.copytree(finished[0], tmp_path / "run")
    before = {path: path.read_bytes() for path in (tmp_path / "run" / "report").iterdir()}
    folder = tmp_path / "run" / "report_validation_best"
    folder.mkdir()
    (folder / "old.png").write_bytes(b"")
    flags = ("--split=validation", "--checkpoint=best", f"--data_dir={tmp_path}", "--batch_size=7")
    code, out, err = program.run_here("--mode=report", f"--workdir={tmp_path / 'run'}", *flags)
    assert (code, err) == (0, "")
    assert "validation accuracy" in out
    assert before == {path: path.read_bytes() for path in (tmp_path / "run" / "report").iterdir()}
    with (folder / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    split = datasets.load_for(stored.from_json(files.read_json(finished[0] / "config.json")))
    chosen = split.splits["validation"].origin["original_index"].tolist()
    assert [row["index"] for row in rows] == [f"{n}" for n in range(1117)]
    assert [int(row["original_index"]) for row in rows] == chosen
    assert {row["split"] for row in rows} == {"train"}
    assert not (folder / "old.png").exists()
    again = f"--mode=report --workdir={tmp_path / 'run'} {' '.join(flags)}"
    texts = Links((folder / "report.html").read_text()).texts
    assert any(x.endswith(again) for x in texts)
    (lead,) = (x for x in texts if x.startswith("mlp on digits: validation split, best checkpoint"))
    assert lead.rpartition(", ")[0].endswith("(step 5), seed 0")


def test_each_split_has_a_folder_of_its_own():
    splits = ("train", "train[75%:]+test", "train[:75%]+test")
    names = {report._folder_name(split, "last", None, False) for split in splits}
    assert len(names) == 3
    assert "report_train" in names


@pytest.mark.slow
def test_several_seeds_begin_with_their_mean(tmp_path):
    flag = program.write_config(
        tmp_path / "short.py", num_steps=2, num_seeds=3, data__validation_examples=0
    )
    workdir = tmp_path / "run"
    assert program.run_here(flag, f"--workdir={workdir}")[0] == 0
    flags = ("--num_mistakes=5", f"--output={tmp_path / 'page'}")
    code, _, err = program.run_here("--mode=report", f"--workdir={workdir}", *flags)
    assert (code, err) == (0, "")
    result = json.loads((workdir / "result.json").read_text())
    texts = [x for x in Links((tmp_path / "page" / "report.html").read_text()).texts if x.strip()]
    first = texts.index("test accuracy, mean of 3 seeds")
    low, high = result["test_accuracy_interval"]
    assert texts[first + 1] == f"{result['test_accuracy']:.2%}"
    assert texts[first + 2 : first + 4] == [
        "standard deviation",
        f"{result['test_accuracy_std']:.2%}",
    ]
    assert texts[first + 5] == f"{low:.2%} to {high:.2%}"
    assert first < texts.index("accuracy of seed 0")
    for seed in result["seeds"]:
        assert f"{seed['test_accuracy']:.2%}" in texts
    assert not (workdir / "report").exists()


def test_a_report_that_fails_costs_a_warning_and_not_the_run(tmp_path):
    workdir = tmp_path / "run"
    flag = program.write_config(tmp_path / "short.py", num_steps=1, log__report=True)
    with mock.patch.object(report, "draw_curves", side_effect=ValueError("no\nink")):
        code, out, err = program.run_here(flag, f"--workdir={workdir}")
    assert code == 0
    assert out.splitlines()[-1].startswith("test accuracy")
    assert err == "the report could not be made: no ink\n"
    assert (workdir / "result.json").exists()
    shutil.rmtree(workdir / "report", ignore_errors=True)
    (workdir / "report").write_text("in the way")
    code, out, err = program.run_here("--mode=report", f"--workdir={workdir}")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert f"{workdir / 'report'} cannot be written" in err


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["settings", "package"])
def test_a_matplotlib_that_cannot_be_imported_costs_a_warning_and_not_the_run(tmp_path, fault):
    flag = program.write_config(tmp_path / "short.py", num_steps=1, log__report=True)
    workdir = f"--workdir={tmp_path / 'run'}"
    (broken := tmp_path / "broken").mkdir()
    environment = {"PYTHONPATH": os.pathsep.join([str(broken), str(program.ROOT)])}
    if fault == "settings":
        (broken / "matplotlibrc").write_bytes(b"\xff\xfe")
        environment["MPLCONFIGDIR"] = str(broken)
    else:
        (broken / "kiwisolver.py").write_text("raise ImportError('no kiwisolver')\n")
    code, out, err = program.run_apart(flag, workdir, environment=environment)
    assert (code, "Traceback" in err) == (0, False)
    assert "test accuracy" in out
    assert "the report could not be made: matplotlib, which draws the pictures, cannot be" in err
    code, out, err = program.run_apart("--mode=report", workdir, environment=environment)
    assert (code, out) == (2, "")
    assert err.splitlines()[-1].startswith("error: matplotlib, which draws the pictures, cannot")


def test_names_with_html_in_them_and_a_run_without_a_log(tmp_path, monkeypatch):
    names = ("<script>alert(1)</script>", "a\"b' onload=x", "&amp; $x$", "日本")
    labels = np.arange(40) % 4
    logits = np.eye(4, dtype=np.float32)[(labels + (np.arange(40) < 3)) % 4] * 3
    found = assert_self_contained(made_up(tmp_path, monkeypatch, names, logits, labels))
    assert set(names) <= set(found.texts)
    drawn = {path.stem for path in (tmp_path / "report").glob("*.png")}
    assert drawn == PREDICTIONS | {"filters", "explanations"}


def test_a_hundred_classes_without_a_mistake(tmp_path, monkeypatch):
    labels = np.arange(300) % 90  # ten classes do not occur
    logits = np.eye(100, dtype=np.float32)[labels] * 9
    names = tuple(f"class {number}" for number in range(100))
    found = assert_self_contained(made_up(tmp_path, monkeypatch, names, logits, labels))
    assert {"100.00%", "300", "class 99", "\N{EN DASH}"} <= set(found.texts)
    assert not (tmp_path / "report" / "mistakes.png").exists()


def test_the_most_confident_mistakes_come_first(tmp_path, monkeypatch):
    titles = []
    original = plots.plot_predictions

    def record(*arguments, **options):
        titles.append(arguments[4])
        return original(*arguments, **options)

    monkeypatch.setattr(plots, "plot_predictions", record)
    logits = np.zeros((6, 2), np.float32)
    logits[:, 1] = [3, -1, 1, 5, -2, 2]
    made_up(tmp_path, monkeypatch, ("a", "b"), logits, np.zeros(6, int))
    assert titles[-1] == ["a #3", "a #0", "a #5", "a #2"]


def test_a_line_of_the_log_without_an_epoch_is_reported_and_skipped(tmp_path, monkeypatch, caplog):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    made_up(tmp_path, monkeypatch, ("a", "b"), np.eye(2, dtype=np.float32), np.array([0, 1]))
    (message,) = caplog.messages
    assert message == f"line 1 of {tmp_path / 'metrics.jsonl'} is incomplete and skipped"
    assert not CURVES & {path.stem for path in (tmp_path / "report").glob("*.png")}


@pytest.mark.parametrize("text", ["{", "[]", '{"command": 5}'])
def test_the_page_leaves_out_a_damaged_environment(tmp_path, caplog, text):
    (tmp_path / "environment.json").write_text(text)
    page = "".join(report._origin([tmp_path], {}))
    assert "--mode=report" in page
    assert "Environment" not in page
    (record,) = caplog.records
    assert record.getMessage().startswith("the page leaves out environment.json: ")


def test_a_path_that_is_not_utf_8_is_escaped(tmp_path):
    path = os.fsdecode(b"run\xff")
    files.write_text(tmp_path / "x.html", page.page(path, "", [page.code(path)]))
    assert (tmp_path / "x.html").read_bytes().count(rb"run\udcff") == 3


WIDTHS = (390, 820, 1400)
# A page that shows the report at each width and then reports what it sees.
LOOK = """<!DOCTYPE html><link rel="icon" href="data:,"><body><script>
const errors = [], seen = [];
addEventListener("error", (event) => errors.push(event.message));
let left = WIDTHS.length;
for (const width of WIDTHS) {
  const frame = document.createElement("iframe");
  Object.assign(frame, {src: "/report.html", width, height: 900});
  frame.onload = async () => {
    const page = frame.contentDocument, view = frame.contentWindow;
    view.addEventListener("error", (event) => errors.push(event.message));
    for (const fold of page.querySelectorAll("details")) fold.open = true;
    const images = [...page.images];
    await Promise.allSettled(images.map((image) => image.decode()));
    seen.push({
      width, scroll: page.documentElement.scrollWidth, client: page.documentElement.clientWidth,
      images: images.length, broken: images.filter((image) => !image.naturalWidth).length,
      dark: images.every((image) => image.currentSrc !== image.src),
      ground: view.getComputedStyle(page.body).backgroundColor,
      asked: view.performance.getEntriesByType("resource").map((entry) => entry.name),
    });
    if (!--left) fetch("/seen", {method: "POST", body: JSON.stringify({errors, seen})});
  };
  document.body.append(frame);
}
</script>"""


@pytest.mark.skipif(browser.BROWSER is None, reason="no Chromium or Chrome is installed")
@pytest.mark.parametrize("dark", [False, True])
def test_the_page_in_a_browser(finished, tmp_path, dark):
    bodies = {
        "/": LOOK.replace("WIDTHS", str(list(WIDTHS))).encode(),
        "/report.html": (finished[0] / "report" / "report.html").read_bytes(),
    }
    found, asked, console = browser.visit(bodies, tmp_path, dark)
    assert (found["errors"], console) == ([], [])
    assert sorted(asked) == ["/", *["/report.html"] * len(WIDTHS)]
    assert sorted(view["width"] for view in found["seen"]) == sorted(WIDTHS)
    for view in found["seen"]:
        assert (view["images"], view["broken"], view["asked"]) == (len(CURVES | PREDICTIONS), 0, [])
        assert view["scroll"] <= view["client"], view
        assert view["dark"] == dark
        assert view["ground"] == ("rgb(18, 20, 23)" if dark else "rgb(243, 244, 246)")
