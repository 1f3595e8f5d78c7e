"""Triton kernels, one operation a file. Import these modules only where Triton is installed."""
