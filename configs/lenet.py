"""The LeNet-like CNN with the usual widths (62,006 parameters)."""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    """Returns 40 epochs with mirroring and small shifts."""
    config = default.get_config()
    config.num_epochs = 40.0
    config.augment.flip = True
    config.augment.crop_padding = 2
    config.optimizer.name = "sgd"
    config.optimizer.learning_rate = 0.05
    config.optimizer.momentum = 0.9
    config.optimizer.nesterov = True
    config.optimizer.weight_decay = 5e-4
    config.schedule.name = "cosine"
    config.schedule.warmup_epochs = 1.0
    with config.unlocked():
        config.model = ConfigDict({"name": "lenet"})
    return config
