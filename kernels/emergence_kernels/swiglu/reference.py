"""SwiGLU in PyTorch. With s = sigmoid(gate):

y = gate s up        d_gate = dy up s (1 + gate (1 - s))        d_up = dy gate s
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..backends.register_op import first_order
from ..backends.tracing import traced


def swiglu(gate_up: Tensor) -> Tensor:
    """silu(gate) * up of (..., 2F), gate first; computed in float32 and rounded once."""
    if gate_up.device.type == "cpu" and not traced():
        wide = gate_up.to(torch.promote_types(gate_up.dtype, torch.float32))
        return _OneBuffer.apply(wide).to(gate_up.dtype)
    gate, up = gate_up.chunk(2, -1)
    if gate_up.dtype in (torch.float32, torch.float64):
        return F.silu(gate) * up
    return (F.silu(gate.float()) * up.float()).to(gate_up.dtype)


def gradient(dy: Tensor, gate_up: Tensor) -> Tensor:
    """Of gate and up, (..., 2F), by the formulas above; computed in float32 and rounded once."""
    wide = torch.promote_types(gate_up.dtype, torch.float32)
    gate, up = gate_up.to(wide).chunk(2, -1)
    grad, s = dy.to(wide), torch.sigmoid(gate)
    return torch.cat([grad * up * s * (1 + gate * (1 - s)), grad * gate * s], -1).to(gate_up.dtype)


class _OneBuffer(torch.autograd.Function):
    """The operations of autograd, bit for bit, without its concatenation of the two gradients: on a CPU passes over memory
    are the cost."""

    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        gate, up = gate_up.chunk(2, -1)
        activated = F.silu(gate)
        ctx.save_for_backward(gate_up, activated)
        return activated * up

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        gate_up, activated = ctx.saved_tensors
        gate, up = gate_up.chunk(2, -1)
        out = torch.empty(gate_up.shape, dtype=gate_up.dtype, device=gate_up.device)
        d_gate, d_up = out.chunk(2, -1)
        torch.mul(grad, activated, out=d_up)
        torch.ops.aten.silu_backward.grad_input(torch.mul(grad, up), gate, grad_input=d_gate)
        return out
