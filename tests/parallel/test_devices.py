"""What a run computes does not depend on how many devices it has."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from cifar_jax import limits
from cifar_jax.errors import UserError
from cifar_jax.parallel import cpu, devices, processes, programs
from cifar_jax.training import distributed
from tests import program, tiny

ROOT = Path(__file__).parents[2]

PROGRAM = """
import sys
from pathlib import Path
from unittest import mock
import jax, numpy as np
import cifar_jax
from cifar_jax.data import datasets
from cifar_jax.runs import signals
from cifar_jax.training import check, loop
from tests import tiny

folder = Path(sys.argv[1])
if sys.argv[2].startswith("bn_cnn"):
    config = tiny.bn_config(
        num_steps=4, augment__flip=True, augment__crop_padding=2, ema_decay=0.9,
        optimizer__name="sgd", optimizer__learning_rate=0.01, model__conv_features=(8,),
    )
    if "mixed" in sys.argv[2]:
        config.model.conv_features = (8, 8)
        config.augment.cutout, config.augment.brightness = 4, 0.2
        config.augment.mixup_alpha = config.augment.cutmix_alpha = 0.5
        config.optimizer.accumulation_steps = 2
elif sys.argv[2] == "resnet":
    config = tiny.resnet_config(num_steps=4)
else:
    # After more steps a rounding error makes a pooling choose another of two almost equal pixels.
    config = tiny.speedrun_config(num_steps=1)
check.check_config(config)
loop.train_model(config, folder, signals.Signals())
trained = cifar_jax.load(folder)
leaves = jax.tree.leaves(trained.variables)
images = datasets.load_dataset("digits").splits["test"].images[:101]
np.savez(folder / "out.npz", *leaves, probabilities=trained.predict(images, batch_size=7))
print(jax.device_count(), "devices")
"""


def run(folder, num_devices, recipe):
    """Trains, loads and predicts in a process of its own; returns the arrays by name."""
    folder.mkdir()
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": str(num_devices), "PYTHONPATH": str(ROOT)}
    if recipe == "bn_cnn":  # the fast test; the others are optimized as for users
        environment["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "True"
    environment.pop("XLA_FLAGS", None)
    command = [sys.executable, "-c", PROGRAM, str(folder), recipe]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    assert f"{num_devices} devices" in done.stdout
    with np.load(folder / "out.npz", allow_pickle=False) as arrays:
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        return dict(arrays), [json.loads(line) for line in lines]


# Muon divides by the gradient's norm, so rounding errors grow faster.
@pytest.mark.parametrize(
    ("recipe", "tolerance"),
    [
        ("bn_cnn", 2e-5),
        pytest.param("bn_cnn, mixed and in parts", 2e-5, marks=pytest.mark.slow),
        pytest.param("resnet", 2e-4, marks=pytest.mark.slow),
        pytest.param("speedrun", 2e-4, marks=pytest.mark.slow),
    ],
)
def test_1_2_and_8_devices_agree(tmp_path, recipe, tolerance):
    def run_with(number):
        return run(tmp_path / str(number), number, recipe)

    with ThreadPoolExecutor() as pool:  # they compile for most of their time
        first, *others = pool.map(run_with, (1, 2, 8))
    expected, expected_log = first
    for arrays, log in others:
        for name, array in expected.items():
            np.testing.assert_allclose(arrays[name], array, atol=tolerance, err_msg=name)
        for line, expected_line in zip(log, expected_log, strict=True):
            assert line["train_loss"] == pytest.approx(expected_line["train_loss"], rel=1e-5)
            assert line.get("eval_accuracy") == expected_line.get("eval_accuracy")


def test_a_batch_that_the_devices_do_not_divide_is_refused():
    assert devices.make_mesh(4).shape == {"seed": 1, "data": 2}
    with pytest.raises(UserError, match="multiple of 2"):
        devices.make_mesh(5)


@pytest.mark.parametrize(
    ("batch_size", "gibibytes", "expected"),
    [
        *((128, 64, 8), (12, 64, 6), (7, 64, 7), (11, 64, 1), (None, 64, 8)),
        *((12, 5.5, 4), (12, 0.5, 1)),
    ],
)
def test_the_default_number_of_cpu_devices(monkeypatch, batch_size, gibibytes, expected):
    """The largest that divides the batch, up to the cores and with a GiB of memory for each."""
    monkeypatch.setattr(limits, "num_cores", lambda: 8)
    monkeypatch.setattr(limits, "host_memory", lambda: int(gibibytes * 2**30))
    assert cpu.default_num_devices(batch_size) == expected


CONFIGURE = """
import os
from cifar_jax.parallel import cpu, devices, processes, programs
from cifar_jax.training import distributed
cpu.default_num_devices = lambda batch_size: 3
devices.configure_jax({arguments})
import jax
print(jax.device_count(), os.environ.get("XLA_FLAGS"))
"""


@pytest.mark.parametrize(
    ("arguments", "variables", "expected"),
    [
        ("128", {}, 3),
        ("128, 2", {"JAX_NUM_CPU_DEVICES": "4"}, 2),
        ("128", {"JAX_NUM_CPU_DEVICES": "4"}, 4),
        ("128, 1", {}, 1),
        ("128", {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}, 4),
    ],
)
def test_the_config_overrides_the_environment_which_overrides_the_default(
    arguments, variables, expected
):
    names = ("JAX_NUM_CPU_DEVICES", "XLA_FLAGS")
    environment = {k: v for k, v in os.environ.items() if k not in names} | variables
    command = [sys.executable, "-c", CONFIGURE.format(arguments=arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    count, _, flags = done.stdout.strip().partition(" ")
    assert int(count) == expected
    assert ("--xla_cpu_multi_thread_eigen=false" in flags) == (expected > 1)


GROUPS = {  # what /proc/self/cgroup says, and the files of the own or an outer group
    "a container, version 2": ("0::/", "cpu.max", "memory.max"),
    "a systemd slice": (
        "0::/user.slice/run-1.scope",
        "user.slice/cpu.max",
        "user.slice/memory.max",
    ),
    "a SLURM job, version 2": (
        "0::/system.slice/slurmstepd.scope/job_7/step_0/user/task_0",
        "system.slice/slurmstepd.scope/job_7/cpu.max",
        "system.slice/slurmstepd.scope/job_7/step_0/memory.max",
    ),
    "a SLURM job, version 1": (
        "4:cpu,cpuacct:/slurm/uid_5/job_7\n3:memory:/slurm/uid_5/job_7/step_0\n0::/",
        "cpu/slurm/uid_5/job_7/cpu.cfs_quota_us",
        "memory/slurm/uid_5/job_7/memory.limit_in_bytes",
    ),
    "a path outside the container": (
        "3:memory:/docker/abc\n2:cpu:/docker/abc\n0::/../../other",
        "cpu/cpu.cfs_quota_us",
        "memory/memory.limit_in_bytes",
    ),
    "no list of groups": (None, "cpu.max", "memory.max"),
}


@pytest.mark.parametrize("groups", GROUPS)
def test_the_limits_of_a_container_or_a_job_hold(groups, tmp_path, monkeypatch):
    own, cpu_file, memory_file = GROUPS[groups]
    monkeypatch.setattr(limits, "_CGROUP", tmp_path)
    monkeypatch.setattr(limits, "_MEMBERSHIP", tmp_path / "membership")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    if own:
        (tmp_path / "membership").write_text(own + "\n")
    whole = limits.host_memory()
    assert (whole > 2**28, limits.num_cores()) == (True, 64)
    for file in map(tmp_path.joinpath, (cpu_file, memory_file)):
        file.parent.mkdir(parents=True, exist_ok=True)
    period = tmp_path / cpu_file.replace("quota", "period")
    for quota, cores in ((-1, 64), (250_000, 2), (50_000, 1), (10**9, 64)):
        if period.name == "cpu.max":
            period.write_text(f"{quota if quota > 0 else 'max'} 100000\n")
        else:
            period.write_text("100000\n")
            (tmp_path / cpu_file).write_text(f"{quota}\n")
        assert limits.num_cores() == cores
    for size, expected in (("max", whole), (2**28, 2**28), (2**62, whole)):
        (tmp_path / memory_file).write_text(f"{size}\n")
        assert limits.host_memory() == expected


@pytest.mark.parametrize(
    ("num_processes", "variables", "expected"),
    [
        (4, {}, 2),
        (None, {"SLURM_NTASKS": "2"}, 4),
        (None, {"OMPI_COMM_WORLD_SIZE": "8", "SLURM_NTASKS": "2"}, 1),
        (None, {}, 8),
    ],
)
def test_the_devices_of_a_process_share_its_part_of_the_batch(
    num_processes, variables, expected, monkeypatch, tmp_path
):
    sizes = []
    for name in ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(limits, "num_cores", lambda: 64)
    monkeypatch.setattr(limits, "host_memory", lambda: 2**40)
    monkeypatch.setattr(devices, "configure_jax", lambda size, *_: sizes.append(size))
    monkeypatch.setattr(processes, "job", mock.Mock(side_effect=UserError("not here")))
    with pytest.raises(UserError, match="not here"):
        distributed.train_together(
            tiny.config(batch_size=8), tmp_path, mock.Mock(), num_processes=num_processes
        )
    assert [cpu.default_num_devices(size) for size in sizes] == [expected]


@pytest.mark.parametrize(
    "kinds",
    [
        ("model name\t: A\nflags\t\t: fpu sse", "model name\t: A\nflags\t\t: fpu sse avx2"),
        ("Features\t: fp asimd\nCPU part\t: 0xd0c", "Features\t: fp asimd sve\nCPU part\t: 0xd40"),
    ],
    ids=["x86", "ARM"],
)
def test_processors_of_two_kinds_share_no_compiled_programs(monkeypatch, kinds):
    folders = []
    for text in kinds:
        monkeypatch.setattr(Path, "read_text", lambda _, text=text: text)
        folders.append(programs.find_folder())
    assert len(set(folders)) == 2


DETERMINISTIC = """
import os, sys
from unittest import mock
from cifar_jax.parallel import devices
import main

def make_mesh(*_):
    import jax

    print("before the backend:", os.environ["XLA_FLAGS"])
    print(jax.jit(lambda x: x + 1)(1))
    print(jax.config.jax_compilation_cache_dir)
    sys.exit(0)

with mock.patch.object(devices, "make_mesh", make_mesh):
    sys.exit(main.main(sys.argv))
"""


def test_the_deterministic_setting_reaches_xla_which_knows_it(tmp_path):
    """A flag that XLA does not know would end the process when the backend starts."""
    flag = program.write_config(tmp_path / "short.py", num_steps=1, deterministic=True)
    variables = {**os.environ, "XLA_FLAGS": "--xla_dump_max_hlo_modules=1"}
    variables |= {"XDG_CACHE_HOME": str(tmp_path / "cache"), "JAX_COMPILATION_CACHE_DIR": None}
    done = subprocess.run(
        [sys.executable, "-c", DETERMINISTIC, flag, f"--workdir={tmp_path / 'run'}"],
        env={name: value for name, value in variables.items() if value is not None},
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert (done.returncode, done.stderr) == (0, "")
    words, result, cache = done.stdout.splitlines()
    assert cache.startswith(f"{tmp_path / 'cache' / 'cifar_jax' / 'xla-'}")
    assert result == "2"
    assert words.startswith("before the backend: --xla_dump_max_hlo_modules=1 ")
    assert " --xla_cpu_collective_call_terminate_timeout_seconds=" in words
    assert words.endswith(" --xla_gpu_deterministic_ops=true")


def test_flags_of_the_user_are_kept(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_gpu_deterministic_ops=false")
    devices._add_xla_flag("xla_gpu_deterministic_ops=true")
    assert os.environ["XLA_FLAGS"] == "--xla_gpu_deterministic_ops=false"


FORK = """
import multiprocessing, warnings
import cifar_jax
from cifar_jax.errors import UserError
from tests import sample_run

folder = "tests/data/format-1"
model, images = cifar_jax.load(folder), sample_run.images()
model.predict(images)

def try_all():
    for attempt in (lambda: model.predict(images), lambda: cifar_jax.load(folder)):
        try:
            attempt()
        except UserError as error:
            print(error, flush=True)

warnings.simplefilter("ignore")  # JAX's own, at the fork
worker = multiprocessing.get_context("fork").Process(target=try_all)
worker.start()
worker.join(60)
worker.kill()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_process_is_told_to_spawn():
    command = [sys.executable, "-c", FORK]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, "")
    first, second = done.stdout.splitlines()
    assert first == second
    assert first.endswith('start it by multiprocessing.get_context("spawn") instead')
