"""Two repairs to Triton's CPU interpreter (seen in 3.6), for tests. Nothing here touches a compiled kernel.

It reads scalars with int(array of one element), an error since NumPy 2.4; and it converts float32 to bfloat16 by truncation,
where a GPU rounds to nearest, which would double every error in the tests.
"""

from typing import Any

import numpy as np


def _to_bfloat16(values: np.ndarray) -> np.ndarray:
    """float32 -> the upper 16 bits, rounded to nearest, ties to even."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32).astype(np.uint64)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded).astype(np.uint16)


def repair() -> None:
    import triton.language as tl
    from triton.runtime import interpreter

    patch_tensor = interpreter._patch_lang_tensor
    cast = interpreter.InterpreterBuilder.cast_impl

    def patched_tensor(tensor: Any, scope: Any) -> None:
        patch_tensor(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    def patched_cast(self: Any, src: Any, dst_type: Any) -> Any:
        if src.dtype.scalar == tl.float32 and dst_type.scalar == tl.bfloat16:
            return interpreter.TensorHandle(_to_bfloat16(src.data), dst_type.scalar)
        return cast(self, src, dst_type)

    interpreter._patch_lang_tensor = patched_tensor
    interpreter.InterpreterBuilder.cast_impl = patched_cast
