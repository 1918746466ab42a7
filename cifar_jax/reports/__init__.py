"""Tables, pictures and pages for people to read."""

import contextlib
import os
import sys

from cifar_jax.errors import UserError

# Figures are drawn without pyplot, so the backend that a notebook or a terminal has chosen, which
# may not be importable here, does not matter to them; it is in place again for the user's own.
_first, _given = "matplotlib" not in sys.modules, os.environ.pop("MPLBACKEND", None)
try:
    import matplotlib.figure
    import matplotlib.font_manager
except Exception as error:  # a file of settings that cannot be read, a package that is missing
    words = f"{type(error).__name__}: {' '.join(str(error).split())}"
    raise UserError(
        f"matplotlib, which draws the pictures, cannot be imported ({words}): look at its settings "
        "(matplotlibrc, MPLCONFIGDIR), or install it again"
    ) from error
finally:
    if _given is not None:
        os.environ["MPLBACKEND"] = _given
if _first and _given:
    with contextlib.suppress(ValueError):  # there is no such backend
        matplotlib.rcParams["backend"] = _given
