"""Tables and plots from stored results: `python benchmarks/redraw.py benchmarks/results`."""

import sys

from emergence_kernels.bench.draw import main

if __name__ == "__main__":
    sys.exit(main())
