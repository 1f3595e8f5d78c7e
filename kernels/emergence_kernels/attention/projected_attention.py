"""Attention from its input on: the projection to queries, keys and values, their rotary embedding, and attention.

On Hopper the rotation is in the projection (csrc/cuda/feed_forward/rotary.cu) and, backward, in attention: with
X the bytes of q, and as many key heads as query heads, 4 X forward and 4 X backward are not moved.

Shapes: B sequences, T tokens, K features, H query heads, G key/value heads, D features of a head, R pairs that turn.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..backends import accumulating
from ..backends.checks import autocast, check_float, require
from ..backends.layout import rows_for_copies
from ..backends.library import operations
from ..backends.register_op import first_order
from ..backends.tracing import profiled, traced
from ..rotary.op import check_angles
from . import hopper
from .document_ranges import DocumentPlan
from .op import as_plan, checked, kernels_of
from .options import Options, Saved
from .rotary_attention import attention_of_qkv, gradient_of_qkv


@profiled
def projected_attention(
    x: Tensor,
    weight: Tensor,
    cos: Tensor,
    sin: Tensor,
    *,
    heads: int,
    kv_heads: int | None = None,
    causal: bool = True,
    scale: float | None = None,
    document_ids: Tensor | DocumentPlan | None = None,
    window: int | None = None,
    deterministic: bool = False,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    alibi: Tensor | None = None,
    main_grad: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """rotary_attention of the projection x weight^T, which nothing else reads.

    Args:
        x: (B, T, K). weight: ((H + 2 G) D, K): of the query heads, the key heads and the value heads.
        main_grad: float32 of the weight's shape: the weight's gradient is added to it, and the weight has none. Not in compiled
            graphs.
        others: as for rotary_attention.

    Returns:
        (B, T, H, D).

    Raises:
        ValueError: shapes, dtypes or devices do not match. BackendError: the named backend cannot run.
    """
    op = "projected_attention"
    x, weight = autocast(x, weight)
    check_float(op, x=x, weight=weight)
    kv_heads = heads if kv_heads is None else kv_heads
    require(
        heads > 0 and kv_heads > 0,
        lambda: f"{op}: {heads} query heads and {kv_heads} key heads; both must be positive",
    )
    count = heads + 2 * kv_heads
    accumulating.check_main_grad(op, main_grad, weight)
    require(
        x.dim() == 3 and weight.dim() == 2 and weight.shape[1] == x.shape[2] and weight.shape[0] % count == 0,
        lambda: (
            f"{op}: x has shape {tuple(x.shape)} and weight {tuple(weight.shape)}, expected (batch, seq, features) and "
            f"({count} * head_dim, features)"
        ),
    )
    plan = as_plan(document_ids)
    ids = None if plan is None else plan.ids
    options = Options(causal, scale, ids, window, deterministic, softcap, sinks, alibi)
    # They stand for the heads: shape, dtype and device are read
    q, k = (x.new_empty(()).expand(*x.shape[:2], n, weight.shape[0] // count) for n in (heads, kv_heads))
    check_angles(op, q, cos, sin)
    options, chosen = checked(op, q, k, k, options, plan, backend)
    compiling = traced()
    require(main_grad is None or not compiling, lambda: f"{op}: main_grad is not supported in compiled graphs")
    if not compiling and chosen == "cuda" and turns_in_product(q, x, cos, sin):
        return _Projected.apply(x, weight, cos, sin, main_grad, heads, kv_heads, *options.arguments(chosen))
    qkv = F.linear(x, weight) if main_grad is None else accumulating.linear(x, weight, main_grad)
    return attention_of_qkv(qkv, cos, sin, heads, kv_heads, options, plan, chosen, backend, overwrite=True)


def turns_in_product(q: Tensor, x: Tensor, cos: Tensor, sin: Tensor) -> bool:
    """Whether Hopper's product is to be taken. At head dim 128 it was not faster than the rotary kernel when it was timed
    (20261127-rotary-in-the-product.json)."""
    on_hopper = x.device.type == "cuda" and hopper.unsupported_reason(q) is None
    return on_hopper and q.shape[-1] == 64 and fits_product(q, x, cos, sin)


def fits_product(q: Tensor, x: Tensor, cos: Tensor, sin: Tensor) -> bool:
    """Whether Hopper's product takes these: pairs lie in one thread where all or half of a head turn."""
    R, D = cos.shape[-1], q.shape[-1]
    angles = all(t.dtype == torch.float32 and t.is_contiguous() and t.data_ptr() % 8 == 0 for t in (cos, sin))
    return (
        D in (64, 128)
        and R in (D // 2, D // 4)
        and cos.dim() == 2
        and angles
        and x.shape[-1] % 8 == 0
        and x.numel() > 0
    )


class _Projected(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        cos: Tensor,
        sin: Tensor,
        main_grad: Tensor | None,
        heads: int,
        kv_heads: int,
        *rest: Any,
    ) -> Tensor:
        options, backend = Options.parse(rest)
        x_NK = rows_for_copies(x)
        D = weight.shape[0] // (heads + 2 * kv_heads)
        qkv = torch.empty(*x.shape[:2], weight.shape[0] // D, D, dtype=x.dtype, device=x.device)
        turned = heads + kv_heads
        operations("cuda").linear_rotary.default(
            x_NK, rows_for_copies(weight), cos, sin, qkv.view(len(x_NK), -1), turned, D
        )
        out, lse = kernels_of(backend).forward(*qkv.split([heads, kv_heads, kv_heads], 2), options)
        ctx.save_for_backward(x_NK, weight, qkv, out, lse, cos, sin, *options.tensors())
        # main_grad is not saved for backward: it is changed in place, which autograd treats as an error
        ctx.rest = heads, kv_heads, main_grad, options.without_tensors(), backend
        return out

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x_NK, weight, qkv, out, lse, cos, sin, *tensors = ctx.saved_tensors
        heads, kv_heads, main_grad, options, backend = ctx.rest
        options = options.with_tensors(tensors)
        q, k, v = qkv.split([heads, kv_heads, kv_heads], 2)
        d_qkv = gradient_of_qkv(grad, Saved(q, k, v, out, lse), (cos, sin), "cuda", options, backend)
        d_NE = d_qkv.view(len(x_NK), -1)
        dw = accumulating.weight_gradient(main_grad, d_NE, x_NK, weight) if ctx.needs_input_grad[1] else None
        dx = (d_NE @ weight).view(*d_qkv.shape[:2], -1) if ctx.needs_input_grad[0] else None
        return dx, dw, *(None,) * (5 + len(options) + 1)
