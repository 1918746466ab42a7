"""The program: `python main.py --help` says what it does."""

import signal
import sys

from cifar_jax.parallel import cpu

if __name__ == "__main__":
    cpu.restart()
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback out of the imports below

from cifar_jax.cli.main import main

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(main(sys.argv))
