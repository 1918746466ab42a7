"""Shipped configs: found by name from every folder, and imported whatever else has their name."""

import importlib
import runpy
import sys
from pathlib import Path

import pytest

from cifar_jax.config import shipped
from configs import default

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("simple_cnn", CONFIGS / "simple_cnn.py"),
        ("resnet:20", CONFIGS / "resnet.py:20"),
        ("speedrun:a/b:c", CONFIGS / "speedrun.py:a/b:c"),
        ("configs/resnet.py:wrn-28-10", CONFIGS / "resnet.py:wrn-28-10"),
        ("default", CONFIGS / "default.py"),
        *[(x, x) for x in ("", "mine", "mine.py", "__init__", "other/resnet", "configs/mine.py")],
        *[
            (x, x)
            for x in ("resnet.py", "configs/resnet", "x/configs/resnet.py", ":20", "../resnet")
        ],
    ],
)
def test_a_name_stands_for_a_shipped_config(tmp_path, monkeypatch, given, found):
    monkeypatch.chdir(tmp_path)
    assert shipped.find_config(given) == str(found)


def test_a_file_of_ones_own_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "resnet").touch()
    assert shipped.find_config("resnet:20") == "resnet:20"
    (tmp_path / "configs").mkdir()
    assert shipped.find_config("configs/resnet.py") == "configs/resnet.py"


def test_another_package_of_the_name_stays_what_it_is(tmp_path, monkeypatch):
    """As where the package is installed: `configs` is not found, or is the user's own."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "configs"]:
        monkeypatch.delitem(sys.modules, name)
    (tmp_path / "mine.py").write_text(
        "from configs import default, resnet\nfound = default, resnet"
    )
    monkeypatch.setattr(sys, "path", [x for x in sys.path if Path(x).resolve() != CONFIGS.parent])
    monkeypatch.setattr(sys, "meta_path", [x for x in sys.meta_path if "editable" not in repr(x)])
    importlib.invalidate_caches()
    for own in (False, True):
        if own:
            (tmp_path / "configs").mkdir()
            (tmp_path / "configs" / "default.py").write_text("own = True")
            monkeypatch.syspath_prepend(tmp_path)
            assert importlib.import_module("configs.default").own
        with shipped.importable():
            found = runpy.run_path(str(tmp_path / "mine.py"))["found"]
        assert [Path(x.__file__) for x in found] == [CONFIGS / "default.py", CONFIGS / "resnet.py"]
        assert shipped.default_config().to_dict() == default.get_config().to_dict()
        assert ("configs.default" in sys.modules) == own
    assert importlib.import_module("configs.default").own
