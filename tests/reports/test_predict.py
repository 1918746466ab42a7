"""`--mode=predict`: pictures of every kind are predicted, or reported in one line."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import cifar_jax
from cifar_jax.data import datasets
from cifar_jax.reports import predict
from tests import program
from tests.data.test_photos import bomb, scene

FILES = ["predictions.csv", "predictions.json", "predictions.png"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The workdir of a finished run, moved after training, without its config file."""
    folder = tmp_path_factory.mktemp("trained")
    flag = program.write_config(folder / "short.py", num_steps=2, data__validation_examples=0)
    code, _, err = program.run_here(flag, f"--workdir={folder / 'run'}")
    assert (code, err) == (0, "")
    (folder / "short.py").unlink()
    return (folder / "run").rename(folder / "moved")


@pytest.fixture
def here(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def start(run, *arguments):
    return program.run_here("--mode=predict", f"--workdir={run}", "--output=out", *arguments)


def outputs():
    """Returns the rows of the CSV and the content of the JSON, after a look at the picture."""
    with Path("out/predictions.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    described = json.loads(Path("out/predictions.json").read_text())
    assert sorted(os.listdir("out")) == FILES
    with Image.open("out/predictions.png") as picture:
        assert np.asarray(picture.convert("L")).std() > 5
    return rows, described


def test_predictions_equal_those_of_the_model(run, here, monkeypatch):
    digits = datasets.load_dataset("digits").splits["test"].images[:5]
    for number, image in enumerate(digits):
        Image.fromarray(image[..., 0]).save(f"{number}.png")
    monkeypatch.setattr(datasets, "load_dataset", None)  # the data set is not needed
    code, out, err = start(run, "--images=.", "--batch_size=2")
    assert (code, err) == (0, "")
    expected = cifar_jax.load(run).predict(digits)
    rows, described = outputs()
    names = [str(digit) for digit in range(10)]
    found = np.array([[float(row[name]) for name in names] for row in rows])
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    for row, entry, shares in zip(rows, described["pictures"], expected, strict=True):
        best = str(shares.argmax())
        assert row["prediction"] == entry["prediction"] == entry["top"][0]["class"] == best
        assert [x["probability"] for x in entry["top"]] == sorted(
            entry["probabilities"].values(), reverse=True
        )[:3]
        line = next(line for line in out.splitlines() if line.startswith(entry["picture"][2:]))
        assert line.split()[1:3] == [best, f"{100 * shares.max():.1f}"]
    assert out.splitlines()[-1].startswith("5 pictures predicted by the checkpoint of step 2")


def test_explanations_are_drawn_for_a_model_with_a_feature_map(run, here, monkeypatch):
    Image.fromarray(np.arange(1024, dtype=np.uint8).reshape(32, 32)).save("a.png")
    monkeypatch.setattr(predict, "_read", None)  # it is refused before
    code, out, err = start(run, "--images=a.png", "--explain")
    assert (code, out) == (2, "")
    assert err == (
        "error: the model mlp has no feature map, which Grad-CAM explains: leave out --explain, or "
        "name a run of a model with convolutions\n"
    )
    monkeypatch.undo()
    monkeypatch.chdir(here)
    assert not Path("out").exists()
    shutil.copytree(program.ROOT / "tests" / "data" / "format-1", "conv")
    code, out, err = start("conv", "--images=a.png", "--explain")
    assert (code, err) == (0, "")
    assert sorted(os.listdir("out")) == ["explanations.png", *FILES]
    with Image.open("out/explanations.png") as ours, Image.open("out/predictions.png") as plain:
        assert ours.size == plain.size
        difference = np.asarray(ours.convert("RGB"), int) - np.asarray(plain.convert("RGB"), int)
    # Where it shines, blue is taken away and red is added.
    assert difference[..., 0].max() > 30 > 0 > -30 > difference[..., 2].min()


def make_odd_files():
    """Writes pictures that can be predicted and files that cannot; returns the names of both."""
    scene().save("photo.jpg")
    data = Path("photo.jpg").read_bytes()
    Path("cut.jpg").write_bytes(data[: len(data) // 2])
    Path("empty.png").touch()
    Path("text.png").write_text("text")
    Path("no_extension").write_bytes(data)
    os.mkdir("folder.jpg")
    os.mkfifo("fifo.jpg")
    os.symlink("nowhere", "dead.jpg")
    os.symlink("photo.jpg", "link.jpg")
    bomb(Path("bomb.png"))
    Image.new("L", (1, 1)).save("dot.png")
    Image.new("RGB", (1, 3000), "red").save("panorama.png")
    Image.new("CMYK", (40, 50), (9, 99, 9, 9)).save("cmyk.jpg")
    Image.fromarray(np.full((50, 40), 40_000, np.uint16)).save("16.png")
    Image.fromarray(np.full((50, 40), 0.3, np.float32)).save("float.tiff")
    scene().convert("P", palette=Image.Palette.ADAPTIVE).save("palette.png", transparency=3)
    Image.new("LA", (9, 9), (3, 99)).save("la.png")
    scene().save("moving.gif", save_all=True, append_images=[scene(40, 60).rotate(90)])
    for name in ("x.webp", "x.bmp", "ünïcödé 日本.png", "new\nline.png", "a,b.png", "$x_{1}$.png"):
        scene().save(name)
    scene().save("=cmd\x1b[31m\u202e.png")
    scene().save(os.fsdecode(b"bytes\xff.png"))
    os.mkdir("other")
    scene(50, 50).save("other/photo.jpg")
    bad = ["cut.jpg", "empty.png", "text.png", "folder.jpg", "fifo.jpg", "dead.jpg", "bomb.png"]
    bad.append("not there.png")
    good = [
        *("photo.jpg", "no_extension", "link.jpg", "dot.png", "panorama.png", "cmyk.jpg"),
        *("16.png", "float.tiff", "palette.png", "la.png", "moving.gif", "x.webp", "x.bmp"),
        *("ünïcödé 日本.png", "new\nline.png", "a,b.png", "$x_{1}$.png", "=cmd\x1b[31m\u202e.png"),
        *(os.fsdecode(b"bytes\xff.png"), "other/photo.jpg"),
    ]
    return good, bad


@pytest.mark.timeout(60)
def test_odd_files_are_predicted_or_reported_in_one_line(run, here):
    good, bad = make_odd_files()
    code, out, err = start(run, "--images", *good, *bad)
    assert code == 1
    lines = err.splitlines()
    assert len(lines) == len(bad)
    assert all(any(line.startswith(f"{name} ") for line in lines) for name in bad)
    assert f"{len(good)} pictures predicted" in out
    assert f"{len(bad)} could not be read" in out
    assert "\x1b" not in out + err
    assert r"new\nline.png" in out
    table = out.splitlines()[2 : 2 + len(good)]
    assert len({line.split()[0] for line in table}) == len(good)
    assert (
        sum(line.startswith(("other/photo.jpg ", f"{here.name}/photo.jpg ")) for line in table) == 2
    )
    rows, described = outputs()
    assert [entry["picture"] for entry in described["pictures"]] == good
    assert sorted(described["failures"]) == sorted(lines)
    saved = [name.encode("utf-8", "backslashreplace").decode() for name in good]
    # A cell that a spreadsheet would take for a formula begins with an apostrophe.
    assert [row["picture"].removeprefix("'") for row in rows] == saved
    assert "'=cmd" in "".join(row["picture"] for row in rows)


@pytest.mark.parametrize(
    "images",
    [
        ("--images=a.png,b.png",),
        ("--images", "a.png", "b.png"),
        ("a.png", "b.png"),
        ("--images=a.png", "--images=b.png"),
        ("--images=[ab].png",),
        ("--images=.",),
    ],
    ids=" ".join,
)
def test_ways_to_name_pictures(run, here, images):
    for name in ("a.png", "b.png"):
        scene().save(name)
    code, _, err = program.run_here(
        "--mode=predict", *images, f"--workdir={run}", "--output=out", "--resize=squeeze"
    )
    assert (code, err) == (0, "")
    names = [os.path.basename(row["picture"]) for row in outputs()[0]]
    assert names == ["a.png", "b.png"]


def test_without_pictures_there_is_one_line(run, here):
    (here / "folder").mkdir()
    for images, part in (
        ("--images=none.png", "none.png does not exist"),
        ("--images=folder", "folder holds no pictures"),
        ("--images=*.png", "*.png holds no pictures"),
        ("--images=", "name some with --images"),
        ("--batch_size=3", "name some with --images"),
    ):
        code, out, err = start(run, images)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert err.startswith("error: no picture to predict: ")
        assert part in err
    assert sorted(os.listdir()) == ["folder"]


def test_nothing_is_written_if_no_picture_can_be_read(run, here):
    Path("a.png").touch()
    code, out, err = start(run, "--images=a.png")
    assert (code, out) == (1, "")
    assert err.splitlines() == ["a.png is empty", "error: no picture could be read"]
    assert os.listdir() == ["a.png"]


def test_a_run_or_an_output_that_cannot_be_used(run, here):
    scene().save("a.png")
    code, _, err = program.run_here("--mode=predict", f"--workdir={run}", "a.png", "--output=a.png")
    assert (code, err.count("\n")) == (2, 1)
    assert "a.png cannot be written (File exists): choose another with --output" in err
    code, _, err = start(run, "a.png", "--checkpoint=7")
    assert code == 2
    assert "no checkpoint '7'" in err
    shutil.copytree(run, "damaged")
    Path("damaged/config.json").write_text('{"num_cpu_devices": "many"}')
    shutil.rmtree("damaged/checkpoints")
    code, _, err = start("damaged", "a.png")
    assert (code, err.count("\n")) == (2, 1)
    assert sorted(os.listdir()) == ["a.png", "damaged"]


def test_the_default_output_is_in_the_workdir(run, here):
    scene().save("a.png")
    code, out, _ = program.run_here("--mode=predict", f"--workdir={run}", "a.png")
    assert code == 0
    assert sorted(os.listdir(run / "predictions")) == FILES
    assert out.splitlines()[-1].endswith(f"are in {run / 'predictions'}")


def test_the_picture_shows_the_first_of_many(run, here, monkeypatch):
    monkeypatch.setattr(predict, "MOST_DRAWN", 2)
    for number in range(3):
        scene().save(f"{number}.png")
    code, out, _ = start(run, "--images=.")
    assert code == 0
    assert out.splitlines()[-1] == "predictions.png shows the first 2"
    assert len(outputs()[0]) == 3


def test_missing_pictures_are_reported_before_jax_is_imported(run):
    text = (
        "import sys, main\n"
        f"code = main.main(['main.py', '--mode=predict', '--workdir={run}', 'none.png'])\n"
        "heavy = {'jax', 'matplotlib', 'orbax', 'tensorflow_datasets'}\n"
        "print(code, sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", text],
        cwd=program.ROOT,
        capture_output=True,
        text=True,
        timeout=program.SECONDS,
    )
    assert done.stdout == "2 []\n"


def test_top_classes_of_two_and_of_equal_ones():
    assert predict.top_classes(np.array([0.2, 0.8]), ("a", "b")) == [("b", 0.8), ("a", 0.2)]
    assert [name for name, _ in predict.top_classes(np.full(4, 0.25), "abcd")] == ["a", "b", "c"]
    assert max(map(len, predict.format_top(["x" * 200], np.eye(2)[:1], "ab").splitlines())) < 100
    assert predict.format_top(["x"], np.array([[0.2, 0.8]]), ("a", "b")).splitlines()[0] == (
        "picture  first     %  second     %"
    )


def test_pictures_of_another_brightness_get_a_hint(run, here):
    digits = datasets.load_dataset("digits").splits["test"].images[:5]
    for number, image in enumerate(digits):
        Image.fromarray(255 - image[..., 0]).save(f"{number}.png")
    code, out, _ = start(run, "--images=.")
    assert code == 0
    assert "much brighter than the training images" in out.splitlines()[-1]
    assert "--invert" in out.splitlines()[-1]
    code, out, _ = start(run, "--images=.", "--invert")
    assert "hint" not in out
    rows, _ = outputs()
    found = np.array([[float(row[str(digit)]) for digit in range(10)] for row in rows])
    np.testing.assert_allclose(found, cifar_jax.load(run).predict(digits), rtol=1e-5)
    code, _, err = start(run, "--images=.", "--background=nocolour")
    assert (code, err.count("\n")) == (2, 1)
    assert err.startswith("error: --background: unknown color")


def test_the_innermost_folder_that_is_a_class_counts():
    names = ("cat", "dog")
    paths = ["p/cat/1.png", "p/cat/a/b/1.png", "p/dog/cat/1.png", "p/1.png", "p/cow/1.png"]
    assert predict.find_classes(paths, names) == ["cat", "cat", "cat", None, None]
    assert predict.find_classes(["dog/a/1.png", "dog/b/1.png"], names) == [None, None]
    assert predict.find_classes(["dog/1.png", "dog/b/1.png"], names) == ["dog", None]
    assert predict.find_classes(["dog/1.png"], names) == ["dog"]


def test_pictures_in_folders_of_classes_are_counted(run, here):
    test = datasets.load_dataset("digits").splits["test"]
    images, labels = test.images[:7], test.labels[:7]
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        folder = here / "pictures" / (str(label) if number else "unknown")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[..., 0]).save(folder / f"{number}.png")
    code, out, err = start(run, "--images=pictures")
    assert (code, err) == (0, "")
    right = int((cifar_jax.load(run).predict(images[1:]).argmax(1) == labels[1:]).sum())
    assert f"\n{right} of 6 ({right / 6:.2%}) are right: " in out
    rows, described = outputs()
    expected = {f"{n}.png": str(label) if n else "" for n, label in enumerate(labels)}
    assert {os.path.basename(row["picture"]): row["class"] for row in rows} == expected
    assert [entry["class"] or "" for entry in described["pictures"]] == [
        row["class"] for row in rows
    ]
