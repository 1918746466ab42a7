"""The configs that come with this project, in a clone and in an installed package."""

import contextlib
import importlib
import importlib.util
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from ml_collections import ConfigDict

from cifar_jax.errors import UserError

_PACKAGE = Path(__file__).parents[1]
# An installed package has them inside; in a clone they are beside it.
FOLDER = next(x / "configs" for x in (_PACKAGE, _PACKAGE.parent) if (x / "configs").is_dir())
_NAME = "configs"

# The modules of `configs`, while another package of that name is in their place.
_ours: dict[str, ModuleType] = {}


def find_config(config: str) -> str:
    """Returns a config with the file that it means: "resnet:20" is FOLDER/resnet.py:20.

    A shipped config is found by its name, and as configs/NAME.py where there is no folder of that
    name. Whatever else is given, such as a file's path, is returned as it is.
    """
    name, colon, option = config.partition(":")
    path = Path(name)
    in_configs = path.parts[:-1] == (_NAME,) and path.suffix == ".py" and not Path(_NAME).is_dir()
    shipped = FOLDER / f"{path.stem if in_configs else name}.py"
    known = in_configs or (path.name == name and not path.is_file())
    return f"{shipped}{colon}{option}" if known and shipped in list_files() else config


def run_name(config: str) -> str:
    """Returns the default name of a run: "resnet_20" for configs/resnet.py:20.

    A slash at the end, as a shell completes a folder's name, changes nothing.
    """
    file, _, option = config.rstrip("/").partition(":")
    return re.sub(r"[^\w.+-]+", "_", Path(file).stem + (f"_{option}" if option else ""))


def check_variant(config: str, error: BaseException) -> None:
    """Raises UserError if a config failed because of what follows the colon after its file."""
    file, _, option = config.partition(":")
    if "get_config() takes 0 positional arguments but 1 was given" in str(error):
        raise UserError(f"{file} takes nothing after its name: leave out ':{option}'") from error
    if found := re.search(
        r"get_config\(\) missing 1 required positional argument: (.*)", str(error)
    ):
        raise UserError(f"{file} needs {found[1]} after its name: {file}:...") from error


def list_files() -> list[Path]:
    """Returns the files of the shipped configs, sorted."""
    return sorted(FOLDER.glob("[!_]*.py"))


def default_config() -> ConfigDict:
    """Returns what `get_config` of configs/default.py returns: every field with its default."""
    with importable():
        return importlib.import_module(f"{_NAME}.default").get_config()


@contextlib.contextmanager
def importable() -> Iterator[None]:
    """Within it `from configs import default` means the shipped configs.

    An installed package has no module `configs`, so as not to take the place of a user's own.
    """
    if _is_ours():
        yield
        return
    theirs = _take_modules()
    if not _ours:
        place = [str(FOLDER)]
        spec = importlib.util.spec_from_file_location(
            _NAME, FOLDER / "__init__.py", submodule_search_locations=place
        )
        assert spec
        _ours[_NAME] = importlib.util.module_from_spec(spec)
    sys.modules.update(_ours)
    try:
        yield
    finally:
        _ours.update(_take_modules())
        sys.modules.update(theirs)


def _is_ours() -> bool:
    """Whether `import configs` means the shipped ones without further ado, as in a clone."""
    try:
        spec = importlib.util.find_spec(_NAME)
    except ValueError:  # a module without a spec
        return False
    return spec is not None and Path(spec.origin or "").parent == FOLDER


def _take_modules() -> dict[str, ModuleType]:
    """Removes the modules of `configs` from those that are imported, and returns them."""
    names = [name for name in sys.modules if name.partition(".")[0] == _NAME]
    return {name: sys.modules.pop(name) for name in names}
