"""Your own pictures: `folder.py:PATH` for PATH/CLASS/*.jpg or PATH/train/CLASS, PATH/test/CLASS.

`folder.py:PATH,FROM` starts from the weights of a run, FROM being its workdir, a file of weights or
pretrained:NAME; model, optimizer, augmentation and image size are then those of that run, and the
learning rate is a fifth. Otherwise it is a ResNet-20, trained as configs/resnet.py says.

The number of pictures decides the length, the batch and the augmentation, for 50 to 50,000 of them.
Pictures in colour are mirrored at random; grey ones are not, since many of them are characters.
"""

from collections import Counter
from pathlib import Path

from ml_collections import ConfigDict

from cifar_jax.config import stored
from cifar_jax.data import class_folders, photos
from cifar_jax.errors import UserError
from cifar_jax.runs import sources, weights
from configs import resnet

NUM_LOOKED_AT = 12  # pictures that are opened to see whether they are grey


def get_config(variant: str = "") -> ConfigDict:
    """Returns the recipe for a folder, "PATH" or "PATH,FROM"; without one, for 5,000 pictures."""
    path, start = variant, ""
    if "," in variant and not Path(variant).expanduser().is_dir():
        path, _, start = variant.rpartition(",")
    config = resnet.get_config("20")
    config.data.name = class_folders.FOLDER
    config.loss.label_smoothing = 0.1
    config.optimizer.learning_rate_scaling = "sqrt"
    count, is_grey = 5_000, False
    if path:
        tree = class_folders.find_tree(path)
        config.data.path = str(tree.root)
        by_class = Counter(label for _, label in tree.splits["train"])
        share = 0 if "test" in tree.splits else config.data.test_fraction
        count = round((1 - share) * by_class.total())
        if max(by_class.values()) > 1.5 * min(by_class.values()):
            config.loss.class_weights = "balanced"
        if "validation" not in tree.splits and count >= 100:
            config.data.validation_examples = count // 10
            count -= count // 10
        is_grey = _are_grey(tree)
        config.data.channels = 1 if is_grey else 3
    if start:
        _start_from(config, start)
    _fit_to_count(config, count, is_grey)
    return config


def _are_grey(tree: class_folders.Tree) -> bool:
    """Whether some of the pictures, spread over the folder, have no colours."""
    entries = tree.splits["train"]
    for file, _ in entries[:: max(1, len(entries) // NUM_LOOKED_AT)]:
        try:
            image = photos.fit(photos.read_picture(str(tree.root / file)), (32, 32, 3))
        except UserError:
            continue  # broken files are named when the pictures are decoded
        if (image.max(axis=2) - image.min(axis=2)).mean() > 2:
            return False
    return True


def _start_from(config: ConfigDict, start: str) -> None:
    """Takes the model, how it was trained, and the images' size from another run."""
    if not start.startswith(weights.PREFIX):
        start = str(Path(start).expanduser().absolute())
    other = stored.from_json(weights.read_config(Path(start)))
    height, width, channels = weights.read_data(Path(start))["image_shape"]
    if height != width:
        raise UserError(f"{start} was trained on images of {height}x{width}: it must be a square")
    config.init_from = start
    config.data.image_size, config.data.channels = height, channels
    with config.unlocked():
        config.model = other.model
        config.optimizer = other.optimizer
    for name in ("schedule", "augment", "test_time"):
        config[name].update(other[name])
    if other.optimizer.learning_rate_scaling == "none":
        config.optimizer.learning_rate_scaling = "sqrt"
        config.optimizer.base_batch_size = other.batch_size
    for part in (config.optimizer, *config.optimizer.groups.values()):
        if part.learning_rate is not None:
            part.learning_rate /= 5
    config.dtype = other.dtype
    # Code of the user's own is run only where it was at the training, never out of that workdir.
    file = weights.find_file(Path(start))
    record = weights.read_weights(file)[1].get("code", {}) if file else None
    config.update_from_flattened_dict(sources.find_code(config, Path(start), record=record))


def _fit_to_count(config: ConfigDict, count: int, is_grey: bool) -> None:
    """Sets batch, length and augmentation for a number of training images."""
    config.batch_size = next((size for size in (128, 64, 32, 16) if 16 * size <= count), 8)
    config.num_epochs = float(round(min(300, 30 * max(1, 50_000 / max(1, count)) ** (1 / 3))))
    if config.init_from:
        config.num_epochs = max(10.0, config.num_epochs // 3)
    config.schedule.warmup_epochs = min(config.schedule.warmup_epochs, config.num_epochs / 10)
    config.eval_every_epochs = config.checkpoint.every_epochs = max(1.0, config.num_epochs // 30)
    if not config.init_from and count < 20_000:
        config.augment.cutout = 8
    if count < 2_000:
        config.augment.brightness = config.augment.contrast = 0.2
        config.log.every_steps = 0  # an epoch has a few steps only
    if is_grey:
        config.augment.flip = config.augment.alternating_flip = False
        config.test_time.views = "plain"
        config.test_time.confidence_threshold = None
