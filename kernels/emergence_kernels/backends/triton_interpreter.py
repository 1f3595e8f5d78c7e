"""Repairs to Triton's CPU interpreter (seen in 3.6), for tests. Nothing here touches a compiled kernel.

It reads scalars with int(array of one element), an error since NumPy 2.4. It converts float32 to bfloat16 by truncation, where a
GPU rounds to nearest, which would double every error in the tests; bfloat16's subnormal numbers to others of float32; and float32
to e4m3 with ties away from zero, without the carry into the exponent, and subnormal numbers to larger ones.
"""

from typing import Any

import numpy as np


def _to_bfloat16(values: np.ndarray) -> np.ndarray:
    """float32 -> the upper 16 bits, rounded to nearest, ties to even."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32).astype(np.uint64)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded).astype(np.uint16)


def _from_bfloat16(bits: np.ndarray) -> np.ndarray:
    """bfloat16's bits -> float32, exactly."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


E4M3 = np.array(
    [m / 8 * 2.0**-6 if e == 0 else (1 + m / 8) * 2.0 ** (e - 7) for e in range(16) for m in range(8)][:127]
)


def _to_e4m3(values: np.ndarray) -> np.ndarray:
    """float32 -> the nearest e4m3 value's code, ties to even; larger ones to 448, as cvt.rn.satfinite does."""
    sizes, middles = np.abs(values), (E4M3[1:] + E4M3[:-1]) / 2
    above, below = np.searchsorted(middles, sizes, "left"), np.searchsorted(middles, sizes, "right")
    codes = np.where(above % 2 == 0, above, below)  # they differ at a tie, where one of the two is even
    return np.where(np.isnan(values), 127, codes + 128 * np.signbit(values)).astype(np.uint8)


def repair() -> None:
    import triton.language as tl
    from triton.runtime import interpreter

    patch_tensor = interpreter._patch_lang_tensor
    cast = interpreter.InterpreterBuilder.cast_impl
    cast_to_8_bits = interpreter.InterpreterBuilder.create_fp_to_fp

    def patched_tensor(tensor: Any, scope: Any) -> None:
        patch_tensor(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    def patched_cast(self: Any, src: Any, dst_type: Any) -> Any:
        if src.dtype.scalar == tl.float32 and dst_type.scalar == tl.bfloat16:
            return interpreter.TensorHandle(_to_bfloat16(src.data), dst_type.scalar)
        if src.dtype.scalar == tl.bfloat16 and dst_type.scalar == tl.float32:
            return interpreter.TensorHandle(_from_bfloat16(src.data), dst_type.scalar)
        return cast(self, src, dst_type)

    def patched_cast_to_8_bits(self: Any, src: Any, dst_type: Any, rounding: Any) -> Any:
        if src.dtype.scalar == tl.float32 and dst_type.scalar == tl.float8e4nv:
            return interpreter.TensorHandle(_to_e4m3(src.data), dst_type.scalar)
        return cast_to_8_bits(self, src, dst_type, rounding)

    interpreter._patch_lang_tensor = patched_tensor
    interpreter.InterpreterBuilder.cast_impl = patched_cast
    interpreter.InterpreterBuilder.create_fp_to_fp = patched_cast_to_8_bits
