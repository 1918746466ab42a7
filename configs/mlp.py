"""The network with 500 and 50 sigmoid units on MNIST (418,060 parameters), which
`cifar_jax/numpy_mlp.py` implements by hand."""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    """Returns 30 epochs of Adam with a decaying learning rate."""
    config = default.get_config()
    config.data.name = "mnist"
    config.num_epochs = 30.0
    config.schedule.name = "cosine"
    # The products are so small that one device with several threads is 1.5 times as fast as two.
    config.num_cpu_devices = 1
    with config.unlocked():
        config.model = ConfigDict({"name": "mlp", "hidden_sizes": (500, 50)})
    return config
