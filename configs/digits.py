"""A LeNet on scikit-learn's 1,797 handwritten digits, without a download, in under a minute.

360 fixed images are the test split; the other 1,437 are for training."""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    """Returns 30 epochs of Adam with small shifts and a decaying learning rate."""
    config = default.get_config()
    config.data.name = "digits"
    config.num_epochs = 30.0
    config.batch_size = 64
    config.augment.crop_padding = 3
    config.optimizer.learning_rate = 2e-3
    config.schedule.name = "cosine"
    with config.unlocked():
        config.model = ConfigDict({"name": "lenet"})
    return config
