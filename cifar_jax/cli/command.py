"""Starts the program: `python main.py` in a clone, `cifar_jax` where the package is installed."""

import signal
import sys

from cifar_jax.parallel import cpu


def run() -> None:
    """Runs the command line of this process and exits with its code."""
    cpu.restart()
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C during the imports shows no traceback
    from cifar_jax.cli.main import main

    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(main(sys.argv))
