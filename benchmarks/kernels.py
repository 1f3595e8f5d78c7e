"""The kernels against their peers. The same as `emergence-train bench`; see benchmarks/README.md."""

import sys

from emergence_kernels.bench import main

if __name__ == "__main__":
    sys.exit(main())
