"""SwiGLU in the products round it, on Hopper, by csrc/cuda/feed_forward (products.h has the way it works).

Of a layer's two products before and after the activation, forward computes the first, and backward the one of the second's
gradient: what the activation reads and writes does not go through memory once more.
"""

import torch
from torch import Tensor

from ..backends import library
from ..backends.layout import rows_for_copies
from ..backends.library import operations

DTYPES = (torch.bfloat16, torch.float16)


def unsupported_reason(x: Tensor, gate_up_weight: Tensor, down_weight: Tensor) -> str | None:
    """The reason why these kernels do not take a layer, or None.

    Args:
        x: (..., K). gate_up_weight: (2F, K). down_weight: (D, F).
    """
    dtypes = {x.dtype, gate_up_weight.dtype, down_weight.dtype}
    if len(dtypes) > 1 or x.dtype not in DTYPES:
        return f"Hopper's products support bfloat16 and float16, not {' and '.join(sorted(map(str, dtypes)))}"
    K, (D, F) = x.shape[-1], down_weight.shape
    if K % 8 or D % 8 or F % 8:
        return f"Hopper's products need features in multiples of 8, not {K}, {F} and {D}"
    if reason := library.unsupported_reason("cuda", x.device):
        return reason
    if x.device.type == "cuda" and not library.is_hopper(x.device):
        return "Hopper's products run on compute capability 9.0 only"
    return None


def forward(x_NK: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """-> gate_up (N, 2F) = x weight^T, and y (N, F) = silu(gate) up of what gate and up are rounded to, in float32.

    Args:
        x_NK: (N, K). weight: (2F, K), the gate's features first.

    Raises:
        RuntimeError: shapes or dtypes do not fit (unsupported_reason).
    """
    N, F = x_NK.shape[0], weight.shape[0] // 2
    gate_up = torch.empty(N, 2 * F, dtype=x_NK.dtype, device=x_NK.device)
    y = torch.empty(N, F, dtype=x_NK.dtype, device=x_NK.device)
    operations("cuda").linear_swiglu.default(rows_for_copies(x_NK), rows_for_copies(weight), gate_up, y)
    return gate_up, y


def backward(dy_ND: Tensor, down_weight: Tensor, gate_up: Tensor) -> Tensor:
    """-> the gradient of gate and up, (N, 2F), of y down_weight^T, whose gradient is dy.

    That of y, dy down_weight, is rounded to the dtype in between, as it is where it is stored.

    Args:
        dy_ND: (N, D). down_weight: (D, F). gate_up: (N, 2F), as forward returns it.

    Raises:
        RuntimeError: shapes or dtypes do not fit.
    """
    d_gate_up = torch.empty(gate_up.shape, dtype=gate_up.dtype, device=gate_up.device)
    operations("cuda").linear_swiglu_backward.default(
        rows_for_copies(dy_ND), rows_for_copies(down_weight), rows_for_copies(gate_up), d_gate_up
    )
    return d_gate_up
