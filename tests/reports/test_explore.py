"""`--mode=explore`: counts and statistics against NumPy, the choice of images, the pictures."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from cifar_jax.data import datasets
from cifar_jax.data.sources import Source
from cifar_jax.data.splits import SplitSize
from cifar_jax.reports import explore
from cifar_jax.reports.style import render
from cifar_jax.text import shorten_middle
from tests import program


@pytest.fixture
def here(monkeypatch, tmp_path):
    (tmp_path / "configs").symlink_to(program.ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def start(*arguments):
    code, out, err = program.run_here("--mode=explore", *arguments)
    assert (code, err) == (0, "")
    return out


def make_set(num_classes, counts, shape=(6, 8, 3)):
    """Returns a set whose images hold their label and are all different."""
    labels = np.repeat(np.arange(num_classes), counts).astype(np.int32)
    np.random.default_rng(0).shuffle(labels)
    images = np.zeros((len(labels), *shape), np.uint8)
    images[:, :3] = labels[:, None, None, None]
    images[:, 3:] = (np.arange(len(labels)) % 256)[:, None, None, None]
    names = tuple(f"class {number}" for number in range(num_classes))
    channels = (0.5,) * shape[2]
    return datasets.Dataset(
        "x", names, channels, channels, {"train": datasets.Split(images, labels)}
    )


def test_digits(here):
    out = start("--dataset=digits")
    assert sorted(os.listdir("explore/digits")) == ["counts.png", "data.json", "images.png"]
    described = json.loads((here / "explore/digits/data.json").read_text())
    digits = datasets.load_dataset("digits")
    lines = [line.split() for line in out.splitlines()]
    assert lines[0] == ["class", "train", "test"]
    for number, name in enumerate(digits.class_names):
        counts = [int((split.labels == number).sum()) for split in digits.splits.values()]
        assert [name, *map(str, counts)] in lines
        assert [described["counts"][split][number] for split in ("train", "test")] == counts
    assert ["all", "1,437", "360"] in lines
    pixels = digits.splits["train"].images / 255
    assert ["grey", f"{pixels.mean():.4f}", f"{pixels.std():.4f}"] in lines
    assert described["mean"] == pytest.approx([pixels.mean()])
    assert described["image_shape"] == [32, 32, 1]


def test_the_set_of_a_config_with_its_validation_split(here):
    flags = ("--config=configs/digits.py", "--config.data.validation_examples=37")
    out = start(*flags, "--output=out")
    assert out.splitlines()[0].split() == ["class", "train", "validation", "test"]
    assert "all    1,400          37   360" in out
    first = (here / "out/images.png").read_bytes()
    start(*flags, "--output=out")
    assert (here / "out/images.png").read_bytes() == first
    start(*flags, "--output=out", "--config.seed=1")
    assert (here / "out/images.png").read_bytes() != first


def test_each_folder_of_pictures_has_its_own_output(here):
    for name in ("a", "b"):
        for number in range(4):
            path = here / name / f"class {number % 2}" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (4, 4), (number, 0, 0)).save(path)
    config = ("--config=configs/digits.py", "--config.data.name=folder", "--config.data.path=b")
    for flags in (("--dataset=folder", "--data_dir=a/"), config):
        code, _, err = program.run_here("--mode=explore", *flags)
        assert code == 0, err
    assert sorted(os.listdir("explore")) == ["folder_a", "folder_b"]


def test_the_seed_chooses_the_images(here):
    for name, seed in (("a", 0), ("b", 5)):
        start("--dataset=digits", f"--output={name}", f"--seed={seed}")
    assert (here / "a/images.png").read_bytes() != (here / "b/images.png").read_bytes()


def test_ten_of_each_class_or_all_that_there_are():
    labels = np.array([0] * 50 + [1] * 4 + [3] * 10)
    chosen = explore.choose(labels, 4, seed=0)
    assert [len(indices) for indices in chosen] == [10, 4, 0, 10]
    for number, indices in enumerate(chosen):
        assert (labels[indices] == number).all()
        assert len(set(indices)) == len(indices)
    assert sorted(chosen[0]) != list(range(10))
    # Each image of a class is chosen about equally often.
    often = np.zeros(50)
    for seed in range(300):
        often[explore.choose(labels, 4, seed)[0]] += 1
    assert 35 < often.min() <= often.max() < 90


def test_many_classes_take_several_pictures(here, monkeypatch, capsys):
    source = Source({"train": SplitSize(1, [1]), "extra": SplitSize(1, [1])}, lambda _: None)
    monkeypatch.setattr(datasets, "open_source", lambda *_: source)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_: make_set(43, 12))
    explore.explore_dataset("own/set")
    names = sorted(os.listdir("explore/own_set"))
    assert names == ["counts.png", "data.json", *[f"images_{n}.png" for n in (1, 2, 3)]]
    assert "images_1.png, images_2.png, images_3.png, counts.png" in capsys.readouterr().out
    heights = []
    for name in names[2:]:
        with Image.open(f"explore/own_set/{name}") as picture:
            heights.append(picture.height)
    assert heights[0] == heights[1] > 5 * heights[2]


def test_each_image_is_in_the_row_of_its_class(monkeypatch):
    dataset = make_set(5, [12, 12, 3, 0, 12])
    split = dataset.splits["train"]
    chosen = explore.choose(split.labels, 5, 0)
    figure = explore.plot_classes(
        [split.images[x] for x in chosen], ["a", "b", "c", "d$", "e" * 40]
    )
    drawn = figure.axes[0].images
    assert len(drawn) == 10 + 10 + 3 + 0 + 10
    names = {text.get_text(): text.get_position()[1] for text in figure.axes[0].texts}
    assert list(names) == ["a", "b", "c", "d$", shorten_middle("e" * 40, 20)]
    for image in drawn:
        _, _, bottom, top = image.get_extent()
        row = list(names.values()).index(pytest.approx((bottom + top) / 2))
        assert np.asarray(image.get_array())[0, 0, 0] == row
    render(figure)


def test_an_output_that_cannot_be_written(here):
    (here / "file").write_text("")
    code, out, err = program.run_here("--mode=explore", "--dataset=digits", "--output=file/x")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "file/x cannot be written" in err


def test_exploring_and_comparing_import_no_jax(here):
    text = (
        "import sys, main\n"
        "main.main(['main.py', '--mode=explore', '--dataset=digits', '--output=out'])\n"
        "main.main(['main.py', '--mode=compare', '--workdirs=none'])\n"
        "print(sorted({'jax', 'orbax', 'tensorflow', 'tensorflow_datasets'} & set(sys.modules)))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(program.ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", text],
        env=environment,
        capture_output=True,
        text=True,
        timeout=program.SECONDS,
    )
    assert done.stdout.splitlines()[-1] == "[]", done.stderr
