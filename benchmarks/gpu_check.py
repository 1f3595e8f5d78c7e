"""Correctness of the kernels on this machine's GPU: all of tests/kernels, compiled, and what only a GPU can show."""

import os
import sys
from pathlib import Path


def main() -> int:
    try:
        import pytest
        import torch
    except ImportError as error:
        print(f"gpu-check: {error.name} is not installed (benchmarks/README.md says how, offline too)", file=sys.stderr)
        return 2
    if not torch.cuda.is_available():
        print("gpu-check: PyTorch sees no CUDA device here", file=sys.stderr)
        return 2
    os.environ.pop("TRITON_INTERPRET", None)
    os.environ.pop("EMERGENCE_KERNELS_BACKEND", None)
    root = Path(__file__).resolve().parent.parent
    print(f"gpu-check: {torch.cuda.get_device_name()}, torch {torch.__version__}", flush=True)
    options = ["-q", "-m", "not slow", "-p", "no:cacheprovider", "--rootdir", str(root)]
    return int(pytest.main([*options, *sys.argv[1:], str(root / "tests" / "kernels")]))


if __name__ == "__main__":
    sys.exit(main())
