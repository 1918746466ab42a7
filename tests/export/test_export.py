"""Exported files answer as the model does, and one that does not is refused."""

import re

import numpy as np
import pytest

import cifar_jax
from cifar_jax.errors import UserError
from cifar_jax.evaluation import calibration
from cifar_jax.export import export
from cifar_jax.runs import weights
from tests import program, sample_run


def test_safetensors_have_the_bits_of_the_run(run):
    code, out, err = program.run_here("--mode=export", f"--workdir={run}", "--formats=safetensors")
    assert (code, err) == (0, "")
    assert re.search(r"safetensors  model\.safetensors +0\.\d\d +360 +0 +\d ", out)
    folder = run / "export"
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "model.safetensors"]
    before, after = (cifar_jax.load(path) for path in (run, folder / "model.safetensors"))
    images = sample_run.images()
    np.testing.assert_array_equal(before.predict_logits(images, 4), after.predict_logits(images, 4))
    assert (after.config.ema_decay, after.step, after.class_names[3]) == (0.5, 3, "3")
    card = (folder / "README.md").read_text()
    assert card.startswith("---\nlicense: apache-2.0\n")
    assert "metrics: [{type: accuracy, value: 0.0611}]" in card
    assert "**6.11 %**, 22 of 360 images (95 % interval 4.07 % to 9.08 %" in card


def test_an_exported_file_is_evaluated_like_the_run(run):
    program.run_here("--mode=export", f"--workdir={run}", "--formats=safetensors")
    file = run / "export" / "model.safetensors"
    code, out, err = program.run_here("--mode=evaluate", f"--workdir={file}")
    assert (code, err) == (0, "")
    assert "checkpoint of step 3: test accuracy 6.11% (22 of 360)" in out


def test_an_exported_model_says_what_its_temperature_was_fitted_on(run, tmp_path):
    calibration.save_temperatures(run, 3, [1.25], "test[:50%]", 180)
    code, out, err = program.run_here("--mode=export", f"--workdir={run}", "--formats=safetensors")
    assert (code, err) == (0, "")
    words = "temperature 1.250 (fitted on the test[:50%] split)"
    assert f"export: the checkpoint of step 3, {words}; differ: " in out
    folder = run / "export"
    assert (
        f"The probabilities have the {words}: the logits are" in (folder / "README.md").read_text()
    )
    file = folder / "model.safetensors"
    assert cifar_jax.load(file).fitted_on == "test[:50%]"
    # A file that was exported once more, and one from before this was kept.
    again = tmp_path / "again"
    export.export_model(file, ["safetensors"], again)
    variables, about = weights.read_weights(again / "model.safetensors")
    assert (about["temperature"], about["fitted_on"]) == (1.25, "test[:50%]")
    del about["fitted_on"]
    weights.write_weights(file, variables, about)
    model = cifar_jax.load(file)
    assert (model.temperature, model.fitted_on) == (1.25, "")


@pytest.mark.parametrize("change", ["answer", "probability", "nan"])
def test_a_file_that_answers_otherwise_is_refused(run, monkeypatch, change):
    kind = export.FORMATS["safetensors"]

    def open_wrongly(path):
        answer = kind.open(path)

        def changed(images):
            logits, probabilities = answer(images)
            if change == "answer":
                logits[5, logits[5].argmin()] = 99
            else:
                probabilities[7, 2] = np.nan if change == "nan" else probabilities[7, 2] + 0.002
            return logits, probabilities

        return changed

    monkeypatch.setitem(export.FORMATS, "safetensors", kind._replace(open=open_wrongly))
    with pytest.raises(UserError, match=r"was not exported: [01] of 360 answers diff") as caught:
        export.export_model(run, ["safetensors"])
    assert caught.value.exit_code == 1
    assert [path.name for path in (run / "export").iterdir()] == ["model.safetensors.unchecked"]


def test_without_the_data_the_check_takes_random_images(run, monkeypatch, caplog):
    def fail(*arguments):
        raise UserError("no data here")

    monkeypatch.setattr("cifar_jax.data.datasets.load_dataset", fail)
    export.export_model(run, ["safetensors"])
    assert "checked on random images, without scores: no data here" in caplog.text
    assert "accuracy, value" not in (run / "export" / "README.md").read_text()
    with pytest.raises(UserError, match="no data here"):
        export.export_model(run, ["safetensors"], data_dir="elsewhere")


def test_a_missing_library_is_named_with_the_extra(run, monkeypatch):
    kind = export.FORMATS["safetensors"]._replace(libraries=("no_such_library",))
    monkeypatch.setitem(export.FORMATS, "safetensors", kind)
    with pytest.raises(UserError, match=r"needs no_such_library: install .* '\.\[export\]'"):
        export.export_model(run, ["safetensors"])
    assert not (run / "export").exists()
