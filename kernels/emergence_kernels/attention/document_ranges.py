"""Ranges of blocks of positions that may share a document, by which attention's kernels skip blocks and masks."""

import torch
from torch import Tensor

from ..backends.dispatch import HAS_TRITON


def ranges_for_kernels(ids_BT: Tensor, rows: int, columns: int) -> Tensor:
    """overlapping_and_equal_blocks, on a GPU in one launch where Triton is installed."""
    if ids_BT.is_cuda and HAS_TRITON:
        from .triton_document_ranges import block_ranges

        return block_ranges(ids_BT, rows, columns, equal=True)
    return overlapping_and_equal_blocks(ids_BT, rows, columns)


def overlapping_blocks(ids_BT: Tensor, rows: int, columns: int) -> Tensor:
    """The blocks of `columns` positions that may share an id with a block of `rows` positions, as [first, last).

    (B, blocks of rows, 2) int32. Exact for documents packed in order, a safe bound for ids in any order.
    """
    return _range(_overlap(_bounds(ids_BT, rows), _bounds(ids_BT, columns))).contiguous()


def overlapping_and_equal_blocks(ids_BT: Tensor, rows: int, columns: int) -> Tensor:
    """overlapping_blocks, and [first, last) of blocks in which every position has the one id that all rows have.

    (B, blocks of rows, 4) int32. Of the latter there are none where blocks of other ids lie in between.
    """
    of_rows, of_columns = _bounds(ids_BT, rows), _bounds(ids_BT, columns)
    (row_low, row_high), (low, high) = of_rows, of_columns
    only = row_low[:, :, None]
    equal = (row_low == row_high)[:, :, None] & (low[:, None, :] == only) & (high[:, None, :] == only)
    first, last = _range(equal).unbind(-1)
    last = torch.where(equal.sum(-1) == last - first, last, first)
    return torch.cat([_range(_overlap(of_rows, of_columns)), torch.stack([first, last], -1)], -1).contiguous()


def _bounds(ids_BT: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The smallest and the greatest id of each block of `size` positions."""
    B, T = ids_BT.shape
    blocks = -(-T // size)
    # The last block is padded with its own last id.
    padded = torch.cat([ids_BT, ids_BT[:, -1:].expand(B, blocks * size - T)], 1).view(B, blocks, size)
    return padded.amin(-1), padded.amax(-1)


def _overlap(of_rows: tuple[Tensor, Tensor], of_columns: tuple[Tensor, Tensor]) -> Tensor:
    (row_low, row_high), (low, high) = of_rows, of_columns
    return (row_low[:, :, None] <= high[:, None, :]) & (low[:, None, :] <= row_high[:, :, None])


def _range(which: Tensor) -> Tensor:
    """The first index that is true along the last dimension and one more than the last; (length, 0) where none is."""
    index = torch.arange(which.shape[-1], device=which.device)
    first = torch.where(which, index, which.shape[-1]).amin(-1)
    last = torch.where(which, index + 1, 0).amax(-1)
    return torch.stack([first, last], -1).to(torch.int32)
