"""The command: `python main.py --help` lists what it can do."""

import signal
import sys

from cifar_jax.parallel import cpu

if __name__ == "__main__":
    cpu.restart()
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C during the imports shows no traceback

from cifar_jax.cli.main import main

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(main(sys.argv))
