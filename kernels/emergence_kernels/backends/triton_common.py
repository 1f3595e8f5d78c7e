"""What every kernel's launcher needs."""

from contextlib import nullcontext

import torch
import triton
import triton.language as tl

from . import triton_interpreter as interpreter
from .dispatch import interpreting

# The interpreter computes bfloat16 products wrongly in places: there every operand is widened to float32 first.
WIDEN = tl.constexpr(interpreting())
LOG2E = tl.constexpr(1.4426950408889634)  # exp x = exp2 (x log2 e): an instruction of its own, which exp is not
LOW = tl.constexpr(-1.0e30)  # in the place of what is not there; finite, so that 0 * LOW is 0


@triton.jit
def tanh(x):
    """Without libdevice; a series near 0, where the quotient of exponentials would cancel."""
    a = tl.abs(x)
    e = tl.exp(-2.0 * a)
    far = (1.0 - e) / (1.0 + e)
    s = a * a
    near = a * (1.0 + s * (-1.0 / 3 + s * (2.0 / 15 + s * (-17.0 / 315 + s * (62.0 / 2835)))))
    t = tl.where(a < 0.25, near, far)
    return tl.where(x < 0, -t, t)


def on_device(tensor: torch.Tensor):
    """Launches go to the current device, which need not be the tensor's."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def dot_precision(dtype: torch.dtype) -> str:
    """How tl.dot multiplies float32: as PyTorch's matrix products are set to."""
    if dtype == torch.float32 and torch.get_float32_matmul_precision() != "highest":
        return "tf32"
    return "ieee"


if interpreting():
    interpreter.repair()
