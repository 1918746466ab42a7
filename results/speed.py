"""Speed on a CPU: train steps, single operations, the start of a run, installing and testing."""

import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from results.markdown import markdown, origin, place

# The columns beside this project: (words, the framework's names, of which the fastest counts).
PEERS = (
    ("stock JAX", ("jax",)),
    ("Keras", ("keras",)),
    ("PyTorch, its best", ("pytorch", "pytorch_compiled")),
)
MODEL_WORDS = {"resnet": "resnet-20", "speedrun": "speedrun net"}


def step_time(result: dict[str, Any]) -> str:
    """Images per second, and how many times as fast as the others that is."""
    size = _shown_batch(result)
    header = ["model", "batch", "this project", *[words for words, _ in PEERS]]
    text = ""
    for kind, title in (("train", "Training"), ("infer", "Inference")):
        rows = [
            [MODEL_WORDS.get(model, model), str(size), *_rate_cells(by_framework)]
            for model, by_framework in _rates(result, kind).items()
        ]
        text += f"{title}, images per second:\n\n" + markdown(header, rows) + "\n"
    shares = [
        100 * row["share_of_step"]
        for row in result.get("input_and_augmentation", ())
        if row["batch_size"] == size
    ]
    if shares:
        text += (
            "Gathering, mirroring, cropping and normalizing a batch takes "
            f"{min(shares):.1f} to {max(shares):.1f} % of a step. "
        )
    return text + (
        "Each cell: the median of several rounds, in brackets the slowest and the fastest; in bold "
        "the speed of this project over that of the other. "
        f"{origin(result)} {_describe_versions(result)}\n"
    )


def speed(narrow: dict[str, Any], wide: dict[str, Any]) -> str:
    """The short table: training on a processor with AVX2 and on one with AVX-512.

    Args:
      narrow: the result of `benchmarks.step_time` with AVX2.
      wide: its result with AVX-512.
    """
    size = _shown_batch(narrow)
    both = [_rates(result, "train") for result in (narrow, wide)]
    rows = []
    for model in both[0]:
        found = [rates.get(model) for rates in both]
        ours = [f"{row['ours']['images_per_second']:,.0f}" if row else "not run" for row in found]
        ratios = [
            " / ".join(_ratio(row, names) if row else "not run" for row in found)
            for _, names in PEERS
        ]
        rows.append([MODEL_WORDS.get(model, model), " / ".join(ours), *ratios])
    header = [
        f"training, batch {size}",
        "images/s",
        *(f"over {words.partition(',')[0]}" for words, _ in PEERS),
    ]
    return markdown(header, rows) + (
        "\nAbove 1x, this project is faster. "
        f"Before the slash, AVX2: {place(narrow)}. After it, AVX-512: {place(wide)}.\n"
    )


def _shown_batch(result: dict[str, Any]) -> int:
    """The batch size that the tables show: 128 if it was measured. The file has them all."""
    return max((row["batch_size"] for row in result["measurements"]), key=lambda size: size == 128)


def _rates(result: dict[str, Any], kind: str) -> dict[str, dict[str, dict[str, Any]]]:
    """Returns model -> framework -> measurement, of "train" or "infer"."""
    size = _shown_batch(result)
    rates: dict[str, dict[str, dict[str, Any]]] = {}
    for row in result["measurements"]:
        if row["batch_size"] == size and row["what"] == kind:
            rates.setdefault(row["model"], {})[row["framework"]] = row
    return rates


def _fastest(rows: dict[str, Any], names: Sequence[str]) -> dict[str, Any] | None:
    found = [rows[name] for name in names if name in rows]
    return max(found, key=lambda row: row["images_per_second"]) if found else None


def _ratio(rows: dict[str, Any], names: Sequence[str]) -> str:
    best = _fastest(rows, names)
    if best is None:
        return "not run"
    return f"{rows['ours']['images_per_second'] / best['images_per_second']:.2f}x"


def _rate_cells(rows: dict[str, Any]) -> list[str]:
    def describe(row: dict[str, Any]) -> str:
        return _describe_rounds(row["images_per_second"], row["rounds"])

    cells = [describe(rows["ours"])]
    for _, names in PEERS:
        best = _fastest(rows, names)
        if best is None:
            cells.append("not run")
            continue
        compiled = ", compiled" if best["framework"].endswith("_compiled") else ""
        cells.append(f"{describe(best)}{compiled}: **{_ratio(rows, names)}**")
    return cells


def _describe_rounds(middle: float, rounds: Iterable[float]) -> str:
    values = list(rounds)
    return f"{middle:,.0f} ({min(values):,.0f} to {max(values):,.0f})"


def _describe_versions(result: dict[str, Any]) -> str:
    versions = ", ".join(
        f"{words} {result['versions'][name][package]}"
        for words, name, package in (
            ("this project on jax", "ours", "jax"),
            ("stock jax", "jax", "jax"),
            ("Keras", "keras", "keras"),
            ("TensorFlow", "keras", "tensorflow"),
            ("PyTorch", "pytorch", "torch"),
        )
        if name in result["versions"]
    )
    return f"Versions: {versions}."


def operations(result: dict[str, Any]) -> str:
    """Milliseconds of single convolutions, and of the plain method at the matrix rate."""
    words = {"ours": "this project", "pytorch": "PyTorch"}
    names = [name for name in words if name in result["versions"]]
    rows = []
    for row in result["measurements"]:
        times = {name: statistics.median(row["milliseconds"][name]) for name in names}
        least = min(times.values())
        rows.append(
            [
                f"{row['size']}x{row['size']}, {row['channels']} to {row['features']}",
                row["what"],
                *(f"**{t:.1f}**" if t == least else f"{t:.1f}" for t in times.values()),
                f"{row['at_matrix_rate']:.1f}",
            ]
        )
    header = ["3x3 convolution", "of 64 images", *(words[name] for name in names), "matrix rate"]
    rates = ", ".join(
        f"{rate:.0f} by {words[name]}"
        for name, rate in result["matrix_gigaflops_per_second"].items()
    )
    return markdown(header, rows) + (
        "\nMilliseconds; matrix rate: the time that the multiplications of the plain method take "
        f"at the speed of products of 1024 x 1024 matrices, {rates} GFLOP/s. {origin(result)}\n"
    )


PHASES = {
    "python": "Python, and its restart with the C library's settings",
    "libraries": "imports of JAX, Flax, optax and Orbax",
    "package": "imports of this package and the rest",
    "data": "the data, from the cache",
    "compile": "compiling, or reading the compiled programs",
    "trace": "tracing, the first step, and all else",
}


def startup(result: dict[str, Any]) -> str:
    """Seconds to the first step, where they go, and the largest memory of a short training."""
    kinds = ("cold", "warm")
    rows = [["first step after", *(f"{result[f'{kind}_seconds']:.1f} s" for kind in kinds)]]
    rows += [
        [words, *(f"{result['phases'][kind][name]:.2f} s" for kind in kinds)]
        for name, words in PHASES.items()
    ]
    text = markdown(["simple_cnn", "cold compilation cache", "warm"], rows) + "\n"
    words = {"ours": "this project", "keras": "Keras on TensorFlow", "pytorch": "PyTorch"}
    sizes = result["resident_bytes"].items()
    text += markdown(["memory", ""], [[words[n], f"{size / 2**20:,.0f} MiB"] for n, size in sizes])
    return text + f"\n{origin(result)}\n"


def project(result: dict[str, Any]) -> str:
    """What the installation takes, and how long the fast tests run."""
    times = [f"{result[f'test_seconds_{name}'] / 60:.1f}" for name in ("first", "again")]
    return (
        f"The installation takes {result['install_seconds']:.0f} s and "
        f"{result['install_bytes'] / 1e9:.1f} GB. The fast tests take {times[0]} minutes, and "
        f"{times[1]} minutes once their programs are compiled. {origin(result)}\n"
    )
