"""Ranges of blocks of positions that may share a document, by which attention's kernels skip blocks and masks."""

from typing import NamedTuple

import torch
from torch import Tensor

from ..backends import dispatch

# (rows, columns, width): the ranges of the blocks of `rows` positions, in blocks of `columns` positions; width 2 is
# overlapping_blocks, 4 is overlapping_and_equal_blocks.
Blocks = tuple[int, int, int]


class DocumentPlan(NamedTuple):
    """Documents of a micro-batch and what attention needs of them, computed once for every layer and pass (op.document_plan).

    A NamedTuple, since DeepSpeed's hooks and torch.compile look for tensors in the arguments of a block.
    """

    ids: Tensor  # (B, T)
    ranges: Tensor | None = None  # of each Blocks (B, blocks of rows, width), one after the other, int32
    range_blocks: tuple[int, ...] = ()  # rows, columns and width of each, flat as a custom op takes them
    cu_seqlens: Tensor | None = (
        None  # where each document begins in B * T positions, and their end, int32: for flash-attn
    )

    def blocks(self, rows: int, columns: int, width: int) -> Tensor:
        """Their ranges, computed here where they were not planned."""
        B, T = self.ids.shape
        start = 0
        for at in range(0, len(self.range_blocks), 3):
            planned = self.range_blocks[at : at + 3]
            shape = B, -(-T // planned[0]), planned[2]
            size = shape[0] * shape[1] * shape[2]
            if tuple(planned) == (rows, columns, width):
                assert self.ranges is not None
                return self.ranges[start : start + size].view(shape)
            start += size
        return ranges_for_kernels(self.ids, rows, columns, width)


def planned(ids_BT: Tensor, wanted: list[Blocks], cu_seqlens: Tensor | None = None) -> DocumentPlan:
    """The plan with these ranges, each computed once."""
    distinct = list(dict.fromkeys(wanted))
    if not distinct or not ids_BT.numel():
        return DocumentPlan(ids_BT, cu_seqlens=cu_seqlens)
    parts = [ranges_for_kernels(ids_BT, *blocks).flatten() for blocks in distinct]
    ranges = parts[0] if len(parts) == 1 else torch.cat(parts)
    return DocumentPlan(ids_BT, ranges, tuple(number for blocks in distinct for number in blocks), cu_seqlens)


def starts_of_documents(ids_BT: Tensor) -> Tensor:
    """cu_seqlens of documents that are runs of one id within a row. Waits for the device: their number is a shape."""
    first_BT = torch.ones_like(ids_BT, dtype=torch.bool)
    first_BT[:, 1:] = ids_BT[:, 1:] != ids_BT[:, :-1]
    return torch.cat(
        [first_BT.flatten().nonzero()[:, 0], first_BT.new_full((1,), ids_BT.numel(), dtype=torch.int64)]
    ).int()


def ranges_for_kernels(ids_BT: Tensor, rows: int, columns: int, width: int) -> Tensor:
    """overlapping_blocks or overlapping_and_equal_blocks, in one launch where Triton runs."""
    if dispatch.unsupported_reason("triton", "attention", ids_BT.device, {}) is None:
        from .triton_document_ranges import block_ranges

        return block_ranges(ids_BT, rows, columns, equal=width == 4)
    return (overlapping_and_equal_blocks if width == 4 else overlapping_blocks)(ids_BT, rows, columns)


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
