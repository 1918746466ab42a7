"""The benchmark of exported files counts what the export has checked, and times both in turns."""

import json

import pytest

from benchmarks import exports
from cifar_jax.runs import weights


@pytest.mark.slow
def test_a_row_for_each_format(tmp_path, capsys):
    output = tmp_path / "found.json"
    flags = ["--turns=1", "--formats=safetensors", f"--output={output}"]
    assert exports.main(["pretrained:mlp", *flags]) == 0
    result = json.loads(output.read_text())
    (row,) = result["rows"]
    assert (row["model"], row["format"], row["num_different"]) == ("mlp", "safetensors", 0)
    # What the file's metadata say of it may be shorter or longer than that of the shipped one.
    size = (weights.SHIPPED / "mlp.safetensors").stat().st_size
    assert abs(row["num_bytes"] - size) < 5000
    assert row["num_images"] in (1000, 10_000)  # random ones, where MNIST is not at hand
    assert min(row["images_per_second"], row["images_per_second_here"]) > 0
    assert json.loads(capsys.readouterr().out.splitlines()[0]) == row


@pytest.mark.slow
def test_a_model_that_is_not_there_gets_one_line(capsys):
    assert exports.main(["pretrained:x"]) == 2
    assert capsys.readouterr().err.startswith("error: pretrained:x: no such model comes with")
