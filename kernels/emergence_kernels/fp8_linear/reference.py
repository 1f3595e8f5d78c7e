"""Quantisation to e4m3 with a scale per row, and products of such operands, in PyTorch.

A row's scale is the least power of two s >= 2^-126 with max |x| <= 448 s, and its values are x / s rounded to e4m3 (1 sign, 4
exponent and 3 mantissa bits, at most 448). A power of two changes no mantissa: the rounding to e4m3 is the only one, and any
division or multiplication gives the same bits. A row with an infinity or a NaN has zeros and the scale NaN, so that what is
computed from it is NaN too, on a GPU whose conversion saturates as well.
"""

import torch
from torch import Tensor

E4M3 = torch.float8_e4m3fn
LEAST_EXPONENT = -126  # of a scale: float32's least normal number


def scales_of(amax: Tensor) -> Tensor:
    """The scales of rows whose largest magnitudes are `amax`, float32."""
    mantissa, exponent = torch.frexp(amax.float())  # amax = mantissa 2^exponent, and 448 = 0.875 x 2^9
    power = torch.where(mantissa == 0, LEAST_EXPONENT, exponent - 9 + (mantissa > 0.875)).clamp_min(LEAST_EXPONENT)
    return torch.where(amax.isfinite(), torch.ldexp(torch.ones_like(mantissa), power), torch.nan)


def quantize_rows(x_NK: Tensor) -> tuple[Tensor, Tensor]:
    """-> e4m3 (N, K), scales (N,)."""
    scales_N = scales_of(torch.linalg.vector_norm(x_NK, torch.inf, dim=1))
    values_NK = torch.where(scales_N[:, None].isnan(), 0.0, x_NK.float() / scales_N[:, None])
    return values_NK.to(E4M3), scales_N


def quantize_columns(w_NK: Tensor) -> tuple[Tensor, Tensor]:
    """The rows of the transpose: -> e4m3 (K, N), scales (K,)."""
    return quantize_rows(w_NK.t())


def product(a_MK: Tensor, a_scales_M: Tensor, b_NK: Tensor, b_scales_N: Tensor, dtype: torch.dtype) -> Tensor:
    """a b^T of quantised operands, (M, N): added in float32, scaled, rounded to `dtype` once."""
    if a_MK.is_cuda:  # e4m3 is exact in bfloat16
        sums_MN = torch.mm(a_MK.bfloat16(), b_NK.bfloat16().t(), out_dtype=torch.float32)
    else:
        sums_MN = a_MK.float() @ b_NK.float().t()
    return (sums_MN * a_scales_M[:, None] * b_scales_N).to(dtype)
