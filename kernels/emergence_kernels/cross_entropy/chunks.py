"""Chunks of rows of a linear head: the logits of one chunk at a time, and gradients summed from chunk to chunk.

Shapes: N rows (tokens), D features, V vocabulary, n rows of a chunk, S = V rounded up.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from ..backends import triton_configs as configs
from ..backends.logit_chunks import equal_rows as equal_rows
from ..backends.logit_chunks import padded as padded
from ..backends.products import add_to_dw, finish_dw, logits


def part(rows: Tensor, here: slice) -> Tensor:
    """rows[here]; without a view where that is all of them."""
    return rows if here.start == 0 and here.stop == rows.shape[0] else rows[here]


def _columns(rows: Tensor, count: int) -> Tensor:
    """The first `count` columns, likewise."""
    return rows if count == rows.shape[1] else rows[:, :count]


class LogitChunks:
    """Chunks of rows, each with its logits and the view of their memory that the gradient is written to.

    Args:
        logits_dtype: float32, or that of the inputs.
        gradient_last: 16-bit gradients are in the last half of their float32 row, not in the first.
    """

    def __init__(
        self,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        rows: int,
        logits_dtype: torch.dtype = torch.float32,
        *,
        gradient_last: bool = False,
    ) -> None:
        self.hidden_ND, self.weight_VD = hidden_ND, weight_VD
        self.N, self.V = hidden_ND.shape[0], weight_VD.shape[0]
        self.rows = max(1, min(self.N, rows))
        S = padded(self.V)
        self.buffer_RS = torch.empty(self.rows, S, dtype=logits_dtype, device=hidden_ND.device)
        wide = self.buffer_RS if logits_dtype == hidden_ND.dtype else self.buffer_RS.view(hidden_ND.dtype)
        self.gradient_RS = wide[:, -S:] if gradient_last else _columns(wide, S)

    @property
    def single(self) -> bool:
        return self.rows >= self.N

    def __iter__(self) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """-> slice, (n, S) logits in the first V columns, (n, S) for their gradient."""
        for start in range(0, self.N, self.rows):
            here = slice(start, min(self.N, start + self.rows))
            first = slice(0, here.stop - start)
            logits_RS = part(self.buffer_RS, first)
            logits(part(self.hidden_ND, here), self.weight_VD, _columns(logits_RS, self.V))
            yield here, logits_RS, part(self.gradient_RS, first)


def chunks_on_gpu(
    hidden_ND: Tensor, weight_VD: Tensor, rows: int | None, arch: str, *, gradient_last: bool = False
) -> LogitChunks:
    """Of `rows`, or of as many as the table of `arch` allows, in the type of logits that it has."""
    N, V = hidden_ND.shape[0], weight_VD.shape[0]
    dtype = configs.logits_dtype(arch, hidden_ND.dtype)
    most = configs.CHUNK_BYTES[arch] // (dtype.itemsize * padded(V))
    rows = rows or equal_rows(N, most, configs.CHUNK_MULTIPLE)
    return LogitChunks(hidden_ND, weight_VD, rows, dtype, gradient_last=gradient_last)


class Gradients:
    """Accumulates dX and dW: dW in float32 over several chunks, in the inputs' dtype for a single one."""

    def __init__(self, chunks: LogitChunks, need_dx: bool, need_dw: bool) -> None:
        self.chunks, self.need_dw = chunks, need_dw
        hidden_ND = chunks.hidden_ND
        self.dx_ND = torch.empty_like(hidden_ND, memory_format=torch.contiguous_format) if need_dx else None
        self.dw_VD: Tensor | None = None

    def add(self, here: slice, gradient_RS: Tensor) -> None:
        dz_RV = _columns(gradient_RS, self.chunks.V)
        if self.dx_ND is not None:
            torch.mm(dz_RV, self.chunks.weight_VD, out=part(self.dx_ND, here))
        if self.need_dw:
            self.dw_VD = add_to_dw(self.dw_VD, dz_RV, part(self.chunks.hidden_ND, here), single=self.chunks.single)

    def result(self) -> tuple[Tensor | None, Tensor | None]:
        return self.dx_ND, finish_dw(self.dw_VD, self.chunks.weight_VD) if self.need_dw else None
