"""Runs are collected into results, and results into the tables of README.md and docs/."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from cifar_jax.errors import UserError
from results import collect, scale, speed, systems, tables
from tests.rates import rate_row


def write_run(folder, seed, changes=None):
    folder.mkdir()
    config = {"seed": seed, "num_epochs": 2.0, "data": {"name": "digits", "data_dir": f"/d{seed}"}}
    result = {
        "config": config,
        "seed": seed,
        "num_epochs": 2.0,
        "test_accuracy": 0.9 + seed / 100,
        "test_loss": 0.3,
        "num_correct": 324,
        "num_images": 360,
        "wall_seconds": 10.0 + seed,
        "devices": "2 CPU devices",
        "environment": {
            "commit": "abc",
            "versions": {"jax": "0.10.2"},
            "processor": "Abacus 3000",
            "cores": 2,
            "host": "secret-host",
            "command": ["/secret/main.py", "--config=/secret/configs/resnet.py:20"],
        },
    }
    (folder / "result.json").write_text(json.dumps(result | (changes or {})))
    lines = [
        {"step": 2, "train_loss": 1.73456789},
        {"step": 5, "train_loss": 0.901234567, "seconds": 1.0},
        {"step": 10, "eval_loss": 0.5},
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_seeds_are_collected_into_one_result(tmp_path, capsys):
    folders = [write_run(tmp_path / f"run{seed}", seed) for seed in (2, 0, 1)]
    assert collect.main(["digits", *map(str, folders), f"--folder={tmp_path}"]) == 0
    assert "3 seeds, 91.00% +- 1.00%" in capsys.readouterr().out
    text = (tmp_path / "digits.json").read_text()
    assert "secret" not in text
    result = json.loads(text)
    assert result["test_accuracy"] == pytest.approx(0.91)
    assert result["test_accuracy_std"] == pytest.approx(0.01)
    assert result["test_loss_std"] == 0
    assert result["wall_seconds"] == pytest.approx(11)
    assert [row["seed"] for row in result["seeds"]] == [0, 1, 2]
    curve = result["seeds"][0]["curve"]
    assert curve == {
        "step": [5, 10],
        "train_loss": [1.23457, None],
        "seconds": [1.0, None],
        "eval_loss": [None, 0.5],
    }
    assert result["hardware"] == "2 CPU devices, 2 cores of Abacus 3000"
    assert result["config"]["file"] == "configs/resnet.py:20"
    assert (result["commit"], result["versions"]) == ("abc", {"jax": "0.10.2"})


def test_one_seed_has_no_deviation(tmp_path):
    result = collect.collect("digits", [write_run(tmp_path / "run", 4)])
    assert result["test_accuracy_std"] is None
    assert result["test_accuracy"] == pytest.approx(0.94)


def test_a_config_is_described_by_its_file_and_overrides():
    from cifar_jax.config import stored
    from configs import resnet

    config = stored.to_json(resnet.get_config("20"))
    config |= {"seed": 7, "num_epochs": 5.0, "init_from": "/home/me/runs/first"}
    config["data"]["data_dir"] = "/home/me/data"
    described = collect.describe_config(config, ["main.py", "--config", "configs/resnet.py:20"])
    assert described == {
        "file": "configs/resnet.py:20",
        "overrides": {"num_epochs": 5.0, "init_from": "first"},
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"config": {"seed": 1, "num_epochs": 3.0}}, "data.name is None"),
        ({"environment": {"commit": "def", "versions": {}}}, "commit is def"),
        ({"seed": 0}, "the same seed"),
    ],
)
def test_runs_that_differ_in_more_than_their_seed_are_refused(tmp_path, changes, message):
    folders = [write_run(tmp_path / "a", 0), write_run(tmp_path / "b", 1, changes)]
    with pytest.raises(UserError, match=message):
        collect.collect("digits", folders)


def test_seeds_trained_together_are_collected_too(tmp_path):
    each = [{"seed": seed, "test_accuracy": seed / 10, "test_loss": 1.0} for seed in (4, 5)]
    both = write_run(tmp_path / "both", 4, {"seeds": [{**x, "num_correct": 3} for x in each]})
    lines = [{"step": 5, "seed": seed, "train_loss": seed, "seconds": 1.0} for seed in (4, 5)]
    (both / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    result = collect.collect("digits", [both, write_run(tmp_path / "alone", 3)])
    assert [row["seed"] for row in result["seeds"]] == [3, 4, 5]
    assert [row["wall_seconds"] for row in result["seeds"]] == [13, 7, 7]
    assert result["seeds"][2]["curve"] == {"step": [5], "train_loss": [5], "seconds": [1.0]}
    values = [0.93, 0.4, 0.5]
    half = 4.302653 * np.std(values, ddof=1) / np.sqrt(3)
    mean = np.mean(values)
    assert result["test_accuracy_interval"] == pytest.approx([mean - half, mean + half])


def test_an_unfinished_run_is_named(tmp_path, capsys):
    assert collect.main(["digits", str(tmp_path), f"--folder={tmp_path}"]) == 2
    assert "result.json does not exist" in capsys.readouterr().err


PAGE = """# A project
<!-- table: bench_step_time -->
<!-- end -->
between
<!-- table: training_details -->
old
<!-- end -->
<!-- table: bench_startup -->
kept
<!-- end -->
"""


def step_time_result(rows, **fields):
    return {
        "measurements": rows,
        "hardware": "2 cores",
        "commit": "0123456789+",
        "versions": {"ours": {"jax": "0.10.2"}, "pytorch": {"torch": "2.13.0"}},
    } | fields


def test_installing_and_testing_is_a_sentence():
    seconds = {"install_seconds": 41.4, "test_seconds_first": 300.0, "test_seconds_again": 150.0}
    text = speed.project({"hardware": "2 cores", "install_bytes": 1_260_000_000, **seconds})
    words = "The installation takes 41 s and 1.3 GB. The fast tests take 5.0 minutes, and"
    assert text == f"{words} 2.5 minutes once their programs are compiled. Measured on 2 cores.\n"


def test_readme_and_docs_get_their_tables(tmp_path, capsys):
    rows = [rate_row("ours", 220.0), rate_row("pytorch", 200.0), rate_row("pytorch_compiled", 110)]
    (tmp_path / "bench_step_time.json").write_text(json.dumps(step_time_result(rows)))
    collect.main(["digits", str(write_run(tmp_path / "run", 0)), f"--folder={tmp_path}"])
    readme, page = tmp_path / "README.md", tmp_path / "docs" / "speed.md"
    page.parent.mkdir()
    readme.write_text("<!-- table: training -->\n<!-- end -->\n")
    page.write_text(PAGE)
    arguments = [f"--root={tmp_path}", f"--folder={tmp_path}"]
    assert tables.main([*arguments, "--check"]) == 1
    assert page.read_text() == PAGE
    words = capsys.readouterr().err.splitlines()
    assert [line.partition(" is out of date")[0] for line in words] == [str(readme), str(page)]
    assert tables.main(arguments) == 0
    assert tables.main([*arguments, "--check"]) == 0
    command = "`configs/resnet.py:20 --config.num_epochs=2.0"
    assert f"|  |  | **90.00 %** | 2 | 0.2 min | {command}" in readme.read_text()
    text = page.read_text()
    assert (
        "| vgg_bn | 128 | 220 (210 to 230) | not run | not run "
        "| 200 (190 to 210): **1.10x** |\n" in text
    )
    assert "Measured on 2 cores, commit 0123456+. Versions: this project on jax 0.10.2," in text
    assert f"|  |  |  | {command}" in text
    assert "| **90.00 %** | 0.3000 | 2 | 1 | 0.2 min | 2 CPU devices, 2 cores of Abacus" in text
    assert "\nold\n" not in text
    assert "\nbetween\n" in text
    assert "<!-- table: bench_startup -->\nkept\n<!-- end -->\n" in text


def system_results():
    """The results of a system with three seeds, of one with one, and of one that is unknown."""
    config = {
        "file": "configs/resnet.py:20",
        "overrides": {"num_epochs": 5.0, "log.report": False, "checkpoint.every_steps": 9},
    }
    module = {"module": "cifar_jax.numpy_mlp", "dataset": "mnist"}
    seeds = [{"test_accuracy": a, "test_loss": 0.3} for a in (0.90, 0.91, 0.92)]
    rest = {"num_epochs": 5.0, "wall_seconds": 90, "hardware": "2 cores", "commit": "abcdefgh"}
    return [
        {
            **{"name": name, "seeds": seeds[:1] if name == "unknown" else seeds},
            **{"config": module if name == "numpy_mlp" else config, **rest},
        }
        for name in ("unknown", "resnet_20", "numpy_mlp")
    ]


def test_a_system_is_beside_what_it_reported():
    numpy_mlp, resnet, unknown = systems.rows(system_results())
    command = "configs/resnet.py:20 --config.num_epochs=5.0 --config.log.report=False"
    assert resnet == [
        *("ResNet (Keras)", "90.35 % (0.3836)", "130"),
        f"`{command} --config.checkpoint.every_steps=9`",
        *("**91.00 ± 1.00 %**", "0.3000 ± 0.0000", "5", "3", "1.5 min", "2 cores", "abcdefg"),
    ]
    assert numpy_mlp[:4] == [
        "NumPy network",
        "",
        "",
        "`python -m cifar_jax.numpy_mlp --dataset=mnist`",
    ]
    assert unknown[:3] == ["", "", ""]
    assert unknown[4:6] == ["**90.00 %**", "0.3000"]


def test_the_short_table_leaves_out_what_does_not_change_the_training():
    results = system_results()
    results[1]["hardware"] = "1 NVIDIA H200 device, 16 cores"
    _, resnet, unknown = systems.summary_rows(results)
    assert resnet == [
        *("ResNet (Keras)", "90.35 % in 130 epochs", "**91.00 ± 1.00 %**", "5"),
        *("1.5 min (H200)", "`configs/resnet.py:20 --config.num_epochs=5.0`"),
    ]
    assert unknown[1:5] == ["", "**90.00 %**", "5", "1.5 min"]


def test_the_short_table_of_speed_shows_both_processors():
    narrow = [rate_row("ours", 200.0), rate_row("jax", 100.0), rate_row("pytorch", 100.0)]
    wide = [rate_row("ours", 600.0), rate_row("jax", 500.0), rate_row("pytorch", 500.0)]
    wide.append(rate_row("pytorch_compiled", 800.0))
    wide_result = step_time_result(wide, hardware="2 cores (AVX-512)", commit="fedcba9876")
    table = speed.speed(step_time_result(narrow), wide_result)
    assert "| vgg_bn | 200 / 600 | 2.00x / 1.20x | not run / not run | 2.00x / 0.75x |\n" in table
    assert "AVX2: 2 cores, commit 0123456+." in table
    assert "AVX-512: 2 cores (AVX-512), commit fedcba9.\n" in table


def test_compiled_pytorch_counts_where_it_is_the_best():
    rates = {"ours": 220.0, "pytorch": 200.0, "pytorch_compiled": 440.0}
    rows = [rate_row(name, rate) for name, rate in rates.items()]
    table = speed.step_time(step_time_result(rows))
    assert "440 (430 to 450), compiled: **0.50x**" in table


def test_the_table_of_the_seeds():
    rates = {"alone, one device": [90.0], "alone, all devices": [100.0]}
    rates |= {"one after another": [160.0], "at once": [40.0]}
    calls = {"scan": [110.0], "calls": [100.0], "steps": [55.0]}
    result = {
        "seeds": [{"model": "mlp", "num_seeds": 8, "images_per_second": rates}],
        "calls": [
            {
                **{"model": "mlp", "steps": 78, "images_per_second": calls},
                "difference": {"calls": 0.0, "steps": 1.5e-7},
            }
        ],
        **{"devices": "2 CPU devices", "hardware": "2 cores"},
    }
    table = scale.seeds(result)
    assert "| mlp | 8 | 100 (100 to 100) | 160 (160 to 160): **5.00** |" in table
    assert "**1.10x**, 0.0e+00 | 55 (55 to 55): **2.00x**, 1.5e-07 |" in table


def test_start_up_table():
    result = {
        "cold_seconds": 9.61,
        "warm_seconds": 3.5,
        "phases": {kind: dict.fromkeys(speed.PHASES, 0.5) for kind in ("cold", "warm")},
        "resident_bytes": {"ours": 2**30, "keras": 2**31},
        "hardware": "2 cores",
    }
    table = speed.startup(result)
    assert "| first step after | 9.6 s | 3.5 s |" in table
    assert "| imports of JAX, Flax, optax and Orbax | 0.50 s | 0.50 s |" in table
    assert "| Keras on TensorFlow | 2,048 MiB |" in table


def test_an_unknown_table_is_an_error(tmp_path, capsys):
    readme = tmp_path / "README.md"
    readme.write_text("<!-- table: nonsense -->\n<!-- end -->\n")
    assert tables.main([f"--root={tmp_path}", f"--folder={tmp_path}"]) == 2
    assert f"{readme}: there is no table 'nonsense'; there are training," in capsys.readouterr().err


def test_every_table_of_the_project_is_shown_and_up_to_date():
    assert tables.main(["--check"]) == 0
    pages = tables.find_pages(tables.FOLDER.parent)
    shown = {page.name: re.findall("<!-- table: (.*) -->", page.read_text()) for page in pages}
    assert shown["README.md"] == ["bench_project", "training", "speed"]
    every = [name for names in shown.values() for name in names]
    assert len(every) == len(set(every))
    for beginning in ("training_details", *tables.BENCHMARKS):
        assert any(name.startswith(beginning) for name in every), beginning


def test_results_name_no_machine():
    for path in Path(tables.FOLDER).glob("*.json"):
        text = path.read_text()
        assert '"host"' not in text, path
        assert "/home/" not in text, path


def test_the_table_of_exports():
    row = {"model": "mlp", "format": "onnx", "num_bytes": 1_677_388, "num_images": 10_000}
    row |= {"num_different": 0, "num_close": 12, "images_per_second": 6036.3}
    row |= {"images_per_second_here": 24_382.6}
    table = tables.exports({"rows": [row], "hardware": "2 cores", "commit": "0123456789"})
    assert "| mlp | onnx | 1.68 | 10,000 | 0 | 12 | 6,036 | 24,383 |\n" in table
    assert table.endswith("\nMeasured on 2 cores, commit 0123456.\n")


def test_the_table_of_what_is_counted_ahead():
    row = {"config": "resnet:18", "batch_size": 512, "kernels": 389, "num_bytes": 9_126_000_000}
    row |= {"network_kernels": 205, "network_bytes": 7_004_999_999, "dtype": "bfloat16"}
    rows = {"resnet:18, 512": row | {"versions": {"jax": "0.11.2"}, "commit": "0123456"}}
    table = tables.scale.gpu_ahead({"rows": rows})
    assert "| `resnet:18` | 512 | bfloat16 | 389 | 9.13 | 205 | 7.00 |\n" in table
    assert table.endswith("\nCounted for one H100 with jax 0.11.2, commit 0123456.\n")
