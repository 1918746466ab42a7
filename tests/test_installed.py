"""The package as pip installs it: from a wheel, outside the repository."""

import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def run(*command, cwd, **environment):
    environment = {**os.environ, "PYTHONPATH": "", **environment}
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def copy_source(folder):
    """Copies the repository, where setuptools leaves build/ and an egg-info; returns the copy."""
    names = run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=ROOT)
    for name in filter(None, names.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes((ROOT / name).read_bytes())
    return folder


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    source = copy_source(folder / "source")
    run(sys.executable, "-m", "pip", "wheel", "--no-deps", "-w", folder, source, cwd=folder)
    return next(folder.glob("*.whl"))


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_the_configs(wheel):
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    files = [path for path in ROOT.glob("cifar_jax/**/*.*") if path.suffix != ".pyc"]
    wanted = {str(path.relative_to(ROOT)) for path in files}
    wanted |= {f"cifar_jax/configs/{path.name}" for path in ROOT.glob("configs/*.py")}
    assert names == wanted


@pytest.mark.slow
def test_the_command_trains_outside_the_repository(wheel, tmp_path):
    """In an environment that borrows this one's dependencies but not its cifar_jax."""
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "env", cwd=tmp_path)
    (site,) = tmp_path.glob("env/lib/python*/site-packages")
    zipfile.ZipFile(wheel).extractall(site)
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib"))
    pip = (sys.executable, "-m", "pip", "--python", tmp_path / "env" / "bin" / "python")
    run(*pip, "install", "--no-deps", "--force-reinstall", wheel, cwd=tmp_path)
    command = tmp_path / "env" / "bin" / "cifar_jax"
    assert "configs/default.py" in run(command, "--help", cwd=tmp_path)
    (tmp_path / "mine.py").write_text(
        "from configs import digits\n\ndef get_config(steps):\n    config = digits.get_config()\n"
        "    config.num_steps = int(steps)\n    config.log.report = False\n    return config\n"
    )
    short = ("--config.num_steps=2", "--config.log.report=False")
    for flags, name in (
        (("--config=digits", *short), "digits"),
        (("--config=configs/digits.py", *short, "--workdir=second"), "second"),
        (("--config=mine.py:2",), "mine_2"),
    ):
        out = run(command, *flags, cwd=tmp_path)
        assert "61706" in out.replace(",", ""), out
        assert (
            tmp_path / ("second" if name == "second" else f"runs/{name}") / "result.json"
        ).exists()
    out = run(command, "--mode=evaluate", "--workdir=runs/digits", cwd=tmp_path)
    assert "of 360" in out
    text = run(
        tmp_path / "env/bin/python", "-c", "import cifar_jax; print(cifar_jax.__file__)", cwd="/"
    )
    assert Path(text.strip()).is_relative_to(site)


@pytest.mark.slow
def test_the_distributions_are_built_and_checked(tmp_path):
    for name in ("build", "twine"):
        pytest.importorskip(name)
    source = copy_source(tmp_path / "source")
    run(sys.executable, "-m", "build", source, "--outdir", tmp_path / "dist", cwd=tmp_path)
    names = sorted(path.name for path in (tmp_path / "dist").iterdir())
    assert [name.partition("-")[0] for name in names] == ["cifar_jax", "cifar_jax"]
    assert [name.endswith((".whl", ".tar.gz")) for name in names] == [True, True]
    out = run(sys.executable, "-m", "twine", "check", "--strict", *tmp_path.glob("dist/*"), cwd="/")
    assert out.count("PASSED") == 2
