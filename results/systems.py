"""The systems that are reproduced: what each reported, and the table that puts ours beside it."""

import statistics
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple


class System(NamedTuple):
    """A published system: its figures are of the test set, as its own page gives them.

    Attributes:
      words: its name.
      accuracy: in percent; None: not given.
      loss: the cross-entropy; None: not given.
      epochs: of its training; None: not given.
    """

    words: str
    accuracy: float | None = None
    loss: float | None = None
    epochs: int | None = None


_SIMPLE = System("Simple CNN (Keras)", 68.04, 0.93, 10)
_VGG = System("VGG-like (Keras)", 83.0, None, 150)
# By the name of our result, in the order of the table.
SYSTEMS = {
    "numpy_mlp": System("NumPy network"),
    "mlp": System("The same in Flax"),
    "lenet": System("LeNet-like (PyTorch)"),
    "simple_cnn": _SIMPLE,
    "simple_cnn_25": _SIMPLE._replace(
        words="The same, longer", accuracy=None, loss=None, epochs=25
    ),
    "simple_cnn_modern": System("The same, augmented"),
    # Its own figure is left blank; these are those of the plain model that came before a ResNet.
    "bn_cnn": System("BN CNN (Keras)", 81.33, 0.5822, None),
    "vgg_bn": _VGG,
    "vgg_bn_augment": _VGG._replace(words="The same, augmented"),
    "resnet_20": System("ResNet (Keras)", 90.35, 0.3836, 130),
    "resnet_18": System("ResNet-18"),
    # The mean of 200 runs.
    "speedrun": System("Speed record (airbench94_muon, PyTorch)", 94.01, None, 8),
}

HEADER = (
    *("system", "reported (loss)", "epochs there", "command", "accuracy here", "loss here"),
    *("epochs here", "seeds", "time", "hardware"),
)


def rows(results: Iterable[Mapping[str, Any]]) -> list[list[str]]:
    """Returns a row for each result, those of the systems first, in their order.

    Args:
      results: contents of `results/NAME.json`.
    """
    order = {name: place for place, name in enumerate(SYSTEMS)}
    ordered = sorted(results, key=lambda result: order.get(result["name"], len(order)))
    return [_row(result) for result in ordered]


def command(config: Mapping[str, Any]) -> str:
    """Returns what was run, without `python main.py --config=` where that was it."""
    if "module" in config:
        return f"python -m {config['module']} --dataset={config['dataset']}"
    overrides = (f" --config.{field}={value}" for field, value in config["overrides"].items())
    return config["file"] + "".join(overrides)


def _row(result: Mapping[str, Any]) -> list[str]:
    system = SYSTEMS.get(result["name"], System(""))
    reported = "" if system.accuracy is None else f"{system.accuracy:.2f} %"
    if system.loss is not None:
        reported += f" ({system.loss:.4f})"
    accuracies, losses = (
        [seed[key] for seed in result["seeds"]] for key in ("test_accuracy", "test_loss")
    )
    # What else a machine has to do only adds.
    times = [seed.get("wall_seconds", result["wall_seconds"]) for seed in result["seeds"]]
    return [
        system.words,
        reported,
        "" if system.epochs is None else str(system.epochs),
        f"`{command(result['config'])}`",
        f"**{_mean([100 * value for value in accuracies], 2)} %**",
        _mean(losses, 4),
        f"{result['num_epochs']:g}",
        str(len(result["seeds"])),
        f"{min(times) / 60:.1f} min",
        result["hardware"],
    ]


def _mean(values: list[float], digits: int) -> str:
    """The mean and, of several, the standard deviation of the sample."""
    text = f"{statistics.fmean(values):.{digits}f}"
    return f"{text} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else text
