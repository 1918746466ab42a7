"""The command: in which folders it works, what it does with its streams, and what it refuses."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import cifar_jax
from cifar_jax.config import stored
from cifar_jax.runs import workdir as workdir_lib
from configs import default
from tests import program
from tests.program import assert_refused

DIGITS = "--config=configs/digits.py"


def test_help_and_a_refused_lock_import_no_jax(tmp_path):
    program_text = (
        "import sys, main\n"
        "code = main.main(sys.argv)\n"
        "heavy = {'jax', 'tensorflow', 'flax', 'optax', 'orbax', 'tensorflow_datasets'}\n"
        "print(code, sorted(heavy & set(sys.modules)))\n"
    )

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", program_text, *arguments],
            cwd=program.ROOT,
            capture_output=True,
            text=True,
            timeout=program.SECONDS,
        )

    text = run("--help").stdout
    assert text.splitlines()[-1] == "0 []"
    assert "configs/simple_cnn.py" in text
    with workdir_lib.lock(tmp_path):
        refused = run(DIGITS, f"--workdir={tmp_path}")
    assert refused.stdout.splitlines() == ["2 []"]
    assert refused.stderr == (
        f"error: {tmp_path} is in use by process {os.getpid()} on {socket.gethostname()}: "
        "stop that one, or take the folder from it with --take_over\n"
    )


def test_the_runs_folder_is_named_after_the_config(here):
    sys_path = {
        "configs/resnet.py:20": "resnet_20",
        "configs/resnet.py:wrn-28-10": "resnet_wrn-28-10",
        "configs/digits.py": "digits",
        "../x y/ü.py:a/../b": "ü_a_.._b",
        "configs/folder.py:pets/": "folder_pets",
    }
    from cifar_jax.cli.parse import run_name

    assert {config: run_name(config) for config in sys_path} == sys_path


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A finished run, and the flag of its config."""
    folder = tmp_path_factory.mktemp("trained")
    flag = program.write_config(folder / "short.py", num_steps=2, data__validation_examples=0)
    code, _, err = program.run_here(flag, f"--workdir={folder / 'run'}")
    assert (code, err) == (0, "")
    return folder / "run", flag


@pytest.mark.parametrize("place", ["a b/ö日本", "link", "~/run", "a'\"$b"])
def test_odd_places_work(here, monkeypatch, trained, place):
    monkeypatch.setenv("HOME", str(here / "home"))
    if place == "link":
        (here / "real").mkdir()
        (here / "link").symlink_to("real")
    code, out, err = program.run_here(trained[1], f"--workdir={place}")
    assert (code, err) == (0, "")
    where = Path(place).expanduser()
    assert program.difference(where, trained[0]) == ""
    code, again, err = program.run_here("--mode=evaluate", f"--workdir={place}")
    assert (code, err) == (0, "")
    assert out.splitlines()[-1].partition("  in ")[0] in again


def test_a_home_is_found_wherever_a_path_is_taken(here, monkeypatch, trained):
    monkeypatch.setenv("HOME", str(here))
    (here / "run").symlink_to(trained[0])
    (here / "a.py").write_text(Path(trained[1].partition("=")[2]).read_text())
    assert cifar_jax.load("~/run").step == 2
    started = ("--config=~/a.py", "--config.init_from=~/run", "--workdir=~/new")
    assert program.run_here(*started)[0] == 0
    assert program.run_here("--mode=compare", "--workdirs=~/run,~/n*", "--output=~/out")[0] == 0
    Image.new("L", (32, 32)).save("a.png")
    flags = ("--mode=predict", "--workdir=~/run", "--images=~/*.png", "--output=~/out")
    assert program.run_here(*flags)[0] == 0
    assert {"comparison.csv", "predictions.csv"} < {path.name for path in (here / "out").iterdir()}
    assert_refused(program.run_here("--mode=evaluate", "--workdir=~nobody-here/x"), "~nobody-here")
    missing = program.run_here(*started[:2], "--config.init_from=~/none", "--workdir=~/other")
    assert_refused(missing, f"{here}/none/config.json does not exist")


@pytest.mark.slow
def test_no_home_and_an_ascii_terminal(here, trained):
    gone = {"HOME": "", "XDG_CACHE_HOME": "", "PYTHONIOENCODING": "ascii"}
    gone["JAX_COMPILATION_CACHE_DIR"] = None
    code, out, err = program.run_apart(trained[1], "--workdir=ö", environment=gone)
    assert (code, err) == (0, "")
    assert "accuracy" in out
    assert program.difference(here / "ö", trained[0]) == ""


def test_a_workdir_that_is_a_file_or_a_dead_link_is_refused(here):
    (here / "file").write_text("")
    (here / "dead").symlink_to("nowhere")
    for place in ("file", "dead", "file/x"):
        result = program.run_here(DIGITS, f"--workdir={place}")
        assert_refused(result, f"{here / place} cannot be written")
    (here / "x").mkdir()
    (here / "x" / "lock.json").mkdir()
    assert_refused(program.run_here(DIGITS, "--workdir=x"), "cannot be written (Is a directory)")
    # A lock that is a link would be written through.
    (here / "file").write_text("precious")
    (here / "x" / "lock.json").rmdir()
    (here / "x" / "lock.json").symlink_to(here / "file")
    assert_refused(program.run_here(DIGITS, "--workdir=x"), "x cannot be written (")
    assert (here / "file").read_text() == "precious"


@pytest.mark.parametrize("name", ["a[1]", "a*", "a?/b", "a\\b", "gs:", "ags:/b"])
def test_a_workdir_that_is_a_pattern_or_a_cloud_is_refused(here, name):
    """Orbax would look for its own files by it, and save checkpoints without their arrays."""
    assert_refused(program.run_here(DIGITS, f"--workdir={name}"), f"{name} has ")
    assert not list(here.glob("a*"))


@contextlib.contextmanager
def read_only(folder: Path):
    """Makes a folder unwritable, even for root, or skips the test."""
    if os.geteuid():
        folder.chmod(0o555)
        try:
            yield
        finally:
            folder.chmod(0o755)
        return
    commands = (["mount", "--bind", folder, folder], ["mount", "-o", "remount,bind,ro", folder])
    for command in commands:
        if subprocess.run(command, capture_output=True).returncode:
            pytest.skip("root, who may write everywhere, cannot mount a read-only folder here")
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


def test_read_only_workdir_is_refused_for_training_and_evaluated(here, trained):
    workdir, flag = trained
    with read_only(workdir):
        assert_refused(program.run_here(flag, f"--workdir={workdir}"), "cannot be written (")
        code, out, err = program.run_here("--mode=evaluate", f"--workdir={workdir}")
    assert (code, err) == (0, "")
    assert "of 360" in out


def test_evaluation_needs_a_checkpoint_and_a_valid_config(here):
    workdir = here / "run"
    assert_refused(program.run_here("--mode=evaluate", "--workdir=run"), "does not exist")
    workdir.mkdir()
    for text, part in (("{", "damaged"), ("[]", "does not hold a JSON object"), ("", "damaged")):
        (workdir / "config.json").write_text(text)
        assert_refused(program.run_here("--mode=evaluate", "--workdir=run"), part)
    config_json = stored.to_json(default.get_config())
    (workdir / "config.json").write_text(json.dumps(config_json))
    assert_refused(program.run_here("--mode=evaluate", "--workdir=run"), "no checkpoint yet")
    (workdir / "checkpoints").mkdir()
    assert_refused(program.run_here("--mode=evaluate", "--workdir=run"), "no checkpoint yet")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[("eval_batch_size", value) for value in ("many", 0, -3, 2.5, None)],
        *[("num_cpu_devices", value) for value in ("x", 0)],
        *[("deterministic", "yes"), ("data", {"data_dir": 5})],
    ],
)
def test_an_edited_config_of_a_run_is_named_by_its_field(here, field, value):
    content = stored.to_json(default.get_config()) | {field: value}
    (here / "config.json").write_text(json.dumps(content))
    (here / "a.png").touch()
    for arguments in (("evaluate",), ("report",), ("predict", "--images=a.png")):
        result = program.run_here(f"--mode={arguments[0]}", "--workdir=.", *arguments[1:])
        words = "data.data_dir is 5" if field == "data" else f"{field} is {value!r}"
        assert_refused(result, f"config.json is not the config of a run: {words}")


def test_evaluation_refuses_what_the_run_does_not_have(here, trained):
    evaluate = ("--mode=evaluate", f"--workdir={trained[0]}")
    for flag, part in (
        ("--checkpoint=1", "no checkpoint '1'; there are last, 2"),
        ("--checkpoint=worst", "no checkpoint 'worst'"),
        ("--checkpoint=best", "no best checkpoint"),
        ("--split=tset", "digits has no split 'tset'"),
        ("--dataset=no_such_set", "unknown dataset 'no_such_set'"),
    ):
        assert_refused(program.run_here(*evaluate, flag), part)


def test_a_differing_config_is_refused_by_field(here, trained):
    workdir, flag = trained
    arguments = (flag, f"--workdir={workdir}", "--config.seed=5", "--config.ema_decay=0.9")
    code, _, err = program.run_here(*arguments)
    assert code == 2
    assert err.splitlines()[:2] == [
        "error: ema_decay was 0.0 and is now 0.9",
        "error: seed was 0 and is now 5",
    ]
    last = err.splitlines()[2]
    assert last.startswith(f"error: {workdir} holds a run with another config")
    assert f"another --workdir, where --config.init_from={workdir} starts from its weights" in last


def test_locks_left_behind(here, trained):
    workdir = here / "run"
    workdir.mkdir()
    lock = workdir / "lock.json"
    lock.write_text(json.dumps({"host": "elsewhere", "pid": 7}))
    os.utime(lock, (0, 0))  # not renewed for long
    code, _, err = program.run_here(trained[1], "--workdir=run")
    assert (code, err.count("\n")) == (0, 1)
    assert err.startswith(f"taking over {workdir} from process 7 on elsewhere, ")
    assert not lock.exists()
    for text in (json.dumps({"host": socket.gethostname(), "pid": 7}), "", "{", "[]"):
        lock.write_text(text)
        code, _, err = program.run_here(trained[1], "--workdir=run")
        assert (code, err) == (0, "")
        assert not lock.exists()


def test_a_closed_pipe_ends_the_run_without_a_traceback(here, trained):
    with program.start(trained[1], "--workdir=x") as process:
        process.stdout.close()
        err = process.stderr.read()
    assert process.returncode == 1
    assert err == "error: Broken pipe\n"
    assert os.listdir("x/checkpoints") == ["1"]  # saved first


@pytest.mark.slow
def test_a_run_without_standard_streams_trains_to_its_end(here, trained):
    """As a daemon may be started; nothing that is printed ends in a file of the run."""
    command = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh"]
    arguments = [sys.executable, str(program.ROOT / "main.py"), trained[1], "--workdir=daemon"]
    environment = os.environ | {"PYTHONPATH": str(program.ROOT), "TF_CPP_MIN_LOG_LEVEL": "0"}
    done = subprocess.run([*command, *arguments], env=environment)
    assert done.returncode == 0
    assert program.difference(here / "daemon", trained[0]) == ""


PROBE = """
import os, sys
from cifar_jax.cli import main
main.main(["main.py", "--help"])
null = os.stat(os.devnull)
sys.exit(not all(os.path.samestat(os.fstat(number), null) for number in range(3)))
"""


def test_no_file_gets_the_number_of_a_standard_stream(here):
    """Otherwise what is written to the stream, by a library too, would go into that file."""
    command = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", sys.executable, "-c", PROBE]
    assert subprocess.run(command, cwd=program.ROOT).returncode == 0


def test_too_little_memory_is_reported(monkeypatch, tmp_path):
    def train(*_):
        raise RuntimeError("INTERNAL: Out of memory allocating\n99 bytes.")

    monkeypatch.setattr("cifar_jax.training.loop.train_model", train)
    code, _, err = program.run_here(DIGITS, f"--workdir={tmp_path / 'run'}")
    words = "INTERNAL: Out of memory allocating 99 bytes.: make the model or the batch smaller"
    assert (code, err) == (1, f"error: {words}\n")


def test_ctrl_c_while_the_program_is_imported_shows_no_traceback(tmp_path):
    """During the first of the larger imports, for which a fake package of its name stands in."""
    (tmp_path / "absl.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    path = f"{tmp_path}{os.pathsep}{program.ROOT}"
    code, out, err = program.run_apart("--help", environment={"PYTHONPATH": path})
    assert (code, out, err) == (-signal.SIGINT, "", "")
