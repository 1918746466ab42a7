"""A small network on the digits that depends on the whole batch and on each image's place in it.

BatchNorm and mixup depend on the whole batch; dropout and flips on each image's place.
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    """Returns 10 steps of 64 of the 320 training images."""
    config = default.get_config()
    config.data.name = "digits"
    config.data.validation_examples = 1117
    config.batch_size, config.num_steps = 64, 10
    config.checkpoint.every_steps = 10
    config.augment.flip = True
    config.augment.mixup_alpha = 0.5
    config.optimizer.name = "sgd"
    config.optimizer.learning_rate = 0.01
    config.log.tensorboard = config.log.report = False
    with config.unlocked():
        config.model = ConfigDict(
            {
                **{"name": "bn_cnn", "conv_features": (8, 8), "dense_features": (8,)},
                **{"dropout_rate": 0.2, "dense_dropout_rate": 0.2},
            }
        )
    return config
