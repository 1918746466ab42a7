"""The systems that are reproduced: what each reported, and the tables that compare ours with it."""

import re
import statistics
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from results.markdown import short_commit


class System(NamedTuple):
    """A published system, with the test set figures that its own page gives.

    Attributes:
      words: its name.
      accuracy: in percent; None: not given.
      loss: the cross-entropy in nats; None: not given.
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
    "simple_cnn_25": System("The same, longer", epochs=25),
    "simple_cnn_modern": System("The same, augmented"),
    # Its page leaves the figure blank; these are those of the plain model on the ResNet's page.
    "bn_cnn": System("BN CNN (Keras)", 81.33, 0.5822, None),
    "vgg_bn": _VGG,
    "vgg_bn_augment": _VGG._replace(words="The same, augmented"),
    "resnet_20": System("ResNet (Keras)", 90.35, 0.3836, 130),
    "resnet_18": System("ResNet-18"),
    # The mean of 200 runs.
    "speedrun": System("Speed record (airbench94_muon, PyTorch)", 94.01, None, 8),
}

SUMMARY_HEADER = ("system", "reported", "here", "epochs", "time", "command")
HEADER = (
    *("system", "reported (loss)", "epochs there", "command", "accuracy here", "loss here"),
    *("epochs here", "seeds", "time", "hardware", "commit"),
)
# Overrides that change neither the training nor its result.
_WITHOUT_EFFECT = ("checkpoint.", "log.")


def summary_rows(results: Iterable[Mapping[str, Any]]) -> list[list[str]]:
    """Returns a row of `SUMMARY_HEADER` for each result, in the order of `SYSTEMS`.

    Args:
      results: contents of `results/NAME.json`; those of no system come last.
    """
    return [_summary_row(result) for result in _sort(results)]


def rows(results: Iterable[Mapping[str, Any]]) -> list[list[str]]:
    """Returns a row of `HEADER` for each result, in the order of `SYSTEMS`.

    Args:
      results: contents of `results/NAME.json`; those of no system come last.
    """
    return [_row(result) for result in _sort(results)]


def command(config: Mapping[str, Any], without: tuple[str, ...] = ()) -> str:
    """Returns the command of a result, without `python main.py --config=` where it starts so.

    Args:
      config: the result's `config`.
      without: beginnings of the names of overrides to leave out.
    """
    if "module" in config:
        return f"python -m {config['module']} --dataset={config['dataset']}"
    overrides = (
        f" --config.{field}={value}"
        for field, value in config["overrides"].items()
        if not field.startswith(without)
    )
    return config["file"] + "".join(overrides)


def _sort(results: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    order = {name: place for place, name in enumerate(SYSTEMS)}
    return sorted(results, key=lambda result: order.get(result["name"], len(order)))


def _summary_row(result: Mapping[str, Any]) -> list[str]:
    system = SYSTEMS.get(result["name"], System(""))
    reported = "" if system.accuracy is None else f"{system.accuracy:.2f} %"
    if reported and system.epochs is not None:
        reported += f" in {system.epochs} epochs"
    gpu = re.search(r"NVIDIA (\w+)", result["hardware"])
    return [
        system.words,
        reported,
        _accuracy(result),
        f"{result['num_epochs']:g}",
        _time(result) + (f" ({gpu[1]})" if gpu else ""),
        f"`{command(result['config'], _WITHOUT_EFFECT)}`",
    ]


def _row(result: Mapping[str, Any]) -> list[str]:
    system = SYSTEMS.get(result["name"], System(""))
    reported = "" if system.accuracy is None else f"{system.accuracy:.2f} %"
    if system.loss is not None:
        reported += f" ({system.loss:.4f})"
    return [
        system.words,
        reported,
        "" if system.epochs is None else str(system.epochs),
        f"`{command(result['config'])}`",
        _accuracy(result),
        _mean([seed["test_loss"] for seed in result["seeds"]], 4),
        f"{result['num_epochs']:g}",
        str(len(result["seeds"])),
        _time(result),
        result["hardware"],
        short_commit(result),
    ]


def _accuracy(result: Mapping[str, Any]) -> str:
    return f"**{_mean([100 * seed['test_accuracy'] for seed in result['seeds']], 2)} %**"


def _time(result: Mapping[str, Any]) -> str:
    """The time of the fastest seed: whatever else the machine does can only add to it."""
    times = [seed.get("wall_seconds", result["wall_seconds"]) for seed in result["seeds"]]
    return f"{min(times) / 60:.1f} min"


def _mean(values: list[float], digits: int) -> str:
    """The mean, and with several values their sample standard deviation."""
    text = f"{statistics.fmean(values):.{digits}f}"
    return f"{text} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else text
