"""The command: what it refuses and with which words, and in which folders it works."""

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
from cifar_jax.data import datasets
from cifar_jax.runs import workdir as workdir_lib
from configs import default
from tests import program

DIGITS = "--config=configs/digits.py"
# (arguments, a part of each error line)
WRONG = [
    ((), ("--config is missing",)),
    (("--config=zzz",), ("no file 'zzz'; there are configs/bn_cnn.py, ",)),
    (("--config=configs/digit.py",), ("did you mean configs/digits.py?",)),
    (("--config=digit",), ("did you mean digits?",)),
    (("--config", "digits", "--config.seed=-1"), ("seed is -1",)),
    (("--config=resnet:21",), ("no variant '21'; there are 18, 20",)),
    (("--config=",), ("no file ''",)),
    (("--config",), ("no file ''",)),
    (("--config=configs",), ("no file 'configs'",)),
    (("--config=configs/resnet.py:21",), ("no variant '21'; there are 18, 20",)),
    (("--config=configs/simple_cnn.py:moderm",), ("no variant 'moderm'",)),
    (("--config=configs/digits.py:20",), ("digits.py takes nothing after its name",)),
    (("--config.seed=1",), ("--config.seed must come after a --config=FILE",)),
    (("--config.seed=1", DIGITS), ("--config.seed must come after a --config=FILE",)),
    (("--mode=report", "--workdir=x", "--config.seed=1"), ("a finished run has its own",)),
    ((DIGITS, "--config.sed=1"), ("--config.sed: there is no such field; did you mean",)),
    ((DIGITS, "--config.learning_rate=1"), ("did you mean --config.optimizer.learning_rate?",)),
    ((DIGITS, "--config.optimizer.lr=1"), ("--config.optimizer.lr: there is no such field",)),
    (
        (DIGITS, "--config.optimizer.learning_rate=1", "--config.optimiser.learning_rate=1"),
        ("optimiser.learning_rate: there is no such field; did you mean --config.optimizer.",),
    ),
    ((DIGITS, "--config.nonsense.x=1"), ("--config.nonsense.x: there is no such field",)),
    ((DIGITS, "--config.model.dropout_rat=0.1"), ("model lenet has no option 'dropout_rat'",)),
    ((DIGITS, "--config.batch_size=many"), ("--config.batch_size=many",)),
    ((DIGITS, "--config.batch_size=12.5"), ("--config.batch_size=12.5",)),
    ((DIGITS, "--config.batch_size=0"), ("batch_size is 0 but must be greater than 0",)),
    ((DIGITS, "--config.batch_size=-64"), ("batch_size is -64 but",)),
    ((DIGITS, "--config.num_epochs=0"), ("num_epochs is 0.0 but must be greater than 0",)),
    ((DIGITS, "--config.num_epochs=nan"), ("num_epochs is nan, not a finite number",)),
    ((DIGITS, "--config.num_epochs=inf"), ("num_epochs is inf, not a finite number",)),
    ((DIGITS, "--config.num_steps=-1"), ("num_steps is -1 but",)),
    ((DIGITS, "--config.num_steps=" + "9" * 400), ("num_steps is not within 2**31",)),
    ((DIGITS, "--config.optimizer.learning_rate=nan"), ("learning_rate is nan",)),
    ((DIGITS, "--config.optimizer.learning_rate=-1"), ("learning_rate is -1.0 but",)),
    ((DIGITS, "--config.optimizer.learning_rate=1e39"), ("more than a float32 can hold",)),
    ((DIGITS, "--config.loss.label_smoothing=1"), ("label_smoothing is 1.0 but must be at",)),
    ((DIGITS, "--config.optimizer.name=adm"), ("did you mean 'adam'?",)),
    ((DIGITS, "--config.optimizer.name=lbfgs"), ("'lbfgs', which cannot train like this",)),
    ((DIGITS, "--config.optimizer.momentum=0.9"), ("momentum is set but adam does not take it",)),
    ((DIGITS, "--config.seed=-1"), ("seed is -1 but must not be negative",)),
    ((DIGITS, "--config.seed=4294967296"), ("seed is 4294967296 but must be less than 2**32",)),
    ((DIGITS, "--config.model.name=lenett"), ("unknown model 'lenett', none of mlp",)),
    ((DIGITS, "--config.data.name=cifar11"), ("unknown dataset 'cifar11': did you mean cifar10",)),
    ((DIGITS, "--config.schedule.name=cosin"), ("schedule.name is 'cosin', none of constant",)),
    (
        (DIGITS, "--config.schedule.milestones=(3,2)"),
        ("schedule.milestones is (3, 2) but must be ascending",),
    ),
    ((DIGITS, "--config.dtype=float16"), ("dtype is 'float16', none of float32, bfloat16",)),
    ((DIGITS, "--config.data.placement=gpu"), ("data.placement is 'gpu', none of auto",)),
    ((DIGITS, "--config.num_cpu_devices=7"), ("batch_size 64 is not a multiple of num_cpu_dev",)),
    ((DIGITS, "--config.optimizer.accumulation_steps=3"), ("not a multiple of optimizer.accum",)),
    (
        (DIGITS, "--config.batch_size=0", "--config.ema_decay=1", "--config.dtype=int8"),
        ("batch_size is 0", "ema_decay is 1.0", "dtype is 'int8'"),
    ),
    ((DIGITS, "--config.augment.crop_padding=-1"), ("crop_padding is -1",)),
    ((DIGITS, "--mode=trian"), ("trian",)),
    ((DIGITS, "--batch_size=64"), ("does not take --batch_size, which belongs to --mode=eval",)),
    ((DIGITS, "--optimizer=adam"), ("optimizer",)),
    ((DIGITS, "extra"), ("unexpected argument 'extra'",)),
    (("--mode=evaluate",), ("--workdir is missing",)),
    (("--mode=evaluate", DIGITS, "--workdir=x"), ("does not take --config",)),
    (("--mode=evaluate", "--workdir=no/such/run"), ("no/such/run/config.json does not exist",)),
    (("--mode=evaluate", "--workdir=x", "--batch_size=0"), ("batch_size",)),
    (("--mode=evaluate", "--workdir=x", "--images=a.png"), ("does not take --images, which",)),
    (("--mode=evaluate", "--workdir=x", "extra"), ("unexpected argument 'extra'",)),
    (("--mode=predict", "--images=a.png"), ("--workdir is missing",)),
    (("--mode=predict", "--workdir=x", "--images=a.png"), ("x/config.json does not exist",)),
    (("--mode=predict", "--workdir=x", "--dataset=mnist"), ("does not take --dataset",)),
    (("--mode=predict", "--workdir=x", "--resize=stretch"), ("resize",)),
    (("--mode=predict", "--workdir=x", "--output="), ("--output is empty",)),
    (("--mode=explore", "--dataset=cifar11"), ("unknown dataset 'cifar11'",)),
    (("--mode=explore", "--workdir=x"), ("does not take --workdir, which",)),
    (("--mode=explore", DIGITS, "--dataset=mnist"), ("--dataset cannot be combined",)),
    (("--mode=explore", DIGITS, "--config.seed=-1"), ("seed is -1",)),
    (("--mode=explore", "--dataset=digits", "--seed=-1"), ("seed",)),
    (("--mode=compare",), ("--workdirs is missing",)),
    (("--mode=compare", "--workdirs="), ("--workdirs is missing",)),
    (("--mode=compare", "--workdirs=a,b"), ("a/config.json does", "b/config.json does")),
    (("--mode=compare", "--workdirs=runs/*"), ("runs/* matches no folder",)),
    (
        ("--mode=export", "--formats=safetensors"),
        ("--workdir is missing: the folder of the run to",),
    ),
    (("--mode=export", "--workdir=x"), ("--formats is missing: one or more of onnx, stablehlo, ",)),
    (("--mode=export", "--workdir=x", "--formats=pt"), ("--formats: 'pt' is none of onnx, ",)),
    (("--mode=export", "--workdir=x", "--formats=safetensors"), ("x/config.json does not exist",)),
    (("--mode=evaluate", "--workdir=pretrained:x"), ("pretrained:x: no such model comes with",)),
    (("--mode=evaluate", "--workdir=x.safetensors"), ("x.safetensors does not exist",)),
    (
        (DIGITS, "--workdir=pretrained:mlp"),
        ("start from it with --config.init_from=pretrained:mlp",),
    ),
    ((DIGITS, "--config.init_from=pretrained:x"), ("pretrained:x: no such model comes with",)),
    (("--mode=compare", "--workdirs=pretrained:mlp"), ("pretrained:mlp/config.json does not",)),
    (("--mode=report",), ("--workdir is missing: the folder of the run to report",)),
    (("--mode=report", DIGITS, "--workdir=x"), ("--mode=report does not take --config",)),
    (("--mode=report", "--workdir=x", "--dataset=mnist"), ("does not take --dataset",)),
    (("--mode=report", "--workdir=no/such/run"), ("no/such/run/config.json does not exist",)),
    (("--mode=report", "--workdir=\udcff"), (r"--workdir \udcff: checkpoints cannot be in",)),
    ((DIGITS, "--workdir=\udcff/x"), (r"--workdir \udcff/x: checkpoints cannot be in",)),
    (("--mode=evaluate", "--workdir=~nobody_of_that_name/x"), ("~nobody_of_that_name",)),
]
# Mistakes that show only once the data is known.
LATE = [
    ("batch_size=2000", "batch_size 2000 is larger than the 320 training images"),
    ("data.validation_examples=1437", "cannot hold out 1437 validation images"),
    ("num_epochs=1e30", "steps is too long"),
    ("augment.crop_padding=32", "crop_padding=32 must be below the image's side"),
]
# Broken config files of a user.
FILES = [
    ("def get_config(:", "invalid syntax"),
    ("raise RuntimeError('no luck')", "no luck"),
    ("def get_config(): raise KeyError('a')", "--config=mine.py: KeyError 'a'"),
    ("import sys; sys.exit(0)", "--config=mine.py: SystemExit 0"),
    ("def get_config(): exit()", "--config=mine.py: SystemExit"),
    ("import no_such_module", "no_such_module"),
    ("x = 1", "get_config"),
    ("def get_config(): return None", "the config is of the type NoneType"),
    ("def get_config(): return {'seed': 1}", "the config is of the type dict"),
    ("{config}.sed = 1\n    return config", "sed"),
    ("{config}.seed = 'one'\n    return config", "seed"),
    (
        "{unlocked}\n        config.sed = 1\n    return config",
        "sed: there is no such field; did you",
    ),
    ("{unlocked}\n        del config.optimizer.b1\n    return config", "optimizer.b1 is missing"),
    ("{unlocked}\n        config.model = 3\n    return config", "field 'model'"),
    ("{unlocked}\n        del config.model.name\n    return config", "model.name is missing"),
    ("{unlocked}\n        config.batch_size = None\n    return config", "batch_size is None but"),
]
_DEFAULT = "from configs import default\ndef get_config():\n    config = default.get_config()\n    "


def assert_refused(result: tuple[int, str, str], *parts: str) -> None:
    code, out, err = result
    lines = err.splitlines()
    assert code == 2
    assert out == ""
    assert len(lines) == len(parts), err
    for line, part in zip(sorted(lines), sorted(parts), strict=True):
        assert line.startswith("error: ")
        assert part in line
        assert len(line) < 700


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty current directory from which configs/ can be reached."""
    (tmp_path / "configs").symlink_to(program.ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("arguments", "parts"), WRONG, ids=lambda x: " ".join(x)[:60])
def test_each_mistake_in_a_command_gets_one_line(here, arguments, parts):
    assert_refused(program.run_here(*arguments), *parts)
    assert [path.name for path in here.iterdir()] == ["configs"]


@pytest.mark.parametrize(("override", "part"), LATE)
def test_a_config_that_does_not_fit_the_data_gets_one_line_and_can_be_corrected(
    here, override, part
):
    flags = (program.write_config(here / "short.py"), "--workdir=x")
    code, _, err = program.run_here(*flags, f"--config.{override}")
    assert (code, err.startswith("error: "), err.count("\n")) == (2, True, 1)
    assert part in err
    assert not (here / "x").exists()
    # Another config is accepted now, since nothing was trained yet.
    code, _, err = program.run_here(*flags, "--config.batch_size=1998")
    assert "batch_size 1998" in err


def test_the_run_to_start_from_is_checked_before_the_data_is_loaded(here, monkeypatch):
    monkeypatch.setattr(datasets, "load_dataset", lambda *_: pytest.fail("loaded the data"))
    flags = (program.write_config(here / "short.py"), "--workdir=x", "--config.init_from=other")
    assert_refused(program.run_here(*flags), "other/config.json does not exist")
    (here / "other" / "checkpoints").mkdir(parents=True)
    (here / "other" / "config.json").write_text("{}")
    assert_refused(program.run_here(*flags), "other has no checkpoint yet")


@pytest.mark.parametrize(("text", "part"), FILES, ids=range(len(FILES)))
def test_a_broken_config_file_gets_one_line(here, text, part):
    unlocked = f"{_DEFAULT}with config.unlocked():"
    text = text.replace("{config}", f"{_DEFAULT}config").replace("{unlocked}", unlocked)
    (here / "mine.py").write_text(text)
    code, out, err = program.run_here("--config=mine.py", "--workdir=x")
    assert (code, out) == (2, "")
    assert all(line.startswith("error: ") for line in err.splitlines())
    assert part in err
    assert not (here / "x").exists()


def test_wrong_command_in_a_process_of_its_own_has_no_traceback(here):
    # A backend that does not exist, so that starting JAX's devices would fail with another error.
    wrong = ("--config.batch_size=0", "--config.dtype=int8")
    code, out, err = program.run_apart(DIGITS, *wrong, environment={"JAX_PLATFORMS": "none"})
    assert (code, out) == (2, "")
    assert [line.split(" ")[:2] for line in err.splitlines()] == [
        ["error:", "batch_size"],
        ["error:", "dtype"],
    ]
    assert not (here / "runs").exists()


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


@pytest.mark.parametrize(
    "place", ["relative", "a b/ö", "日本/x", "absolute", "link", "~", "a'\"$b"]
)
def test_odd_places_work(here, monkeypatch, trained, place):
    monkeypatch.setenv("HOME", str(here / "home"))
    workdir = {"absolute": str(here / "there"), "~": "~/run"}.get(place, place)
    if place == "link":
        (here / "real").mkdir()
        (here / "link").symlink_to("real")
    code, out, err = program.run_here(trained[1], f"--workdir={workdir}")
    assert (code, err) == (0, "")
    where = Path(workdir).expanduser()
    assert program.difference(where, trained[0]) == ""
    code, again, err = program.run_here("--mode=evaluate", f"--workdir={workdir}")
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
