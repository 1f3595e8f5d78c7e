"""Helpers of all Triton kernels and their launchers."""

from contextlib import nullcontext

import torch
import triton
import triton.language as tl

from . import triton_interpreter as interpreter
from .dispatch import interpreting

# The interpreter computes some bfloat16 products wrongly: in it every operand is converted to float32 first.
WIDEN = tl.constexpr(interpreting())
LOG2E = tl.constexpr(1.4426950408889634)  # exp x = exp2 (x log2 e): exp2 is one instruction, exp is not
LOW = tl.constexpr(-1.0e30)  # value of masked entries; finite, so that 0 * LOW is 0


@triton.jit
def tanh(x):
    """tanh without libdevice; a series near 0, where the quotient of exponentials would cancel."""
    a = tl.abs(x)
    e = tl.exp(-2.0 * a)
    far = (1.0 - e) / (1.0 + e)
    s = a * a
    near = a * (1.0 + s * (-1.0 / 3 + s * (2.0 / 15 + s * (-17.0 / 315 + s * (62.0 / 2835)))))
    t = tl.where(a < 0.25, near, far)
    return tl.where(x < 0, -t, t)


def on_device(tensor: torch.Tensor):
    """Context that makes the tensor's device the current one, which launches use."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def dot_precision(dtype: torch.dtype) -> str:
    """Precision of tl.dot for float32: PyTorch's setting for matrix products."""
    if dtype == torch.float32 and torch.get_float32_matmul_precision() != "highest":
        return "tf32"
    return "ieee"


if interpreting():
    interpreter.repair()
