"""The simple CNN (4,210,090 parameters): `simple_cnn.py` as its authors describe it, 10 epochs;
`simple_cnn.py:modern` with augmentation and less regularization, 25 epochs."""

from ml_collections import ConfigDict

from configs import default


def get_config(variant: str = "") -> ConfigDict:
    """Returns the plain or the "modern" recipe."""
    if variant not in ("", "modern"):
        raise ValueError(f"configs/simple_cnn.py has no variant {variant!r}; there is modern")
    config = default.get_config()
    config.num_epochs = 10.0
    config.optimizer.name = "sgd"
    config.optimizer.learning_rate = 0.02
    config.optimizer.momentum = 0.9
    config.optimizer.nesterov = True
    # Strong enough to keep the loss on unseen images low to the end.
    config.optimizer.weight_decay = 2e-3
    config.schedule.name = "cosine"
    config.schedule.warmup_epochs = 0.5
    with config.unlocked():
        config.model = ConfigDict({"name": "simple_cnn", "dropout_rate": 0.5})
    if variant:
        config.num_epochs = 25.0
        config.augment.flip = True
        config.augment.crop_padding = 4
        config.optimizer.weight_decay = 1e-3
        config.model.dropout_rate = 0.3
    return config
