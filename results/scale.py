"""The tables of many devices, of many seeds and of the speed records."""

import statistics
from typing import Any

from cifar_jax.evaluation.scores import summarize
from results.markdown import markdown, origin, short_commit


def scaling(result: dict[str, Any]) -> str:
    """Results, exchanges and speed of a training on several devices; a model of larger machines."""
    text = ""
    if rows := result.get("correctness"):
        header = ["devices", "processes", "largest difference of a parameter", "correct images"]
        text += markdown(
            header,
            [
                [
                    str(row["devices"]),
                    str(row["processes"]),
                    f"{row['difference']:.1e}" if row["difference"] else "0",
                    f"{row['num_correct']} of {row['num_images']}",
                ]
                for row in rows
            ],
        )
    if rows := result.get("exchanges"):
        header = ["config", "gradients", "BatchNorm's sums", "in the program", "exchanges"]
        text += f"\nBytes exchanged per step on {rows[0]['devices']} devices:\n\n" + markdown(
            header,
            [
                [
                    f"`{row['config']}`",
                    *(f"{row['expected'][name]:,}" for name in ("gradients", "batch_norm")),
                    f"{row['bytes']:,}",
                    ", ".join(f"{n} {kind}" for kind, n in row["exchanges"].items()),
                ]
                for row in rows
            ],
        )
    if rows := result.get("speed"):
        header = ["speed", "devices", "processes", "batch", "images per second"]
        rates: dict[tuple[str, ...], list[float]] = {}
        for row in rows:
            cell = (row["kind"], *(str(row[k]) for k in ("devices", "processes", "batch_size")))
            rates.setdefault(cell, []).append(row["images_per_second"])
        text += "\n" + markdown(
            header, [[*cell, f"{statistics.median(each):,.0f}"] for cell, each in rates.items()]
        )
        text += (
            "\nStrong: one batch, shared by the devices; weak: one batch per device. This is the "
            "speed of a small network (`benchmarks/small.py`), whose steps take milliseconds: with "
            "so little to compute on two cores, an exchange costs more time than a second device "
            "saves.\n"
        )
    if rows := result.get("model"):
        header = ["model of", "machine", "computation", "exchange", "efficiency", "least batch"]
        text += "\n" + markdown(
            header,
            [
                [
                    f"`{row['config']}`",
                    row["machine"],
                    *(f"{1e3 * row[f'{part}_seconds']:.2f} ms" for part in ("compute", "exchange")),
                    f"{row['efficiency']:.0%}",
                    str(row["least_batch_of_a_device"]),
                ]
                for row in rows
            ],
        )
    return text + f"\n{origin(result)} The machines of the last table were not at hand.\n"


def seeds(result: dict[str, Any]) -> str:
    """Several runs in one program or one alone; many steps per call or one."""

    def rate(values: list[float]) -> str:
        return f"{statistics.median(values):,.0f} ({min(values):,.0f} to {max(values):,.0f})"

    rows = []
    for row in result["seeds"]:
        rates = row["images_per_second"]
        alone = max((x for way, x in rates.items() if "alone" in way), key=statistics.median)
        cells = [rate(alone)]
        for way in ("one after another", "at once"):
            times = row["num_seeds"] * statistics.median(alone) / statistics.median(rates[way])
            cells.append(f"{rate(rates[way])}: **{times:.2f}**")
        rows.append([row["model"], str(row["num_seeds"]), *cells])
    header = ["model", "seeds", "one run alone", "seeds one after another", "seeds at once"]
    text = markdown(header, rows) + (
        "\nImages per second over all seeds: the median of several rounds, in brackets the "
        "slowest and the fastest. In bold: the time that all seeds take, as a multiple of one run "
        "alone with the number of devices that is best for it.\n\n"
    )
    rows = []
    for row in result["calls"]:
        rates = row["images_per_second"]
        scan, cells = statistics.median(rates["scan"]), []
        for way in ("calls", "steps"):
            times = scan / statistics.median(rates[way])
            cells.append(f"{rate(rates[way])}: **{times:.2f}x**, {row['difference'][way]:.1e}")
        rows.append([row["model"], str(row["steps"]), rate(rates["scan"]), *cells])
    header = [
        "model",
        "steps",
        "many steps per call",
        "one step per call",
        "a step without the loop",
    ]
    return (
        text
        + markdown(header, rows)
        + (
            "\nImages per second. In bold: how many times as fast the call of many steps is; then "
            "the norm of the difference of the final parameters, divided by their norm. "
            f"{origin(result, result['devices'])}\n"
        )
    )


def speedrun(result: dict[str, Any]) -> str:
    """Accuracy and time of runs by the rules of the speed records; images per second."""
    rows, matrix_rate = [], result.get("matrix_rate")
    for name, row in result["runs"].items():
        for words, each in ((f"`{name}`", row["seeds"]), ("the record in PyTorch", row["rival"])):
            if not each:
                continue
            mean, std, interval = summarize([one["accuracy"] for one in each])
            seconds = statistics.median(one["seconds"] for one in each)
            accuracy = f"{mean:.2%}"
            if std is not None and interval is not None:
                accuracy += f" ± {std:.2%} ({interval[0]:.2%} to {interval[1]:.2%})"
            cells = [words, f"{row['epochs']:g}", str(len(each)), accuracy, f"{seconds:.2f} s"]
            own = each is row["seeds"]
            share = row["flops"] / seconds / matrix_rate if matrix_rate else None
            share_text = "" if share is None else f"{share:.0%}"
            cells += [f"{row['flops'] / 1e15:.2f}", share_text] if own else ["", ""]
            compiled = row.get("compile_seconds") if own else None
            cells.append("" if compiled is None else f"{compiled:.1f} s")
            rows.append(cells)
    header = ["config", "epochs", "seeds", "accuracy", "seconds", "PFLOP", "of the matrix rate"]
    text = markdown([*header, "compilation"], rows)
    text += (
        "\nAccuracy: mean, standard deviation and 95 % interval of the mean, with test-time "
        "augmentation. Seconds: the median run, evaluation included, without reading the data and "
        "compiling."
    )
    if matrix_rate:
        rate_text = f"{matrix_rate / 1e12:.3g} TFLOP/s"
        text += f" The matrix rate is that of large matrix products on this device, {rate_text}."
    text += "\n"
    for name, row in result.get("commands", {}).items():
        text += (
            f"\nThe whole command with `{name}`, nothing compiled before: "
            f"{row['seconds']:.1f} s, {row['accuracy']:.2%}.\n"
        )
    if result["throughput"]:
        rows = [
            [f"`{name}`", str(row["batch_size"]), f"{statistics.median(rates):,.0f}"]
            for name, row in result["throughput"].items()
            if (rates := row["images_per_second"])
        ]
        header = ["training in bfloat16", "batch", "images per second"]
        text += "\n" + markdown(header, rows)
    return text + f"\n{origin(result, result['devices'])}\n"


def gpu_ahead(result: dict[str, Any]) -> str:
    """Kernels and bytes of a step, of the whole and of the network."""
    rows = [
        [
            *(f"`{row['config']}`", str(row["batch_size"]), row["dtype"]),
            *(str(row["kernels"]), f"{row['num_bytes'] / 1e9:.2f}"),
            *(str(row["network_kernels"]), f"{row['network_bytes'] / 1e9:.2f}"),
        ]
        for row in result["rows"].values()
    ]
    header = ["config", "batch", "type", "kernels", "GB", "network's kernels", "network's GB"]
    commits = sorted({short_commit(row) for row in result["rows"].values()})
    versions = sorted({row["versions"]["jax"] for row in result["rows"].values()})
    return markdown(header, rows) + (
        f"\nCounted for one H100 with jax {', '.join(versions)}, commit {', '.join(commits)}.\n"
    )
