"""Attention in PyTorch: scaled_dot_product_attention, with a mask only where one is needed.

On a CPU short sequences of narrow heads are computed with the full (T, T) matrix of probabilities: PyTorch's blocked
kernel takes 1.5 times as long there. With P = softmax(scale q k^T + mask):

    out = P v,   dv = P^T dout,   dS = P * (dP - rowsum(P * dP)) with dP = dout v^T,   dq = scale dS k,   dk = scale dS^T q

What changes the scores (softcap, sinks, ALiBi) PyTorch's kernels do not have: written out, with (T, T) matrices.
"""

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def attention_mask(
    T: int, causal: bool, document_ids_BT: Tensor | None, window: int | None, device: torch.device
) -> Tensor | None:
    """Boolean, True where a query (row) may see a key (column): (T, T), or (B, 1, T, T) with documents."""
    position_T = torch.arange(T, device=device)
    distance_TT = position_T[:, None] - position_T[None, :]
    mask = None
    if causal:
        mask = distance_TT >= 0
    if window is not None:
        near_TT = distance_TT.abs() < window
        mask = near_TT if mask is None else mask & near_TT
    if document_ids_BT is not None:
        same_BTT = document_ids_BT[:, :, None] == document_ids_BT[:, None, :]
        mask = (same_BTT if mask is None else mask & same_BTT).unsqueeze(1)
    return mask


WHOLE_MAX_LENGTH, WHOLE_MAX_WIDTH = (
    128,
    32,
)  # measured on two cores with float32: for wider or longer inputs blocks are faster


def attention(
    q_BTHD: Tensor,
    k_BTGD: Tensor,
    v_BTGD: Tensor,
    *,
    causal: bool,
    scale: float | None,
    document_ids: Tensor | None,
    window: int | None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    alibi: Tensor | None = None,
) -> Tensor:
    T, D = q_BTHD.shape[1], q_BTHD.shape[3]
    if not (softcap is None and sinks is None and alibi is None):
        seen = attention_mask(T, causal, document_ids, window, q_BTHD.device)
        position_T = torch.arange(T, device=q_BTHD.device)
        distance_TT = position_T[:, None] - position_T
        return dense_attention(
            q_BTHD, k_BTGD, v_BTGD, seen, distance_TT, scale=scale, softcap=softcap, sinks=sinks, alibi=alibi
        )
    plain = causal and document_ids is None and window is None and q_BTHD.shape == k_BTGD.shape
    small = T <= WHOLE_MAX_LENGTH and D <= WHOLE_MAX_WIDTH and q_BTHD.dtype in (torch.float32, torch.float64)
    if plain and small and q_BTHD.device.type == "cpu" and not torch.compiler.is_compiling():
        return _Whole.apply(q_BTHD, k_BTGD, v_BTGD, D**-0.5 if scale is None else scale)
    masked = document_ids is not None or window is not None
    mask = attention_mask(T, causal, document_ids, window, q_BTHD.device) if masked else None
    out_BHTD = F.scaled_dot_product_attention(
        q_BTHD.transpose(1, 2),
        k_BTGD.transpose(1, 2),
        v_BTGD.transpose(1, 2),
        attn_mask=mask,
        is_causal=causal and mask is None,
        scale=scale,
        enable_gqa=q_BTHD.shape[2] != k_BTGD.shape[2],
    )
    return out_BHTD.transpose(1, 2)


def dense_attention(
    q_BTHD: Tensor,
    k_BSGD: Tensor,
    v_BSGD: Tensor,
    seen: Tensor | None,
    distance: Tensor,
    *,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    alibi: Tensor | None = None,
) -> Tensor:
    """Attention of T queries to S keys by matrices of scores, in float32 (float64 for float64).

    Args:
        seen: True where a query may see a key, (T, S) or (B, 1, T, S); None: everywhere.
        distance: from a query to a key in positions, of either sign, (T, S) or (B, T, S).
        scale, softcap, sinks, alibi: as for op.attention.
    """
    H, D = q_BTHD.shape[2:]
    dtype = torch.float64 if q_BTHD.dtype == torch.float64 else torch.float32
    k_BSHD, v_BSHD = (t.repeat_interleave(H // t.shape[2], 2) for t in (k_BSGD, v_BSGD))
    scores_BHTS = torch.einsum("bthd,bshd->bhts", q_BTHD, k_BSHD).to(dtype) * (D**-0.5 if scale is None else scale)
    if softcap is not None:
        scores_BHTS = softcap * torch.tanh(scores_BHTS / softcap)
    if alibi is not None:
        distance_BHTS = distance.abs().to(dtype).view(-1, 1, *distance.shape[-2:])
        scores_BHTS = scores_BHTS - alibi.to(dtype)[:, None, None] * distance_BHTS
    if seen is not None:
        scores_BHTS = scores_BHTS.masked_fill(~seen, -torch.inf)
    if sinks is not None:
        sinks_BHT1 = sinks.to(dtype)[:, None, None].expand(*scores_BHTS.shape[:3], 1)
        scores_BHTS = torch.cat([scores_BHTS, sinks_BHT1], -1)
    p_BHTS = torch.softmax(scores_BHTS, -1)[..., : k_BSGD.shape[1]].to(v_BSGD.dtype)
    return torch.einsum("bhts,bshd->bthd", p_BHTS, v_BSHD)


@functools.lru_cache(maxsize=8)
def _later(T: int, dtype: torch.dtype) -> Tensor:
    """-inf where a key (column) comes after the query (row), (T, T)."""
    return torch.full((T, T), -torch.inf, dtype=dtype).triu_(1)


class _Whole(torch.autograd.Function):
    """Causal attention of as many key heads as query heads, with the probabilities saved for the backward pass."""

    @staticmethod
    def forward(ctx: Any, q_BTHD: Tensor, k_BTHD: Tensor, v_BTHD: Tensor, scale: float) -> Tensor:
        B, T, H, D = q_BTHD.shape
        q, k, v = (x.transpose(1, 2).reshape(B * H, T, D) for x in (q_BTHD, k_BTHD, v_BTHD))
        p = torch.softmax(torch.baddbmm(_later(T, q.dtype), q, k.transpose(1, 2), alpha=scale), -1)
        ctx.save_for_backward(q, k, v, p)
        ctx.scale = scale
        return torch.bmm(p, v).view(B, H, T, D).transpose(1, 2)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_BTHD: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, p = ctx.saved_tensors
        B, T, H, D = grad_BTHD.shape
        grad = grad_BTHD.transpose(1, 2).reshape(B * H, T, D)
        dp = torch.bmm(grad, v.transpose(1, 2))
        ds = torch.ops.aten._softmax_backward_data(dp, p, -1, p.dtype).mul_(ctx.scale)
        gradients = torch.bmm(ds, k), torch.bmm(ds.transpose(1, 2), q), torch.bmm(p.transpose(1, 2), grad)
        return *(x.view(B, H, T, D).transpose(1, 2) for x in gradients), None
