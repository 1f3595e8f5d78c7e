"""document_ranges.py in one launch: its reductions, written out, are some 25 launches before every attention with documents."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..backends.triton_common import on_device

AT_A_TIME = 4096  # ids


@triton.jit
def _bounds(ids_ptr, at, here, AXIS: tl.constexpr):
    """The smallest and the greatest id along an axis, of the positions that are."""
    ids = tl.load(ids_ptr + at, here, other=0).to(tl.int64)
    return tl.min(tl.where(here, ids, 2**63 - 1), AXIS), tl.max(tl.where(here, ids, -(2**63)), AXIS)


@triton.jit
def _ranges_kernel(
    ids_ptr, out_ptr, T, ROWS: tl.constexpr, ROWS_2: tl.constexpr, COLUMNS: tl.constexpr, STEP: tl.constexpr, EQUAL: tl.constexpr
):  # fmt: skip
    """Program: the blocks of rows of one sequence after another, on one axis: the others end at 65,535. A block's ids lie within
    [low, high]; two blocks may share one where these overlap."""
    of_rows = tl.cdiv(T, ROWS)
    block, b = tl.program_id(0) % of_rows, tl.program_id(0) // of_rows
    zero = b * 0
    ids_ptr += b.to(tl.int64) * T
    row = tl.arange(0, ROWS_2)
    row_low, row_high = _bounds(ids_ptr, block * ROWS + row, (row < ROWS) & (block * ROWS + row < T), 0)
    blocks = zero + tl.cdiv(T, COLUMNS)
    first, last, same_first, same_last, same = blocks, zero, blocks, zero, zero
    for start in range(0, blocks, STEP):
        index = start + tl.arange(0, STEP)
        at = index[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]
        low, high = _bounds(ids_ptr, at, at < T, 1)
        shared = (row_low <= high) & (low <= row_high) & (index < blocks)
        first = tl.minimum(first, tl.min(tl.where(shared, index, blocks)))
        last = tl.maximum(last, tl.max(tl.where(shared, index + 1, 0)))
        if EQUAL:
            only = shared & (low == high) & (row_low == row_high)  # shared: then all four are one id
            same_first = tl.minimum(same_first, tl.min(tl.where(only, index, blocks)))
            same_last = tl.maximum(same_last, tl.max(tl.where(only, index + 1, 0)))
            same += tl.sum(only.to(tl.int32))
    out_ptr += (b.to(tl.int64) * of_rows + block) * (4 if EQUAL else 2)
    tl.store(out_ptr, first)
    tl.store(out_ptr + 1, last)
    if EQUAL:
        tl.store(out_ptr + 2, same_first)
        tl.store(out_ptr + 3, tl.where(same == same_last - same_first, same_last, same_first))


def block_ranges(ids_BT: Tensor, rows: int, columns: int, *, equal: bool) -> Tensor:
    """overlapping_blocks, with `equal` overlapping_and_equal_blocks. columns: a power of two; ids: of any integer type."""
    B, T = ids_BT.shape
    blocks = -(-T // rows)
    out = torch.empty(B, blocks, 4 if equal else 2, dtype=torch.int32, device=ids_BT.device)
    step = max(1, min(AT_A_TIME // columns, triton.next_power_of_2(-(-T // columns))))
    if not B or not blocks:
        return out
    with on_device(ids_BT):
        _ranges_kernel[(B * blocks,)](
            ids_BT.contiguous(), out, T, ROWS=rows, ROWS_2=triton.next_power_of_2(rows), COLUMNS=columns, STEP=step,
            EQUAL=equal, num_warps=4,
        )  # fmt: skip
    return out
