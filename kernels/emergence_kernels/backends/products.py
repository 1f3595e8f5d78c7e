"""Matrix products of 16-bit tensors with float32 results: cuBLAS's on a GPU, widened operands on a CPU."""

import torch
from torch import Tensor

NARROW = (torch.bfloat16, torch.float16)


def logits(x_RD: Tensor, w_VD: Tensor, out_RV: Tensor) -> None:
    """out = x w^T in out's dtype."""
    if x_RD.dtype in NARROW and not x_RD.is_cuda:
        torch.mm(x_RD.to(out_RV.dtype), w_VD.t().to(out_RV.dtype), out=out_RV)
    elif x_RD.dtype in NARROW and out_RV.dtype == torch.float32:
        torch.mm(x_RD, w_VD.t(), out_dtype=torch.float32, out=out_RV)
    else:
        torch.mm(x_RD, w_VD.t(), out=out_RV)


def add_to_dw(dw_VD: Tensor | None, dz_RV: Tensor, x_RD: Tensor, *, single: bool) -> Tensor:
    """dw + dz^T x, where None is 0.

    Chunks are summed in float32. A single chunk is rounded once, by the product itself, except to float16, which a sum
    over tokens may exceed.
    """
    if dz_RV.dtype not in NARROW or (single and dz_RV.dtype != torch.float16):
        return dz_RV.t() @ x_RD if dw_VD is None else dw_VD.addmm_(dz_RV.t(), x_RD)
    if not dz_RV.is_cuda:
        product = dz_RV.t().float() @ x_RD.float()
        return product if dw_VD is None else dw_VD.add_(product)
    if dw_VD is None:
        return torch.mm(dz_RV.t(), x_RD, out_dtype=torch.float32)
    return torch.addmm(dw_VD, dz_RV.t(), x_RD, out_dtype=torch.float32, out=dw_VD)


def finish_dw(dw_VD: Tensor | None, weight_VD: Tensor) -> Tensor:
    """dW as it was summed; zeros if there was no chunk."""
    return torch.zeros_like(weight_VD) if dw_VD is None else dw_VD


def linear_apart(x_NK: Tensor, w_DK: Tensor) -> Tensor:
    """x w^T, whose rows another product reads by columns (dz^T x), on a CPU.

    Rows of a multiple of 1 KiB would begin in few sets of its cache, and columns drive each other out: 512 x 512 x 96 took 316
    microseconds so, and takes 262 with a line of the cache between rows.
    """
    N, D, line = x_NK.shape[0], w_DK.shape[0], 64 // x_NK.element_size()
    out_ND = x_NK.new_empty(N, D + line * (D % (16 * line) == 0))[:, :D]
    return torch.mm(x_NK, w_DK.t(), out=out_ND)
