"""Splits in TFDS's notation, and which of a set's splits a run trains and tests on."""

import json
import logging

import numpy as np
import pytest

from cifar_jax.data import datasets
from cifar_jax.data import splits as splits_lib
from cifar_jax.errors import UserError
from configs import default
from tests import own_set, program

SIZES = {
    "train": splits_lib.SplitSize(100, [60, 40]),
    "test": splits_lib.SplitSize(20, [20]),
}


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def examples(count, label=None):
    return [(n % 2 if label is None else label, "L") for n in range(count)]


def load(root, **options):
    return datasets.load_run_data("shades", str(root), **options)


def sizes(dataset):
    return {name: len(split.labels) for name, split in dataset.splits.items()}


@pytest.mark.parametrize(
    ("split", "parts"),
    [
        ("train", [("train", 0, 100)]),
        ("train[:90%]", [("train", 0, 90)]),
        ("train[-15:]", [("train", 85, 100)]),
        ("train[10:20]+test[50%:]", [("train", 10, 20), ("test", 10, 20)]),
        ("train[1shard]", [("train", 60, 100)]),
        ("all", [("train", 0, 100), ("test", 0, 20)]),
    ],
)
def test_the_notation_is_that_of_tfds(split, parts):
    assert splits_lib.find_parts("x", split, SIZES) == parts


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ("extra[:5]", r"x has no split 'extra\[:5\]': it has train, test"),
        ("train[200:]", r"x has fewer images than .train\[200:\]. asks for: it has 100 train"),
        ("train[50:50]", "no images in"),
        ("train[:110%]", "is not a split in TFDS's notation: give one such as train"),
        ("train[", "is not a split in TFDS's notation"),
        ("train[::2]", "is not a split in TFDS's notation"),
        ("", "is not a split in TFDS's notation"),
    ],
)
def test_other_splits_are_refused(split, message):
    with pytest.raises(UserError, match=message) as caught:
        splits_lib.find_parts("x", split, SIZES)
    assert "\n" not in str(caught.value)


def test_a_part_is_that_of_tfds(tmp_path):
    import tensorflow_datasets as tfds

    folder = own_set.prepare(tmp_path, "shades", train=examples(11))
    stored = tfds.builder_from_directory(folder).as_data_source(split="train[30%:80%]")
    loaded = datasets.load_dataset("shades", str(tmp_path), ("train[30%:80%]",))
    images, labels, origin = loaded.splits["train[30%:80%]"]
    assert origin["split"].tolist() == ["train"] * 6
    assert origin["original_index"].tolist() == [3, 4, 5, 6, 7, 8]
    assert labels.tolist() == [record["label"] for record in stored]
    np.testing.assert_array_equal(images, [record["image"] for record in stored])
    assert isinstance(images, np.memmap)  # nothing was copied
    assert not images.flags.writeable
    joined = datasets.load_dataset("shades", str(tmp_path), ("train[:2]+train[-3:]",))
    whole = datasets.load_dataset("shades", str(tmp_path), ("train",)).splits["train"]
    expected = np.concatenate([whole.labels[:2], whole.labels[-3:]])
    assert joined.splits["train[:2]+train[-3:]"].labels.tolist() == expected.tolist()
    origin = joined.splits["train[:2]+train[-3:]"].origin
    assert origin["original_index"].tolist() == [0, 1, 8, 9, 10]


def test_a_set_with_only_train_gets_a_test_split(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    own_set.prepare(tmp_path, "shades", train=examples(40))
    first = load(tmp_path)
    assert sizes(first) == {"train": 36, "test": 4}
    assert "4 of 40 training images, chosen by data.seed (0), are held out" in caplog.text
    whole = datasets.load_dataset("shades", str(tmp_path), ("train",)).splits["train"]
    test, train = first.splits["test"], first.splits["train"]
    assert sorted([*train.labels, *test.labels]) == sorted(whole.labels)
    np.testing.assert_allclose(first.mean, [(train.images / 255).mean()], rtol=1e-12)
    # Another seed of the run validates on others, and tests on the same.
    config = default.get_config()
    config.seed, config.data.validation_examples = 7, 6
    second = load(tmp_path, **datasets.run_options(config))
    assert sizes(second) == {"train": 30, "test": 4, "validation": 6}
    np.testing.assert_array_equal(second.splits["test"].images, test.images)
    assert (second.mean, second.std) == (first.mean, first.std)
    config.data.seed = 3
    other = load(tmp_path, **datasets.run_options(config)).splits["test"]
    assert other.labels.tolist() != test.labels.tolist()


def test_a_split_named_validation_is_used_as_such(tmp_path):
    own_set.prepare(tmp_path, "shades", train=examples(20), validation=examples(5, 1))
    assert sizes(load(tmp_path)) == {"train": 18, "test": 2, "validation": 5}
    # One that is named as the test split, or trained on, is not.
    assert sizes(load(tmp_path, test_split="validation")) == {"train": 20, "test": 5}
    assert sizes(load(tmp_path, train_split="train+validation")) == {
        "train": 23,
        "test": 2,
    }
    assert sizes(load(tmp_path, validation_examples=3)) == {"train": 15, "test": 2, "validation": 3}


def test_test_labels_of_minus_one_are_no_labels(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    own_set.prepare(tmp_path, "shades", train=examples(20), test=examples(6, -1))
    assert sizes(load(tmp_path)) == {"train": 18, "test": 2}
    assert "the split test of shades has images without a class: left out" in caplog.text
    with pytest.raises(UserError, match=r"without a class: change data\.test_split"):
        load(tmp_path, test_split="test")
    with pytest.raises(UserError, match=r"without a class: change data\.train_split"):
        load(tmp_path, train_split="test", test_split="train")


def test_training_and_test_images_may_not_overlap(tmp_path):
    own_set.prepare(tmp_path, "shades", train=examples(20))
    assert sizes(load(tmp_path, train_split="train[:75%]", test_split="train[75%:]")) == {
        "train": 15,
        "test": 5,
    }
    with pytest.raises(UserError, match="have 2 images in common: train on the others"):
        load(tmp_path, train_split="train[:60%]", test_split="train[50%:]")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train_split=train[:2", "error: 'train[:2' is not a split in TFDS's notation"),
        ("train_split=extra", "has no split 'extra': it has train, test; change data.train"),
        ("test_split=validation", "it has train, test; change data.test_split"),
        ("test_split=train[:5]", "have 5 images in common"),
    ],
)
def test_wrong_splits_are_refused_before_any_data_are_read(
    tmp_path, monkeypatch, override, message
):
    monkeypatch.chdir(tmp_path)
    config = f"--config={program.ROOT}/configs/digits.py"
    code, _, err = program.run_here(config, f"--config.data.{override}")
    assert code == 2
    assert message in err
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "runs").exists()


def test_a_run_trains_evaluates_and_explores_on_its_own_splits(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own_set.prepare(tmp_path, "shades", train=examples(40), test=examples(8, -1))
    common = [
        f"--config={program.ROOT}/configs/mlp.py",
        "--config.data.name=shades",
        f"--config.data.data_dir={tmp_path}",
        "--config.data.train_split=train[:50%]",
    ]
    flags = ["--config.batch_size=6", "--config.num_steps=2", "--config.log.report=False"]
    assert program.run_here(*common, *flags, "--workdir=run")[0] == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["num_images"] == 2
    for split, count in (("test", 2), ("train", 18), ("train[50%:]", 20)):
        code, out, _ = program.run_here("--mode=evaluate", "--workdir=run", f"--split={split}")
        assert (code, f"of {count})" in out) == (0, True)
    code, _, err = program.run_here("--mode=evaluate", "--workdir=run", "--split=validation")
    assert code == 2
    assert err.endswith("error: the run has no split 'validation': it has train, test\n")
    assert program.run_here("--mode=explore", *common, "--output=seen")[0] == 0
    counts = json.loads((tmp_path / "seen" / "data.json").read_text())["counts"]
    assert {name: sum(own) for name, own in counts.items()} == {"train": 18, "test": 2}
    own = ["--mode=explore", "--dataset=shades", f"--data_dir={tmp_path}", "--output=all"]
    assert program.run_here(*own)[0] == 0
    counts = json.loads((tmp_path / "all" / "data.json").read_text())["counts"]
    assert counts == {"train": [20, 20]}


@pytest.mark.parametrize(
    ("options", "role", "count"),
    [
        ({"train_split": "train[:90%]+train[50%:]", "test_split": None}, "train", 40),
        ({"train_split": "train+test+train", "test_split": None}, "train", 100),
        ({"train_split": "train", "test_split": "test+test[:5]"}, "test", 5),
    ],
)
def test_an_image_may_not_be_in_a_split_twice(options, role, count):
    with pytest.raises(UserError, match=rf"data\.{role}_split '.*' has {count} images twice"):
        splits_lib.choose_splits("x", SIZES, use_validation=False, **options)
