"""ResNets for CIFAR: `resnet.py` is ResNet-18 for accelerators, `resnet.py:20` (or 32, 44, 56) the
small ones of He et al., which a CPU can train, `resnet.py:wrn-28-10` a wide one."""

import re

from ml_collections import ConfigDict

from configs import default

DEPTHS = (18, 20, 32, 34, 44, 56)


def get_config(variant: str = "18") -> ConfigDict:
    """Returns the recipe of a depth, such as "20", or of a wide ResNet, "wrn-DEPTH-WIDTH"."""
    config = default.get_config()
    config.augment.flip = True
    config.augment.crop_padding = 4
    config.optimizer.name = "sgd"
    config.optimizer.learning_rate = 0.1
    config.optimizer.momentum = 0.9
    config.optimizer.nesterov = True
    config.optimizer.weight_decay = 5e-4
    config.schedule.name = "cosine"
    config.schedule.warmup_epochs = 1.0
    wide = re.fullmatch(r"wrn-(\d+)-(\d+)", variant)
    if wide:
        depth, width = map(int, wide.groups())
        model = {"name": "wide_resnet", "depth": depth, "widen_factor": width, "dropout_rate": 0.0}
        config.num_epochs = 200.0
    elif variant.isdecimal() and int(variant) in DEPTHS:
        model = {"name": "resnet", "depth": int(variant)}
        config.num_epochs = 200.0 if variant in ("18", "34") else 40.0
    else:
        raise ValueError(
            f"configs/resnet.py has no variant {variant!r}; there are "
            f"{', '.join(map(str, DEPTHS))} and wrn-DEPTH-WIDTH, such as wrn-28-10"
        )
    if variant in ("18", "34") or wide:
        config.dtype = "bfloat16"
    if variant in ("18", "34"):
        config.augment.cutout = 12
        config.loss.label_smoothing = 0.1
    with config.unlocked():
        config.model = ConfigDict(model)
    return config
