"""Kernels in C++ (csrc/ of the repository), compiled once and loaded by any torch from 2.10 on: for CUDA and for CPUs."""
