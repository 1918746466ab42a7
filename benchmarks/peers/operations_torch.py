"""The worker that times one convolution at a time in PyTorch, channels last."""

import time

import torch
from torch.nn import functional as F

from benchmarks.peers import protocol


def measure(what: str, size: int, channels: int, features: int, repeats: int) -> float:
    """Returns the seconds that an operation takes; see `operations.py`."""
    if what == "matrix product":
        square = torch.randn(size, size)
        run = lambda: square @ square  # noqa: E731
    else:
        last = torch.channels_last
        images = torch.randn(64, channels, size, size).to(memory_format=last)
        kernel = torch.randn(features, channels, 3, 3).to(memory_format=last)
        gradient = torch.randn(64, features, size, size).to(memory_format=last)
        wanted = [what == "image gradient", what == "kernel gradient", False]

        def run():
            if what == "forward":
                return F.conv2d(images, kernel, padding=1)
            return torch.ops.aten.convolution_backward(
                gradient, images, kernel, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, wanted
            )

    with torch.inference_mode():
        run()
        begun = time.perf_counter()
        for _ in range(repeats):
            run()
        return (time.perf_counter() - begun) / repeats


if __name__ == "__main__":
    torch.set_num_threads(1)
    protocol.serve({"measure": measure}, {"torch": torch.__version__})
