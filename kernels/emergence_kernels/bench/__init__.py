"""Measures every operation beside its peers: `python -m emergence_kernels.bench`, or main() from elsewhere."""

from .run import main

__all__ = ["main"]
