"""The recipe for a folder of pictures: by the number of pictures, or from another run."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cifar_jax.config import durations
from cifar_jax.data import class_folders
from cifar_jax.data.class_folders import Tree
from cifar_jax.errors import UserError
from cifar_jax.training import check
from configs import default, folder


@pytest.fixture
def pets(tmp_path):
    """A folder with three grey pictures of one class and two of another."""
    for name, count in (("cat", 3), ("dog", 2)):
        for number in range(count):
            path = tmp_path / "a,b" / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (5, 4), (number, number, number)).save(path)
    (tmp_path / "a,b" / "cat" / "9.png").write_bytes(b"broken")
    return str(tmp_path / "a,b")


@pytest.mark.parametrize(
    ("total", "held_out", "batch", "epochs", "every", "cutout", "brightness"),
    [
        (50, 0, 8, 300, 10, 8, 0.2),
        (150, 12, 8, 232, 7, 8, 0.2),
        (500, 40, 16, 155, 5, 8, 0.2),
        (1_000, 80, 32, 123, 4, 8, 0.2),
        (5_000, 400, 128, 72, 2, 8, 0.0),
        (6_000, 480, 128, 68, 2, 8, 0.0),
        (50_000, 4_000, 128, 33, 1, 0, 0.0),
        (62_500, 5_000, 128, 31, 1, 0, 0.0),
        (100_000, 8_000, 128, 30, 1, 0, 0.0),
    ],
)
def test_length_batch_and_augmentation_follow_the_number_of_pictures(
    monkeypatch, total, held_out, batch, epochs, every, cutout, brightness
):
    files = [(f"{number}.png", number % 2) for number in range(total)]
    tree = Tree(Path("/pets"), ("cat", "dog"), {"train": files}, ())
    monkeypatch.setattr(class_folders, "find_tree", lambda path: tree)
    monkeypatch.setattr(folder, "_are_grey", lambda tree: False)
    config = folder.get_config("pets")
    assert config.data.path == "/pets"
    assert (config.data.validation_examples, config.batch_size) == (held_out, batch)
    assert (config.num_epochs, config.eval_every_epochs) == (epochs, every)
    assert (config.augment.cutout, config.augment.brightness) == (cutout, brightness)
    assert (config.augment.flip, config.test_time.views) == (True, "mirror")
    assert config.log.every_steps == (0 if brightness else None)
    assert (config.data.channels, config.loss.class_weights) == (3, None)
    # Two fifths of what is trained on may be missing: duplicates, broken files.
    lengths = durations.resolve_durations(config, (total * 8 // 10 - held_out) * 3 // 5)
    assert lengths.total >= 600
    # With folders of their own for testing and validation, all pictures are for training.
    tree.splits.update(test=files[:2], validation=files[:2])
    assert folder.get_config("pets").data.validation_examples == 0


def test_grey_pictures_are_not_mirrored_and_uneven_classes_are_balanced(pets):
    config = folder.get_config(pets)
    assert (config.data.path, config.data.channels) == (pets, 1)
    assert (config.augment.flip, config.test_time.views) == (False, "plain")
    assert config.loss.class_weights == "balanced"
    config.batch_size = 2  # there are few pictures
    check.check_config(config, default.get_config())
    Image.effect_noise((5, 4), 90).convert("RGB").save(f"{pets}/dog/0.png")
    assert folder.get_config(pets).data.channels == 1
    noise = np.random.default_rng(0).integers(0, 256, (4, 5, 3), np.uint8)
    Image.fromarray(noise).save(f"{pets}/dog/1.png")
    assert folder.get_config(pets).data.channels == 3


def test_the_model_and_its_training_come_from_another_run(pets):
    config = folder.get_config(f"{pets},pretrained:mlp")
    config.batch_size = 2  # there are few pictures
    check.check_config(config, default.get_config())
    assert config.init_from == "pretrained:mlp"
    assert (config.data.image_size, config.data.channels) == (28, 1)
    assert (config.model.name, tuple(config.model.hidden_sizes)) == ("mlp", (500, 50))
    assert (config.optimizer.name, config.schedule.name) == ("adam", "cosine")
    assert config.optimizer.learning_rate == pytest.approx(1e-3 / 5)
    assert (config.augment.crop_padding, config.augment.cutout) == (0, 0)
    assert config.num_epochs == 100
    with pytest.raises(UserError, match="x: no such model comes with this package"):
        folder.get_config(f"{pets},pretrained:x")
    with pytest.raises(UserError, match=r"nowhere/config.json does not exist: is .* the workdir"):
        folder.get_config(f"{pets},nowhere")
