"""Configs for tests: runs of seconds, with the embedded digits and small networks."""

from typing import Any

from ml_collections import ConfigDict

from configs import default, resnet, speedrun


def config(**fields: Any) -> ConfigDict:
    """Returns a config of 2 epochs of 5 steps; `fields` are dotted names with "." as "__"."""
    result = default.get_config()
    with result.unlocked():
        result.model = ConfigDict({"name": "mlp", "hidden_sizes": (16,), "activation": "relu"})
    return _shorten(result, fields)


def bn_config(**fields: Any) -> ConfigDict:
    """Returns the same for a network with BatchNorm and dropout, which depend on the batch."""
    result = default.get_config()
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
    return _shorten(result, fields)


def speedrun_config(**fields: Any) -> ConfigDict:
    """Returns a small version of configs/speedrun.py: whitening, Muon, groups, flips, views."""
    result = speedrun.get_config()
    result.test_time.confidence_threshold = 0.3
    result.optimizer.groups.stem_bias.num_epochs = 0.6
    for name in ("stem_bias", "norm_biases", "head"):
        result.optimizer.groups[name].learning_rate *= 64 / 2000
    result.model.group_features = (8, 8, 16)
    return _shorten(result, fields)


def resnet_config(**fields: Any) -> ConfigDict:
    """Returns configs/resnet.py:20, which trains with Muon and SGD, for the digits."""
    return _shorten(resnet.get_config("20"), fields)


def _shorten(result: ConfigDict, fields: dict[str, Any]) -> ConfigDict:
    result.data.name = "digits"
    result.data.validation_examples = 1117  # leaves 320 training images
    result.batch_size = 64
    result.num_epochs = 2.0
    result.log.tensorboard = False
    result.log.report = False
    with result.unlocked():
        for name, value in fields.items():
            part, _, field = name.rpartition("__")
            (result[part] if part else result)[field] = value
    return result
