"""The BN CNN: four convolutions (64, 128, 128, 256), each with pooling, dropout and batch
normalisation, and three dense layers (256, 128, 64), each with dropout and batch normalisation. The
widths are our choice."""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    """Returns 25 epochs with mirroring and shifts."""
    config = default.get_config()
    config.num_epochs = 25.0
    config.augment.flip = True
    config.augment.crop_padding = 4
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 2e-3
    config.optimizer.weight_decay = 0.05
    config.schedule.name = "cosine"
    config.schedule.warmup_epochs = 1.0
    with config.unlocked():
        config.model = ConfigDict(
            {"name": "bn_cnn", "dropout_rate": 0.05, "dense_dropout_rate": 0.1}
        )
    return config
