"""A tensor times a scalar on the device, multiplied in float32 and rounded once.

PyTorch would first round the scalar to the tensor's 16 bits, an error of up to 0.4% of the whole gradient.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..backends import triton_configs as configs
from ..backends.triton_common import on_device

BLOCK = 2048
WARPS = 4


@triton.jit
def _scale_kernel(x_ptr, factor_ptr, y_ptr, size, BLOCK: tl.constexpr, IN_PLACE: tl.constexpr):
    factor = tl.load(factor_ptr)
    if IN_PLACE:  # noqa: SIM102, a constant and a tensor
        if factor == 1.0:  # the upstream gradient, on the device
            return
    step = tl.num_programs(0).to(tl.int64) * BLOCK
    for start in range(tl.program_id(0).to(tl.int64) * BLOCK, size, step):
        offsets = start + tl.arange(0, BLOCK).to(tl.int64)  # to the interpreter start is a number, of no width
        mask = offsets < size
        y = tl.load(x_ptr + offsets, mask=mask, other=0.0).to(tl.float32) * factor
        tl.store(y_ptr + offsets, y.to(y_ptr.dtype.element_ty), mask=mask)


def scale(x: Tensor, factor: Tensor, dtype: torch.dtype, *, in_place: bool) -> Tensor:
    """x contiguous, factor () float32 -> a new tensor of `dtype`, or x itself."""
    y = x if in_place else torch.empty(x.shape, dtype=dtype, device=x.device)
    programs = min(triton.cdiv(x.numel(), BLOCK), 4 * configs.persistent_programs(x.device, WARPS))
    with on_device(x):
        _scale_kernel[(programs,)](x, factor, y, x.numel(), BLOCK=BLOCK, IN_PLACE=in_place, num_warps=WARPS)
    return y
