"""The module of each backend that computes rows of both losses."""

from types import ModuleType

from . import reference


def rows_of(backend: str) -> ModuleType:
    """The module of a backend that has fused_rows, forward_rows and backward_rows."""
    if backend == "torch":
        return reference
    if backend == "triton":
        from . import triton

        return triton
    from . import compiled

    return compiled
