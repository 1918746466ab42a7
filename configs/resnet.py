"""ResNets for CIFAR: `resnet.py` is ResNet-18 for accelerators (`resnet.py:34` is ResNet-34),
`resnet.py:20` (or 32, 44, 56) the small ones of He et al., which a CPU can train, and
`resnet.py:wrn-28-10` a wide one.

All but the wide ones train their convolutions by Muon (see cifar_jax/optim/muon.py), because the
norm after each removes the kernel's scale, and the rest by SGD; a test image's logits are the mean
over the image and its mirror image. The learning rate was chosen for ResNet-20 and 40 epochs on
training images set aside (0.0125 to 0.025 do about as well).
"""

import re

from ml_collections import ConfigDict

from configs import default

DEPTHS = ("18", "20", "32", "34", "44", "56")
ACCELERATED = ("18", "34")


def get_config(variant: str = "18") -> ConfigDict:
    """Returns the recipe of a depth, such as "20", or of a wide ResNet, "wrn-DEPTH-WIDTH"."""
    config = default.get_config()
    config.augment.flip = True
    config.augment.crop_padding = 4
    config.optimizer.momentum = 0.9
    config.optimizer.nesterov = True
    wide = re.fullmatch(r"wrn-(\d+)-(\d+)", variant)
    if wide:
        depth, width = map(int, wide.groups())
        model = {"name": "wide_resnet", "depth": depth, "widen_factor": width, "dropout_rate": 0.0}
        config.num_epochs = 200.0
        _use_sgd(config)
    elif variant in DEPTHS:
        model = {"name": "resnet", "depth": int(variant)}
        config.num_epochs = 45.0 if variant in ACCELERATED else 40.0
        _use_muon(config)
    else:
        raise ValueError(
            f"configs/resnet.py has no variant {variant!r}; there are "
            f"{', '.join(DEPTHS)} and wrn-DEPTH-WIDTH, such as wrn-28-10"
        )
    if variant in ACCELERATED or wide:
        config.dtype = "bfloat16"
    if variant in ACCELERATED:
        config.augment.cutout = 12
        config.loss.label_smoothing = 0.1
    with config.unlocked():
        config.model = ConfigDict(model)
    return config


def _use_sgd(config: ConfigDict) -> None:
    config.optimizer.name = "sgd"
    config.optimizer.learning_rate = 0.1
    config.optimizer.weight_decay = 5e-4
    config.schedule.name = "cosine"
    config.schedule.warmup_epochs = 1.0


def _use_muon(config: ConfigDict) -> None:
    config.optimizer.name = "muon"
    config.optimizer.learning_rate = 0.02
    config.schedule.name = "linear"
    config.test_time.views = "mirror"
    with config.unlocked():
        config.optimizer.groups.others = default.get_group(".*(scale|bias)|head/kernel")
    others = config.optimizer.groups.others
    others.name = "sgd"
    others.momentum = config.optimizer.momentum
    others.nesterov = config.optimizer.nesterov
    others.weight_decay = 5e-4
