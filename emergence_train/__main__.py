"""`python -m emergence_train` is the command line."""

import sys

from emergence_train.cli import main

if __name__ == "__main__":  # spawned tokenizing processes import this module too
    sys.exit(main())
