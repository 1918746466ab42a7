"""scikit-learn's handwritten digits, which need no download: a small VGG in under a minute."""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    config = default.get_config()
    config.data.name = "digits"
    config.num_epochs = 10.0
    config.batch_size = 64
    with config.unlocked():
        config.model = ConfigDict({"name": "lenet"})
    return config
