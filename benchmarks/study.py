"""The ordinary commands behind a row of `benchmarks.studies`."""

import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.workers import ROOT, describe_machine
from cifar_jax import files
from cifar_jax.errors import UserError
from cifar_jax.runs import workdir as workdir_lib
from cifar_jax.studies import audit_page

Row = dict[str, Any]

# What a command writes at the end.
LAST = (workdir_lib.RESULT, audit_page.PAGE)


class Runs(NamedTuple):
    """The folder of the runs, and whether to make those that take hours."""

    folder: Path
    long: bool

    def may_make(self, name: str) -> bool:
        """Whether a run that takes hours is finished or is to be made."""
        if self.long or any((self.folder / name / last).exists() for last in LAST):
            return True
        print(f"{name} is left out: it takes hours, and --long is not given", flush=True)
        return False


class Study:
    """The commands of a row, and the folders of their runs."""

    def __init__(self, runs: Runs):
        self.folder = runs.folder
        self.commands: list[str] = []
        self.workdirs: list[Path] = []

    def note(self, *arguments: str) -> None:
        """Keeps a command of main.py as a user would type it."""
        words = shlex.join(["python", "main.py", *arguments])
        self.commands.append(words.replace(str(self.folder), "runs"))

    def run(
        self, name: str, *arguments: str, flag: str = "workdir", last: Sequence[str] = ()
    ) -> Path:
        """Runs main.py on a folder of that name, which it returns; a finished audit is kept."""
        workdir = self.folder / name
        words = [*arguments, f"--{flag}={workdir}", *last]
        self.note(*words)
        if not (workdir / audit_page.PAGE).exists():  # an audit would predict all images again
            subprocess.run([sys.executable, "main.py", *words], cwd=ROOT, check=True)
        self.workdirs.append(workdir)
        return workdir

    def row(self, **numbers: Any) -> Row:
        """Returns the numbers with the commands, and where their runs were made."""
        return {**numbers, "commands": self.commands, **self._describe()}

    def _describe(self) -> Row:
        """Raises UserError if the runs were made by different commits or on different machines."""
        paths = [x for folder in self.workdirs for x in folder.rglob(workdir_lib.ENVIRONMENT)]
        if not paths:  # a model that comes with the package
            return describe_machine()
        found = {}
        for path in paths:
            one = files.read_json(path)
            one["hardware"] = f"{one['cores']} cores of {one['processor']}"
            own = {name: one[name] for name in ("hardware", "commit", "versions")}
            found[files.digest(own)] = own
        if len(found) > 1:
            names = ", ".join(sorted({path.parent.name for path in paths}))
            raise UserError(f"{names} were made by different commits, versions or machines")
        return found.popitem()[1]
