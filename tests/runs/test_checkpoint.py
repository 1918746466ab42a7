"""Checkpoints: what is kept, what counts as damage, how other models and formats are reported."""

import errno
import gc
import json
import os
import pickle
import random
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cifar_jax import files as files_lib
from cifar_jax.errors import UserError
from cifar_jax.parallel import devices
from cifar_jax.runs import manifest
from cifar_jax.runs.checkpoint import Checkpoints
from tests.faults import damages, stops

ROOT = Path(__file__).parents[2]


def assert_holds(checkpoints, step):
    restored = checkpoints.restore(step, damages.abstract_state())
    jax.tree.map(np.testing.assert_array_equal, restored, damages.small_state(step))


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A workdir with the checkpoints of the steps 1 and 2."""
    folder = tmp_path_factory.mktemp("sound") / "run"
    damages.save_small(folder, 1, 2)
    return folder


def test_the_last_two_and_the_best_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    accuracies = [0.5, 0.9, 0.7, 0.9, 0.6, 0.1, 0.2]
    for step, accuracy in enumerate(accuracies, start=1):
        metrics = {"eval_accuracy": accuracy}
        checkpoints.save(step, damages.small_state(step), {"note": step}, metrics)
    checkpoints.close()
    checkpoints = Checkpoints(tmp_path)
    # Of two that are equally good, the later one is the best.
    assert checkpoints.steps() == [4, 6, 7]
    assert (checkpoints.find("last"), checkpoints.find("best"), checkpoints.find("6")) == (7, 4, 6)
    assert checkpoints.meta(4) == {"note": 4, "metrics": {"eval_accuracy": 0.9}}
    for step in (4, 6, 7):
        assert_holds(checkpoints, step)
    checkpoints.save(8, damages.small_state(8), {}, {"eval_accuracy": 0.95})
    checkpoints.close()
    assert checkpoints.steps() == [7, 8]
    assert sorted(path.name for path in checkpoints.folder.iterdir()) == ["7", "8"]


def test_a_disk_that_does_not_answer_does_not_cost_the_best(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path)
    for step, accuracy in ((1, 0.9), (2, 0.1), (3, 0.2)):
        checkpoints.save(step, damages.small_state(step), {}, {"eval_accuracy": accuracy})
    checkpoints.wait()
    original = Path.read_bytes

    def read_bytes(path):
        if path.match("checkpoints/1/meta.json"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return original(path)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", read_bytes)
        assert checkpoints.is_best(0.5)
        checkpoints.save(4, damages.small_state(4), {}, {"eval_accuracy": 0.3})
        checkpoints.wait()
        assert (checkpoints.failure, checkpoints.steps()) == ("", [1, 2, 3, 4])
    assert not checkpoints.is_best(0.5)
    checkpoints.save(5, damages.small_state(5), {}, {"eval_accuracy": 0.3})
    checkpoints.close()
    assert (checkpoints.find("best"), checkpoints.steps()) == (1, [1, 4, 5])


def test_nothing_saved_nothing_found(tmp_path):
    reader = Checkpoints(tmp_path, writable=False)
    assert (reader.steps(), reader.find("last")) == ([], None)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UserError, match="no best checkpoint"):
        reader.find("best")
    for name in ("1", "-1", "../1", "", "²"):
        with pytest.raises(UserError, match="has no checkpoint"):
            reader.find(name)


def test_a_step_that_has_a_checkpoint_is_left_alone(sound, tmp_path):
    shutil.copytree(sound, tmp_path, dirs_exist_ok=True)
    (tmp_path / "checkpoints" / "003").mkdir()  # not the name of a step
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(2, damages.small_state(9), {})
    checkpoints.close()
    assert checkpoints.steps() == [1, 2]
    assert checkpoints.failure == ""
    assert_holds(checkpoints, 2)


def test_a_part_of_a_state_is_restored_on_the_mesh(sound):
    mesh = devices.make_mesh()
    wanted = jax.eval_shape(damages.small_state, 0)
    wanted = {"params": devices.abstract_arrays(mesh, wanted["params"])}
    restored = Checkpoints(sound, writable=False).restore(2, wanted)
    assert jax.tree.structure(restored) == jax.tree.structure(wanted)
    kernel = restored["params"]["kernel"]
    assert len(kernel.sharding.device_set) == jax.device_count() > 1
    np.testing.assert_array_equal(kernel, damages.small_state(2)["params"]["kernel"])


def test_saved_on_two_devices_restored_on_one(sound):
    program = (
        "import sys, jax, numpy as np; from tests.faults import damages\n"
        "from cifar_jax.runs.checkpoint import Checkpoints\n"
        "state = Checkpoints(sys.argv[1], writable=False).restore(2, damages.abstract_state())\n"
        "jax.tree.map(np.testing.assert_array_equal, state, damages.small_state(2))\n"
        "print(jax.device_count())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, sound],
        cwd=ROOT,
        env={**os.environ, "JAX_NUM_CPU_DEVICES": "1"},
        capture_output=True,
        text=True,
    )
    assert done.stdout == "1\n", done.stderr


def test_what_is_saved_is_the_state_at_that_moment(tmp_path):
    mesh = devices.make_mesh()
    update = jax.jit(lambda state: jax.tree.map(lambda leaf: leaf * 2 + 1, state), donate_argnums=0)
    state = devices.replicate(mesh, {"kernel": jnp.arange(2_000_000.0), "step": jnp.asarray(1)})
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2, 3):
        expected = jax.tree.map(lambda leaf: np.array(leaf), state)
        checkpoints.save(step, state, {})
        for _ in range(5):
            state = update(state)
        checkpoints.wait()
        shapes = devices.abstract_arrays(mesh, jax.eval_shape(update, state))
        jax.tree.map(np.testing.assert_array_equal, checkpoints.restore(step, shapes), expected)
    checkpoints.close()


@pytest.mark.parametrize("number", range(60))
def test_random_damage_is_found_before_use(sound, tmp_path, number):
    rng = random.Random(number)
    outcome = damages.damage_checkpoint(sound, tmp_path / "run", rng)
    assert outcome == stops.SURVIVED


def test_damage_is_reported_in_one_line_and_moved_away(sound, tmp_path, caplog):
    shutil.copytree(sound, tmp_path, dirs_exist_ok=True)
    (tmp_path / "checkpoints" / "2" / "meta.json").write_text("{}")
    reader = Checkpoints(tmp_path, writable=False)
    assert reader.find("last") == 1
    assert [record.getMessage() for record in caplog.records] == [
        f"skipping the damaged checkpoint {tmp_path}/checkpoints/2: meta.json has changed"
    ]
    for name in ("2", "best"):
        with pytest.raises(UserError, match=r"is damaged: meta\.json has changed"):
            reader.find(name)
    caplog.clear()
    for number in range(2):
        writer = Checkpoints(tmp_path)
        assert writer.find("last") == 1
        aside = tmp_path / "damaged_checkpoints" / f"2-{number}"
        assert len(caplog.records) == number + 1
        assert str(aside) in caplog.records[-1].getMessage()
        assert (aside / "state").is_dir()
        # Saved again, damaged again.
        writer.save(2, damages.small_state(2), {})
        writer.close()
        (tmp_path / "checkpoints" / "2" / "meta.json").unlink()


def test_a_run_that_has_lost_all_its_checkpoints_does_not_start_over(sound, tmp_path, caplog):
    shutil.copytree(sound, tmp_path, dirs_exist_ok=True)
    for step in ("1", "2"):
        (tmp_path / "checkpoints" / step / "meta.json").write_text("{}")
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.find("last") is None
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 2
    assert all(line.endswith(": meta.json has changed") for line in lines)
    with pytest.raises(UserError, match=r"can be used, all are in .*/damaged_checkpoints: choose"):
        checkpoints.check_left()
    (tmp_path / "new").mkdir()
    Checkpoints(tmp_path / "new").check_left()


def test_a_damaged_best_does_not_stop_a_start(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    for step, accuracy in enumerate((0.9, 0.1, 0.2), start=1):
        metrics = {"eval_accuracy": accuracy}
        checkpoints.save(step, damages.small_state(step), {}, metrics)
    checkpoints.close()
    (checkpoints.folder / "1" / "meta.json").write_bytes(b"\xff")
    assert Checkpoints(tmp_path, writable=False).find("last") == 3
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.steps() == [2, 3]
    assert checkpoints.find("best") == 3


def test_an_accuracy_that_is_not_a_number_is_ignored(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    for step, accuracy in enumerate(("x", 0.5, None, 0.4), start=1):
        checkpoints.save(step, damages.small_state(step), {}, {"eval_accuracy": accuracy})
    checkpoints.close()
    assert (checkpoints.failure, checkpoints.steps()) == ("", [2, 3, 4])
    assert checkpoints.find("best") == 2


def test_a_checkpoint_damaged_during_the_run_does_not_keep_later_saves_from_working(
    tmp_path, caplog
):
    checkpoints = Checkpoints(tmp_path)
    for step, accuracy in enumerate((0.1, 0.9, 0.2, 0.3), start=1):
        if step == 4:
            (checkpoints.folder / "3" / "meta.json").write_bytes(b"")
        metrics = {"eval_accuracy": accuracy}
        checkpoints.save(step, damages.small_state(step), {}, metrics)
        checkpoints.wait()
    assert (checkpoints.failure, caplog.records) == ("", [])
    checkpoints.save(5, damages.small_state(5), {}, metrics)
    checkpoints.close()
    assert checkpoints.steps() == [2, 4, 5]


def test_what_a_killed_process_left_is_deleted(sound, tmp_path):
    shutil.copytree(sound, tmp_path, dirs_exist_ok=True)
    folder = tmp_path / "checkpoints"
    shutil.copytree(folder / "2", folder / ".saving-3")
    (folder / ".saving-3" / "manifest.json").unlink()
    shutil.copytree(folder / "1", folder / ".deleting-0")
    assert Checkpoints(tmp_path, writable=False).steps() == [1, 2]
    checkpoints = Checkpoints(tmp_path)
    assert sorted(path.name for path in folder.iterdir()) == ["1", "2"]
    checkpoints.save(3, damages.small_state(3), {})
    checkpoints.close()
    assert checkpoints.steps() == [2, 3]


def test_files_and_links_in_the_place_of_folders(sound, tmp_path):
    shutil.copytree(sound, tmp_path, dirs_exist_ok=True)
    folder = tmp_path / "checkpoints"
    (folder / "2").rename(tmp_path / "elsewhere")
    (folder / "2").symlink_to(tmp_path / "elsewhere")
    (folder / "3").write_text("")
    (folder / "4").symlink_to("nowhere")
    (folder / ".saving-2").write_text("")
    (folder / ".deleting-1").symlink_to(tmp_path / "elsewhere")
    assert manifest.find_damage(folder / "2") == "it is a link"
    assert Checkpoints(tmp_path, writable=False).find("last") == 1
    checkpoints = Checkpoints(tmp_path)
    assert [path.name for path in folder.iterdir()] == ["1"]
    for step in (2, 3, 4):
        checkpoints.save(step, damages.small_state(step), {})
    checkpoints.close()
    assert (checkpoints.failure, checkpoints.steps()) == ("", [3, 4])
    assert (tmp_path / "elsewhere" / "manifest.json").exists()


def rewrite(folder, **content):
    """Changes the content of a checkpoint's manifest, and its digest to match."""
    path = folder / "manifest.json"
    values = json.loads(path.read_text())["content"] | content
    path.write_text(json.dumps({"sha256": files_lib.digest(values), "content": values}))


def test_names_that_lead_outside_are_damage(sound, tmp_path):
    shutil.copytree(sound, tmp_path, dirs_exist_ok=True)
    folder = tmp_path / "checkpoints" / "2"
    files = json.loads((folder / "manifest.json").read_text())["content"]["files"]
    (tmp_path / "secret").write_text("x")
    for name in ("../../secret", str(tmp_path / "secret"), "state/../../../secret"):
        rewrite(folder, files=files | {name: "0"})
        assert manifest.find_damage(folder).endswith(" is missing")
    rewrite(folder, files=files)
    assert manifest.find_damage(folder) == ""
    for name in ("meta.json", "state", "manifest.json"):
        moved = (folder / name).rename(tmp_path / f"moved-{name}")
        (folder / name).symlink_to(moved)
        assert manifest.find_damage(folder) == f"{name} is a link"
        (folder / name).unlink()
        moved.rename(folder / name)
    assert manifest.find_damage(folder) == ""


def test_pipes_and_deeply_nested_manifests_are_damage(sound, tmp_path):
    shutil.copytree(sound, tmp_path, dirs_exist_ok=True)
    folder = tmp_path / "checkpoints" / "2"
    for name in ("meta.json", "state/_METADATA", "manifest.json"):
        content = (folder / name).read_bytes()
        (folder / name).unlink()
        os.mkfifo(folder / name)
        assert manifest.find_damage(folder) == f"{name} is not a plain file"
        (folder / name).unlink()
        (folder / name).write_bytes(content)
    assert manifest.find_damage(folder) == ""
    (folder / "manifest.json").write_text("[" * 100_000)
    assert manifest.find_damage(folder) == "manifest.json cannot be read (RecursionError)"


def test_a_link_is_not_even_opened(sound, tmp_path, monkeypatch):
    shutil.copytree(sound, tmp_path, dirs_exist_ok=True)
    folder = tmp_path / "checkpoints" / "2"
    (folder / "manifest.json").rename(tmp_path / "elsewhere")
    (folder / "manifest.json").symlink_to(tmp_path / "elsewhere")
    monkeypatch.setattr(Path, "read_bytes", lambda path: pytest.fail(f"opened {path}"))
    assert manifest.find_damage(folder) == "manifest.json is a link"


def test_a_newer_format_names_the_version_that_wrote_it(sound, tmp_path):
    shutil.copytree(sound, tmp_path, dirs_exist_ok=True)
    rewrite(tmp_path / "checkpoints" / "2", format=2, cifar_jax="9.1")
    with pytest.raises(UserError, match=r"has format 2, .* reads up to 1: use version 9\.1"):
        Checkpoints(tmp_path)
    assert not (tmp_path / "damaged_checkpoints").exists()


def test_the_differences_of_another_model_are_named(sound):
    checkpoints = Checkpoints(sound, writable=False)
    wanted = damages.abstract_state()
    kernel = wanted["params"]["kernel"]
    wanted["params"]["kernel"] = kernel.update(shape=(40, 31))
    wanted["params"]["extra"] = kernel
    wanted["step"] = wanted["step"].update(dtype=jnp.float32)
    with pytest.raises(UserError) as caught:
        checkpoints.restore(2, wanted)
    assert str(caught.value) == (
        f"the checkpoint {sound}/checkpoints/2 belongs to another model: in it, "
        "params/extra is missing; "
        "params/kernel is float32 [40, 30] instead of float32 [40, 31]; "
        "step is int32 [] instead of float32 []"
    )


def test_nothing_is_unpickled(sound, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("unpickled")

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    checkpoints = Checkpoints(sound, writable=False)
    assert_holds(checkpoints, checkpoints.find("last"))


def test_a_save_that_fails_is_reported_and_the_next_succeeds(tmp_path, monkeypatch, caplog):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, damages.small_state(1), {})
    checkpoints.wait()
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(9, 9, 0))
        checkpoints.save(2, damages.small_state(2), {})
        while not checkpoints.failure:
            checkpoints.poll()
    assert checkpoints.failure == "No space left on device"
    assert [record.getMessage() for record in caplog.records] == [
        "the checkpoint of step 2 could not be saved, that of step 1 is kept: "
        "No space left on device"
    ]
    checkpoints.save(3, damages.small_state(3), {})
    checkpoints.wait()
    assert checkpoints.failure == ""
    assert checkpoints.steps() == [1, 3]
    checkpoints.close()


def test_a_save_that_leaves_out_arrays_has_failed(tmp_path):
    (tmp_path / "a\\b").mkdir()  # in such a path Orbax does not find what it has written
    checkpoints = Checkpoints(tmp_path / "a\\b")
    checkpoints.save(1, damages.small_state(1), {})
    checkpoints.close()
    assert checkpoints.failure == "RuntimeError: after the save, params/bias is missing"
    assert checkpoints.steps() == []


def test_saves_keep_no_memory(tmp_path):
    """If TensorStore is asked for more than necessary, each save leaves 280 Python objects."""
    checkpoints = Checkpoints(tmp_path)

    def save(steps):
        for step in steps:
            checkpoints.save(step, damages.small_state(step), {})
            checkpoints.wait()
        gc.collect()
        return sys.getallocatedblocks()

    before = save(range(5))
    assert save(range(5, 15)) - before < 10 * 150
    assert checkpoints.steps() == [13, 14]


@pytest.mark.parametrize("name", ["a/../b", "b c", "ä#%41&{}", "link"])
def test_odd_paths(tmp_path, name):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    (tmp_path / "link").symlink_to("b")
    (tmp_path / name).mkdir(exist_ok=True)
    checkpoints = Checkpoints(tmp_path / name)
    checkpoints.save(1, damages.small_state(1), {})
    checkpoints.close()
    assert checkpoints.failure == ""
    restored = checkpoints.restore(1, damages.abstract_state())
    jax.tree.map(np.testing.assert_array_equal, restored, damages.small_state(1))


@pytest.mark.parametrize("number", range(4))
def test_a_full_disk(tmp_path, number):
    try:
        outcome = damages.fill_disk(tmp_path / "disk", random.Random(number), blind=False)
        assert outcome == stops.SURVIVED
    except PermissionError as error:
        pytest.skip(str(error))
