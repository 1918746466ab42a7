"""What is refused before any data are decoded: all that names and descriptions tell."""

from types import SimpleNamespace

import pytest
import tensorflow_datasets as tfds
from PIL import Image

from cifar_jax.data import cache, cifar, foresight, sources
from cifar_jax.errors import UserError
from cifar_jax.evaluation import evaluate
from cifar_jax.training import check
from configs import default
from tests import own_set, tiny


@pytest.fixture
def pictures(tmp_path):
    """A folder with two classes of 20 pictures each for training, and a split for validation."""
    for place, count in (("train/a", 20), ("train/b", 20), ("val/a", 3), ("val/b", 3)):
        (tmp_path / place).mkdir(parents=True)
        for number in range(count):
            Image.new("L", (4, 4), number).save(tmp_path / place / f"{number}.png")
    return tmp_path


@pytest.fixture(autouse=True)
def _nothing_is_decoded(monkeypatch):
    monkeypatch.setattr(cache, "load_or_build", lambda *_: pytest.fail("decoded the data"))
    monkeypatch.setattr(sources, "_load_digits", lambda: pytest.fail("read the digits"))


def refuse(**fields):
    """Returns the lines with which a config is refused; none if it is accepted."""
    try:
        check.check_config(tiny.config(data__validation_examples=0, **fields), default.get_config())
    except UserError as error:
        return str(error).splitlines()
    return []


MISFITS = [
    ({"augment__crop_padding": 16}, "crop_padding=16 must be below the image's side of 16"),
    ({"data__train_split": "trian"}, "folder has no split 'trian': it has train, validation, test"),
    (
        {"data__test_split": "tset"},
        "folder has no split 'tset': it has train, validation, test",
    ),
    ({"data__test_split": "train[:9]+x[:1]"}, "folder has no split 'train[:9]+x[:1]': it has"),
    ({"batch_size": 42}, "batch_size 42 is larger than the 40 training images"),
    ({"loss__class_weights": (1, 2, 3)}, "loss.class_weights has 3 numbers, but the data have 2"),
    (
        {"model": {"name": "lenet"}, "data__image_size": 8},
        "LeNet reduces images of 8 x 8 pixels to",
    ),
]


@pytest.mark.parametrize(("fields", "line"), MISFITS)
def test_what_does_not_fit_a_folder_is_refused_before_a_picture_is_decoded(pictures, fields, line):
    usual = {"data__name": "folder", "data__path": str(pictures), "data__image_size": 16}
    usual["batch_size"] = 8
    (found,) = refuse(**{**usual, **fields})
    assert found.startswith(line)
    assert refuse(**usual) == []
    assert refuse(**usual, data__train_split="train[:50%]+validation") == []


def test_what_does_not_fit_a_prepared_set_is_refused_before_it_is_decoded(tmp_path):
    shape = tfds.features.Image(shape=(4, 5, 1))
    own_set.prepare(tmp_path, "greys", image=shape, train=[(0, "L"), (1, "L")] * 10)
    usual = {"data__name": "greys", "data__data_dir": str(tmp_path), "batch_size": 8}
    assert refuse(**usual) == []
    known = foresight.foresee(tiny.config(**usual))
    assert (known.image_shape, known.num_classes, known.sizes["train"].num_examples) == (
        (4, 5, 1),
        2,
        20,
    )
    for fields, line in (
        ({"augment__crop_padding": 4}, "crop_padding=4 must be below the image's side of 4"),
        # Two of the images are held out for the test.
        ({"batch_size": 20}, "batch_size 20 is larger than the 18 training images"),
        ({"data__train_split": "train[:6]"}, "batch_size 8 is larger than the 5 training images"),
        ({"data__train_split": "train[:60]"}, "greys has fewer images than 'train[:60]' asks for"),
        ({"loss__class_weights": (1,)}, "loss.class_weights has 1 numbers, but the data have 2"),
        ({"data__channels": 3, "model": {"name": "speedrun"}}, "Speedrun reduces images of 4 x 5"),
    ):
        (found,) = refuse(**{**usual, **fields})
        assert found.startswith(line)
    (folder,) = tmp_path.glob("greys/*")
    (folder / "features.json").write_text("{}")  # of another version of TFDS
    assert refuse(**usual, augment__crop_padding=4) == []


def test_a_split_that_a_folder_lacks_is_named_before_a_picture_is_decoded(pictures):
    config = tiny.config(data__name="folder", data__path=str(pictures))
    models = {"a": SimpleNamespace(config=config, image_shape=(8, 8, 1))}
    for split in ("tset", "train[:3]+foo"):
        with pytest.raises(UserError, match=r"^folder has no split .*: it has train, test, valid"):
            evaluate.load_images(models, split, None, None)
    with pytest.raises(UserError, match="is not a split in TFDS's notation"):
        evaluate.load_images(models, "train[", None, None)
    for split in ("train", "test", "validation", "train[:50%]+test"):
        foresight.check_split(config, "folder", split, None)
    with pytest.raises(UserError, match="or --data_dir=PATH where the set is named by --dataset"):
        evaluate.load_images(
            {"a": SimpleNamespace(config=tiny.config(), image_shape=(8, 8, 1))},
            "test",
            "folder",
            None,
        )


def test_images_that_are_held_out_do_not_count():
    held_out = {"data__name": "digits", "batch_size": 437}
    config = tiny.config(**{**held_out, "data__validation_examples": 1001})
    with pytest.raises(UserError, match="batch_size 437 is larger than the 436 training images"):
        check.check_config(config)
    config.data.validation_fold = 1  # the last part is smaller
    check.check_config(config)
    config.data.validation_fold = 2
    with pytest.raises(UserError, match="validation_fold is 2 but the 1437 training images have 2"):
        check.check_config(config)


@pytest.mark.parametrize("name", cifar.NAMES)
def test_cifar_is_known_before_it_is_downloaded(tmp_path, name):
    known = foresight.foresee(tiny.config(data__name=name, data__data_dir=str(tmp_path)))
    assert (known.image_shape, known.num_classes) == ((32, 32, 3), int(name[5:]))
    usual = {"data__name": name, "data__data_dir": str(tmp_path)}
    assert refuse(**usual) == []
    (line,) = refuse(**usual, augment__crop_padding=32)
    assert line == "crop_padding=32 must be below the image's side of 32"
    assert refuse(**usual, batch_size=50_001) == [
        "batch_size 50001 is larger than the 50000 training images"
    ]


def test_an_augmentation_is_tried_on_images_of_the_sets_shape(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(
        "def grey(key, images):\n    assert images.shape[1:] == (32, 32, 1)\n    return images\n"
    )
    assert refuse(augment__custom="mine.py:grey") == []
    (line,) = refuse(augment__custom="mine.py:grey", data__image_size=16)
    assert line.startswith("augment.custom is 'mine.py:grey', which fails on images [2, 16, 16, 1]")
