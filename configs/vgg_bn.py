"""The VGG-like BN CNN (2,494,982 parameters): `vgg_bn.py` trains on the images as they are,
`vgg_bn.py:augment` longer, with mirroring and shifts."""

from ml_collections import ConfigDict

from configs import default


def get_config(variant: str = "") -> ConfigDict:
    """Returns the recipe without (15 epochs) or with ("augment", 30 epochs) augmentation."""
    if variant not in ("", "augment"):
        raise ValueError(f"configs/vgg_bn.py has no variant {variant!r}; there is augment")
    config = default.get_config()
    config.num_epochs = 15.0
    config.optimizer.name = "sgd"
    config.optimizer.learning_rate = 0.05
    config.optimizer.momentum = 0.9
    config.optimizer.nesterov = True
    config.optimizer.weight_decay = 5e-4
    config.schedule.name = "cosine"
    config.schedule.warmup_epochs = 1.0
    with config.unlocked():
        config.model = ConfigDict(
            {"name": "vgg_bn", "dropout_rate": 0.25, "dense_dropout_rate": 0.5}
        )
    if variant:
        config.num_epochs = 30.0
        config.augment.flip = True
        config.augment.crop_padding = 4
        config.model.dropout_rate = 0.1
    return config
