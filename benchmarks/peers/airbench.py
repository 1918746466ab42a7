"""The worker of a speed record's script in PyTorch, airbench94_muon.py, which is fetched apart.

    git clone https://github.com/KellerJordan/cifar10-airbench

Its arguments are the script and the folder with the images (`benchmarks.speedrun` writes them).
The script is run unchanged: its own net, compilation, loop and clock.
"""

import os
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.peers import protocol

FILES = {"train": "train.pt", "test": "test.pt"}


def stand_in() -> types.ModuleType:
    """Returns what the script uses of torchvision, for where that is missing."""

    class Normalize:
        def __init__(self, mean: torch.Tensor, std: torch.Tensor):
            self.mean, self.std = mean.view(-1, 1, 1), std.view(-1, 1, 1)

        def __call__(self, images: torch.Tensor) -> torch.Tensor:
            mean, std = self.mean.to(images), self.std.to(images)
            return (images - mean) / std

    module, transforms = types.ModuleType("torchvision"), types.ModuleType("torchvision.transforms")
    transforms.Normalize = Normalize  # type: ignore[attr-defined]
    module.transforms = transforms  # type: ignore[attr-defined]
    sys.modules["torchvision.transforms"] = transforms
    return module


def load(script: Path) -> dict[str, Any]:
    """Returns the script's names; it reads its own source and must not train yet."""
    try:
        import torchvision  # noqa: F401
    except ImportError:
        sys.modules["torchvision"] = stand_in()
    names: dict[str, Any] = {"__name__": "airbench", "__file__": str(script)}
    sys.argv[0] = str(script)
    exec(compile(script.read_text(), str(script), "exec"), names)
    return names


def write_images(folder: Path) -> None:
    """Writes the images in the form that the script reads, from the .npy files in the folder."""
    folder.joinpath("cifar10").mkdir(exist_ok=True)
    for split, file in FILES.items():
        arrays = {
            kind: torch.from_numpy(np.load(folder / f"{split}_{kind}.npy", allow_pickle=False))
            for kind in ("images", "labels")
        }
        arrays["labels"] = arrays["labels"].long()
        torch.save(arrays | {"classes": list("0123456789")}, folder / "cifar10" / file)


def serve(script: Path, folder: Path) -> None:
    """Answers "prepare" (compiles and runs once) and "run" (a run and what its own clock says)."""
    write_images(folder)
    os.chdir(folder)  # it looks for cifar10/ there
    names = load(script)
    seconds: list[float] = []
    names["print_training_details"] = lambda variables, is_final_entry: seconds.append(
        variables["time_seconds"]
    )
    made: dict[str, Any] = {}

    def prepare() -> None:
        model = names["CifarNet"]().cuda().to(memory_format=torch.channels_last)
        model.compile(mode="max-autotune")
        made["model"] = model
        names["main"]("warmup", model)

    def run(number: int) -> dict[str, float]:
        accuracy = names["main"](number, made["model"])
        return {"accuracy": accuracy, "seconds": seconds[-1]}

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    versions = {"torch": torch.__version__, "device": device}
    protocol.serve({"prepare": prepare, "run": run}, versions)


if __name__ == "__main__":
    serve(Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve())
