"""Shared by the operations: choice of the backend, compiled libraries, Triton's configurations, argument checks."""
