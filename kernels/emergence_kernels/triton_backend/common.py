"""What every kernel's launcher needs."""

from contextlib import nullcontext

import torch
import triton.language as tl

from ..dispatch import interpreting
from . import interpreter

# The interpreter computes bfloat16 products wrongly in places: there every operand is widened to float32 first.
WIDEN = tl.constexpr(interpreting())


def on_device(tensor: torch.Tensor):
    """Launches go to the current device, which need not be the tensor's."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def dot_precision(dtype: torch.dtype) -> str:
    """How tl.dot multiplies float32: as PyTorch's matrix products are set to."""
    if dtype == torch.float32 and torch.get_float32_matmul_precision() != "highest":
        return "tf32"
    return "ieee"


if interpreting():
    interpreter.mend()
