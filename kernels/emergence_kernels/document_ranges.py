"""Which blocks of positions may share a document: what attention's kernels skip blocks by."""

import torch
from torch import Tensor


def overlapping_blocks(ids_BT: Tensor, rows: int, columns: int) -> Tensor:
    """The blocks of `columns` positions that may share an id with a block of `rows` positions, as [first, last).

    (B, blocks of rows, 2) int32. Exact for documents packed in order, a safe bound for ids in any order.
    """

    def bounds(size):
        B, T = ids_BT.shape
        blocks = -(-T // size)
        # The last block is filled up with the last id, which belongs to it.
        padded = torch.cat([ids_BT, ids_BT[:, -1:].expand(B, blocks * size - T)], 1).view(B, blocks, size)
        return padded.amin(-1), padded.amax(-1)

    (row_low, row_high), (low, high) = bounds(rows), bounds(columns)
    overlap = (row_low[:, :, None] <= high[:, None, :]) & (low[:, None, :] <= row_high[:, :, None])
    index = torch.arange(low.shape[1], device=ids_BT.device)
    first = torch.where(overlap, index, low.shape[1]).amin(-1)
    last = torch.where(overlap, index + 1, 0).amax(-1)
    return torch.stack([first, last], -1).to(torch.int32).contiguous()
