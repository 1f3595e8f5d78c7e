"""Attention on Hopper by csrc/cuda/attention/hopper_forward.cu and hopper_backward.cu, with the interface of triton.py."""

import torch
from torch import Tensor

from ..backends.library import is_hopper, operations
from .document_ranges import Blocks
from .inputs import aligned, numbered, positive
from .options import Angles, Gradients, Options, Saved, empty_gradients

HEAD_DIMS = (64, 128)
DTYPES = (torch.bfloat16, torch.float16)
# Rows and columns of blocks, as in the sources. Backward's rows by head dim; forward has 192 at head dim 64 from LONG positions:
# for shorter sequences the blocks on the diagonal would be too large a share (a third of the work at 1,024).
BLOCK_Q = {64: 192, 128: 128}
LONG = 2049
BLOCK_K = 128
COLUMNS = 64  # of backward's tiles
COLUMNS_OF_ALL = {64: 128, 128: 64}  # where dq, dk and dv are computed at once, by head dim


def rows_of_forward(head_dim: int, length: int) -> int:
    """Number of queries of a block."""
    return 192 if head_dim == 64 and length >= LONG else 128


def _ranges_of_forward(q: Tensor) -> Blocks:
    return rows_of_forward(q.shape[-1], q.shape[1]), BLOCK_K, 4


def _ranges_of_keys(q: Tensor, deterministic: bool) -> Blocks:
    return BLOCK_K, COLUMNS if deterministic else COLUMNS_OF_ALL[q.shape[-1]], 4


def _ranges_of_queries(q: Tensor) -> Blocks:
    return BLOCK_Q[q.shape[-1]], COLUMNS, 4


def document_blocks(q: Tensor, options: Options, backward: bool) -> list[Blocks]:
    """The ranges that forward reads, and backward too."""
    deterministic = [_ranges_of_queries(q)] if options.deterministic else []
    return [_ranges_of_forward(q), *([_ranges_of_keys(q, options.deterministic), *deterministic] if backward else [])]


def unsupported_reason(q: Tensor) -> str | None:
    """The reason why these kernels do not take q, or None."""
    if q.dtype not in DTYPES:
        return f"Hopper's kernels support bfloat16 and float16, not {q.dtype}"
    if q.shape[-1] not in HEAD_DIMS:
        return f"Hopper's kernels support head dims 64 and 128, not {q.shape[-1]}"
    if q.device.type == "cuda" and not is_hopper(q.device):
        return "Hopper's kernels run on compute capability 9.0 only"
    return None


def rotates_back(cos: Tensor) -> bool:
    """Whether backward rotates dq and dk back by itself: it needs both features of a pair in one thread."""
    return cos.shape[-1] % 8 == 0


def _angles(angles: Angles | None) -> tuple[Tensor | None, Tensor | None]:
    """cos and sin as the operator takes them."""
    if angles is None:
        return None, None
    cos, sin = (t.float().contiguous() for t in angles)
    cos, sin = (t if t.data_ptr() % 8 == 0 else t.clone() for t in (cos, sin))
    return cos, sin


def _for_copies(t: Tensor) -> Tensor:
    """A tensor that TMA can read."""
    return aligned(t, expanded=False)


def forward(q: Tensor, k: Tensor, v: Tensor, options: Options) -> tuple[Tensor, Tensor]:
    """-> out (B, T, H, D), lse (B, H, T) float32, in base 2 for exp2."""
    causal, scale, window = options.causal, options.scale, options.window
    B, T, H, D = q.shape
    q, scale, _ = positive(q, scale)
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    lse = torch.empty(B, H, T, dtype=torch.float32, device=q.device)
    ids, plan = numbered(options.document_ids), options.plan()
    taken = torch.zeros(2, dtype=torch.int32, device=q.device)
    rows = rows_of_forward(D, T)
    ranges = None if ids is None or plan is None else plan.blocks(*_ranges_of_forward(q))
    operations("cuda").attention_hopper.default(
        *map(_for_copies, (q, k, v)), out, lse, taken, ids, ranges, rows, causal, scale, min(window or 0, T)
    )
    return out, lse


def backward(
    do: Tensor, saved: Saved, options: Options, into: Gradients | None = None, angles: Angles | None = None
) -> Gradients:
    """As compiled.backward. angles: dq and dk are rotated back before they are rounded."""
    q, k, v, out, lse = saved
    causal, scale, window, deterministic = options.causal, options.scale, options.window, options.deterministic
    B, T, H, D = q.shape
    q, scale, sign = positive(q, scale)
    dq, dk, dv = into or empty_gradients(q, k, v)
    columns = COLUMNS if deterministic else COLUMNS_OF_ALL[D]
    padded = max(-(-T // BLOCK_Q[D]) * BLOCK_Q[D], -(-T // columns) * columns)
    statistics = torch.empty(B, H, padded, 2, dtype=torch.float32, device=q.device)
    dq_sums = None
    if not deterministic:
        dq_sums = torch.empty(B, H, -(-T // columns) * columns, D, dtype=torch.float32, device=q.device)
    ids, plan, of_queries, of_keys = numbered(options.document_ids), options.plan(), None, None
    if ids is not None and plan is not None:
        of_queries = plan.blocks(*_ranges_of_queries(q)) if deterministic else None
        of_keys = plan.blocks(*_ranges_of_keys(q, deterministic))
    operations("cuda").attention_hopper_backward.default(
        *map(_for_copies, (do, q, k, v)),
        out.contiguous(),
        lse,
        statistics,
        torch.empty(2, dtype=torch.int32, device=q.device),
        dq,
        dk,
        dv,
        dq_sums,
        ids,
        of_queries,
        of_keys,
        causal,
        scale,
        min(window or 0, T),
        *_angles(angles),
    )
    return dq if sign == 1 else dq.mul_(sign), dk, dv
