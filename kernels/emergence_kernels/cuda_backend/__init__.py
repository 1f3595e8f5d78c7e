"""Kernels in CUDA C++ (csrc/ of the repository), compiled once and loaded by any torch from 2.10 on."""
