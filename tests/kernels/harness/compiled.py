"""Whether the kernels under test are compiled here, and by what (tests/kernels/conftest.py has the ways)."""

import os
from pathlib import Path

import torch

HARNESS = Path(__file__).parent
CUDA = torch.cuda.is_available()
PTX = 0 if CUDA else int(os.environ.get("EMERGENCE_TEST_PTX", "0"))
NVCC = "" if CUDA else os.environ.get("EMERGENCE_TEST_NVCC", "")
COMPILED = bool(CUDA or PTX or NVCC)  # fast enough for loops over several blocks
