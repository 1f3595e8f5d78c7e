"""Scaled dot-product attention for training: causal or full, grouped queries, documents, sliding window."""

import torch
from torch import Tensor

from ..checks import check_float, require
from ..dispatch import resolve_backend
from ..reference.attention import attention as attention_torch


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = True,
    scale: float | None = None,
    document_ids: Tensor | None = None,
    window: int | None = None,
    deterministic: bool = False,
    backend: str | None = None,
) -> Tensor:
    """softmax(scale * q k^T + mask) v, with the softmax in float32.

    Args:
        q: (B, T, H, D).
        k, v: (B, T, G, D) where G divides H: query head h reads key/value head h // (H // G) (GQA; MQA is G = 1).
        causal: query i sees keys j <= i.
        scale: of the scores; None means 1 / sqrt(D).
        document_ids: (B, T) integers; a query sees only keys of the same id. None: one document.
        window: query i sees keys with |i - j| < window (with causal: itself and the window - 1 before it).
        deterministic: two backward passes give the same bits.
        backend: "triton", "flash", "torch" or "auto"; None reads EMERGENCE_KERNELS_BACKEND.

    Returns:
        (B, T, H, D). Every query sees itself, so no row is empty.

    Raises:
        ValueError: shapes, dtypes or devices do not match. BackendError: the named backend cannot run.
    """
    check_float("attention", q=q, k=k, v=v)
    require(q.dim() == 4, f"attention: q must be (batch, seq, heads, head_dim), got shape {tuple(q.shape)}")
    require(k.shape == v.shape, f"attention: k has shape {tuple(k.shape)} but v has {tuple(v.shape)}")
    B, T, H, D = q.shape
    require(
        k.dim() == 4 and k.shape[0] == B and k.shape[1] == T and k.shape[3] == D,
        f"attention: k has shape {tuple(k.shape)}, expected ({B}, {T}, key heads, {D}) to match q",
    )
    G = k.shape[2]
    require(G > 0 and H % G == 0, f"attention: {H} query heads cannot share {G} key heads: {G} must divide {H}")
    require(window is None or window >= 1, f"attention: window must be at least 1, got {window}")
    if document_ids is not None:
        require(
            tuple(document_ids.shape) == (B, T),
            f"attention: document_ids have shape {tuple(document_ids.shape)}, expected ({B}, {T})",
        )
        require(
            document_ids.dtype in (torch.int32, torch.int64),
            f"attention: document_ids have dtype {document_ids.dtype}; expected int32 or int64",
        )
        require(
            document_ids.device == q.device, f"attention: document_ids are on {document_ids.device}, q on {q.device}"
        )
    resolve_backend(backend, "attention", q.device)
    return attention_torch(q, k, v, causal=causal, scale=scale, document_ids=document_ids, window=window)
