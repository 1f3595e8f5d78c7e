"""`python -m emergence_train` is the command line."""

from emergence_train.cli import run

if __name__ == "__main__":  # spawned tokenizing processes import this module too
    run()
