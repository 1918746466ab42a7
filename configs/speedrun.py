"""The CIFAR-10 speed record's recipe in JAX: `speedrun.py` aims at 94 %, `speedrun.py:95` and
`speedrun.py:96` at 95 and 96 % with wider networks, more epochs and more augmentation.

Jordan, "airbench94_muon", 2024: a network that starts with whitened patches and identities, Muon
for the convolutions, SGD for the rest, alternating flips, mirrored and shifted views at test time.
The original sums the loss over the batch. Here it is the mean, so SGD's learning rates are the
original ones times the batch size; Muon's steps do not depend on the loss's scale. All learning
rates are for BATCH_SIZE. The stem's biases start at zero, the original's at random (PyTorch's
default).
"""

from ml_collections import ConfigDict

from configs import default

BATCH_SIZE = 2000
# SGD's learning rates for a sum over the batch, and their product with the weight decay.
BIAS_RATE, HEAD_RATE, DECAY = 0.053, 0.67, 2e-6


def get_config(variant: str = "94") -> ConfigDict:
    """Returns the recipe for 94, "95" or "96" percent."""
    if variant not in ("94", "95", "96"):
        raise ValueError(f"configs/speedrun.py has no variant {variant!r}; there are 94, 95 and 96")
    config = default.get_config()
    config.num_epochs = {"94": 8.0, "95": 16.0, "96": 40.0}[variant]
    config.batch_size = BATCH_SIZE
    config.eval_batch_size = BATCH_SIZE
    config.augment.alternating_flip = True
    config.augment.crop_padding = 4 if variant == "96" else 2
    config.augment.cutout = 12 if variant == "96" else 0
    config.loss.label_smoothing = 0.2
    config.schedule.name = "linear"
    config.test_time.views = "mirror_shift"
    config.optimizer.name = "muon"
    config.optimizer.learning_rate = 0.24
    config.optimizer.momentum = 0.6
    config.optimizer.nesterov = True
    features = {"94": (64, 256, 256), "95": (128, 384, 384), "96": (128, 512, 512)}[variant]
    with config.unlocked():
        config.model = ConfigDict({"name": "speedrun", "group_features": features})
        config.model.group_convs = 3 if variant == "96" else 2
        config.optimizer.groups.stem_kernel = default.get_group("stem/kernel")
        config.optimizer.groups.stem_bias = get_sgd_group("stem/bias", BIAS_RATE)
        config.optimizer.groups.norm_biases = get_sgd_group("group_.*/bias", BIAS_RATE)
        config.optimizer.groups.head = get_sgd_group("head/kernel", HEAD_RATE)
    config.optimizer.groups.stem_kernel.name = "frozen"
    config.optimizer.groups.stem_bias.num_epochs = 3.0
    return config


def get_sgd_group(params: str, rate: float) -> ConfigDict:
    """Returns a group with Nesterov momentum and L2 decay; `rate` is for a sum over the batch."""
    group = default.get_group(params)
    group.name = "sgd"
    group.learning_rate = rate * BATCH_SIZE
    group.momentum = 0.85
    group.nesterov = True
    group.weight_decay = DECAY / rate
    group.decay_norm_and_bias = True
    return group
