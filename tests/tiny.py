"""A run of seconds for the tests: the embedded digits and a small network."""

from typing import Any

from ml_collections import ConfigDict

from configs import default


def config(**fields: Any) -> ConfigDict:
    """Returns a config of 2 epochs of 5 steps; `fields` are dotted names with "." as "__"."""
    result = default.get_config()
    result.data.name = "digits"
    result.data.validation_examples = 1117  # leaves 320 training images
    result.batch_size = 64
    result.num_epochs = 2.0
    result.log.tensorboard = False
    result.log.report = False
    with result.unlocked():
        result.model = ConfigDict({"name": "mlp", "hidden_sizes": (16,), "activation": "relu"})
        for name, value in fields.items():
            part, _, field = name.rpartition("__")
            (result[part] if part else result)[field] = value
    return result


def bn_config(**fields: Any) -> ConfigDict:
    """Returns the same with a network that has what depends on the batch: BatchNorm, dropout."""
    result = config(**fields)
    with result.unlocked():
        result.model = ConfigDict(
            {
                "name": "bn_cnn",
                "conv_features": (8, 8),
                "dense_features": (8,),
                "dropout_rate": 0.2,
                "dense_dropout_rate": 0.2,
            }
        )
    return result
