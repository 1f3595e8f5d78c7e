"""How main gradients are divided to be reduced one by one: training divides them so, plans count with it.

A module of its own, since it is read where nothing but torch is installed (the GPU tests of training/early_reduction.py).
"""

REDUCED_PARTS = 8  # at most, of the matrices in blocks
LEAST_REDUCED = 1 << 24  # elements of a part: 64 MiB of gradients, below which latency counts
