"""Attention on Hopper by csrc/attention_hopper.cu and attention_hopper_backward.cu, as triton_backend/attention.py offers it."""

import torch
from torch import Tensor

from .library import operations

HEAD_DIMS = (64, 128)
DTYPES = (torch.bfloat16, torch.float16)
# Rows and columns of blocks, as in the sources; of queries by head dim.
BLOCK_Q = {64: 192, 128: 128}
BLOCK_K = 128
COLUMNS = 64  # of backward's tiles


def why_not(q: Tensor) -> str | None:
    """The reason why these kernels do not take q, or None."""
    if q.dtype not in DTYPES:
        return f"Hopper's kernels take bfloat16 and float16, not {q.dtype}"
    if q.shape[-1] not in HEAD_DIMS:
        return f"Hopper's kernels take head dims 64 and 128, not {q.shape[-1]}"
    if q.shape[0] * q.shape[2] > 65535:
        return f"Hopper's kernels take at most 65535 heads in a batch, not {q.shape[0] * q.shape[2]}"
    if q.device.type == "cuda" and torch.cuda.get_device_capability(q.device) != (9, 0):
        return "Hopper's kernels run on compute capability 9.0 alone"
    return None


def _for_copies(t: Tensor) -> Tensor:
    """A tensor that TMA can read: adjacent features, starts and strides at multiples of 16 bytes, nothing expanded."""
    size = t.element_size()
    strides = [t.stride(d) * size for d in range(3) if t.shape[d] > 1]
    taken = t.stride(3) == 1 and t.data_ptr() % 16 == 0 and all(s > 0 and s % 16 == 0 for s in strides)
    return t if taken else t.clone(memory_format=torch.contiguous_format)


def key_ranges(ids_BT: Tensor, rows: int, columns: int) -> Tensor:
    """(B, blocks of `rows` queries, 4) int32: [first, last) of the blocks of `columns` keys that may share an id with the
    queries, and [first, last) of those that share one single id with all of them.

    Exact for documents packed in order, safe for ids in any order.
    """
    (row_low, row_high), (low, high) = _bounds(ids_BT, rows), _bounds(ids_BT, columns)
    index = torch.arange(low.shape[1], device=ids_BT.device)

    def span(which: Tensor) -> list[Tensor]:
        return [torch.where(which, index, low.shape[1]).amin(-1), torch.where(which, index + 1, 0).amax(-1)]

    overlap = (row_low[:, :, None] <= high[:, None, :]) & (low[:, None, :] <= row_high[:, :, None])
    single = (row_low == row_high)[:, :, None] & (low == high)[:, None, :]
    same = single & (row_low[:, :, None] == low[:, None, :])
    first, last = span(same)
    last = torch.where(same.sum(-1) == last - first, last, first)  # none where others lie in between
    return torch.stack([*span(overlap), first, last], -1).to(torch.int32).contiguous()


def _bounds(ids_BT: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The least and the greatest id of each block of `size` positions."""
    B, T = ids_BT.shape
    blocks = -(-T // size)
    padded = torch.cat([ids_BT, ids_BT[:, -1:].expand(B, blocks * size - T)], 1).view(B, blocks, size)
    return padded.amin(-1), padded.amax(-1)


def _positive(q: Tensor, scale: float | None) -> tuple[Tensor, float, int]:
    """q, scale, sign: the kernels take maxima before they scale, so a scale's sign is q's."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    if scale > 0:
        return q, scale, 1
    sign = -1 if scale < 0 else 0
    return q * sign, -scale or 1.0, sign


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    causal: bool,
    scale: float | None,
    document_ids: Tensor | None,
    window: int | None,
) -> tuple[Tensor, Tensor]:
    """-> out (B, T, H, D), lse (B, H, T) float32, in base 2 as exp2 wants it."""
    B, T, H, D = q.shape
    q, scale, _ = _positive(q, scale)
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    lse = torch.empty(B, H, T, dtype=torch.float32, device=q.device)
    ids = ranges = None
    if document_ids is not None and B * T > 0:
        ids = document_ids.to(torch.int64).contiguous()
        ranges = key_ranges(ids, BLOCK_Q[D], BLOCK_K)
    operations("cuda").attention_hopper.default(
        *map(_for_copies, (q, k, v)), out, lse, ids, ranges, causal, scale, min(window or 0, T)
    )
    return out, lse


def backward(
    do: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    causal: bool,
    scale: float | None,
    document_ids: Tensor | None,
    window: int | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """-> dq, dk, dv. Every sum has a fixed order: two passes give the same bits."""
    B, T, H, D = q.shape
    q, scale, sign = _positive(q, scale)
    dq, dk, dv = (torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in (q, k, v))
    padded = -(-T // BLOCK_Q[D]) * BLOCK_Q[D]
    statistics = torch.empty(B, H, padded, 2, dtype=torch.float32, device=q.device)
    ids = of_queries = of_keys = None
    if document_ids is not None and B * T > 0:
        ids = document_ids.to(torch.int64).contiguous()
        of_queries, of_keys = key_ranges(ids, BLOCK_Q[D], COLUMNS), key_ranges(ids, BLOCK_K, COLUMNS)
    operations("cuda").attention_hopper_backward.default(
        *map(_for_copies, (do, q, k, v)), out.contiguous(), lse, statistics, dq, dk, dv, ids, of_queries, of_keys, causal,
        scale, min(window or 0, T),
    )  # fmt: skip
    return dq if sign == 1 else dq * sign, dk, dv
