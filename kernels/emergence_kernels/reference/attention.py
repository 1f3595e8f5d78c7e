"""Attention in PyTorch: scaled_dot_product_attention, with a mask only where one is needed."""

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


def attention(
    q_BTHD: Tensor,
    k_BTGD: Tensor,
    v_BTGD: Tensor,
    *,
    causal: bool,
    scale: float | None,
    document_ids: Tensor | None,
    window: int | None,
) -> Tensor:
    T = q_BTHD.shape[1]
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
