"""matplotlib, imported whatever backend the user has chosen: the other files take it from here."""

import contextlib
import os
import sys

from cifar_jax.errors import UserError

# Figures are drawn without pyplot, so the backend that a notebook or a terminal has chosen, which
# may not be importable here, does not matter to them; it is in place again for the user's own.
_first, _given = "matplotlib" not in sys.modules, os.environ.pop("MPLBACKEND", None)
try:
    import matplotlib
    from matplotlib import font_manager, rcsetup
    from matplotlib.axes import Axes
    from matplotlib.colors import LinearSegmentedColormap, PowerNorm
    from matplotlib.figure import Figure
    from matplotlib.ft2font import FT2Font
    from matplotlib.patches import Rectangle
    from matplotlib.text import Text
    from matplotlib.ticker import PercentFormatter
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

__all__ = [
    "Axes",
    "FT2Font",
    "Figure",
    "LinearSegmentedColormap",
    "PercentFormatter",
    "PowerNorm",
    "Rectangle",
    "Text",
    "font_manager",
    "matplotlib",
    "rcsetup",
]
