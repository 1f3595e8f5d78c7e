"""Attention in PyTorch: scaled_dot_product_attention, with a mask only where one is needed.

What changes the scores (softcap, sinks, ALiBi) PyTorch's kernels do not have: written out, with (T, T) matrices.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..backends.checks import without_autocast
from .inputs import grouped, positive


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
    T = q_BTHD.shape[1]
    if not (softcap is None and sinks is None and alibi is None):
        seen = attention_mask(T, causal, document_ids, window, q_BTHD.device)
        position_T = torch.arange(T, device=q_BTHD.device)
        distance_TT = position_T[:, None] - position_T
        return dense_attention(
            q_BTHD, k_BTGD, v_BTGD, seen, distance_TT, scale=scale, softcap=softcap, sinks=sinks, alibi=alibi
        )
    # with a causal mask PyTorch's blocked kernel for CPUs gives NaN for a scale of 0 or below
    q_BTHD, scale, _ = positive(q_BTHD, scale)
    masked = document_ids is not None or window is not None
    mask = attention_mask(T, causal, document_ids, window, q_BTHD.device) if masked else None
    out_BHTD = F.scaled_dot_product_attention(
        q_BTHD.transpose(1, 2),
        k_BTGD.transpose(1, 2),
        v_BTGD.transpose(1, 2),
        attn_mask=mask,
        is_causal=causal and mask is None,
        scale=scale,
        enable_gqa=grouped(q_BTHD.shape[2], k_BTGD.shape[2]),
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
    """Attention of T queries to S keys in float32 (float64 for float64), by matrices of scores.

    Args:
        seen: True where a query may see a key, (T, S) or (B, 1, T, S); None: everywhere.
        distance: from a query to a key in positions, of either sign, (T, S) or (B, T, S).
        scale, softcap, sinks, alibi: as for op.attention.
    """
    D = q_BTHD.shape[3]
    dtype = torch.float64 if q_BTHD.dtype == torch.float64 else torch.float32
    with without_autocast(q_BTHD.device.type):  # which rounds the factors of float32 products
        q_BTGRD = q_BTHD.to(dtype).unflatten(2, (k_BSGD.shape[2], -1))  # R query heads of each key head
        scores_BHTS = torch.einsum("btgrd,bsgd->bgrts", q_BTGRD, k_BSGD.to(dtype)).flatten(1, 2)
        scores_BHTS = scores_BHTS * (D**-0.5 if scale is None else scale)
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
        p_BHTS = torch.softmax(scores_BHTS, -1)[..., : k_BSGD.shape[1]]
        p_BGRTS = p_BHTS.unflatten(1, (v_BSGD.shape[2], -1))
        return torch.einsum("bgrts,bsgd->btgrd", p_BGRTS, v_BSGD.to(dtype)).flatten(2, 3).to(v_BSGD.dtype)
