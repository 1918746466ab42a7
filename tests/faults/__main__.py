"""`python -m tests.faults`: see `tests.faults.trials`."""

import sys

from tests.faults.trials import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
