"""A measured speed, for tests of the benchmarks and their tables."""

from typing import Any


def rate_row(framework: str, rate: float, **changes: Any) -> dict[str, Any]:
    """Returns the row of a framework, in images per second."""
    row = {"model": "vgg_bn", "batch_size": 128, "what": "train", "framework": framework}
    return row | {"images_per_second": rate, "rounds": [rate - 10, rate, rate + 10]} | changes
