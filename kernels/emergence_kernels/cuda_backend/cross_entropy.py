"""Cross-entropy of a linear head: matrix products by cuBLAS, rows by CUDA (csrc/loss_rows.cu has the mathematics).

A chunk of logits is computed in float32 into one buffer, whose rows start at multiples of 16 bytes. One sweep over it
yields every row's statistics and writes the gradient over the logits, in the inputs' dtype: 16-bit gradients lie in the
first half of their float32 row. Rows that do not count cost their share of the products and get zeros.
"""

import torch
from torch import Tensor

from ..products import add_to_dw, finish_dw, logits
from ..reference.cross_entropy import RowStatistics, gradient_dtype

CHUNK_LOGITS = 1 << 28  # 1 GiB of float32
PACK = 8  # elements; 16 bytes of the narrowest


class _Chunks:
    """Slices of rows, each with its logits and the view of them that the gradient is written to."""

    def __init__(self, hidden_ND: Tensor, weight_VD: Tensor, rows_per_chunk: int | None) -> None:
        self.hidden_ND, self.weight_VD = hidden_ND, weight_VD
        self.N, self.V = hidden_ND.shape[0], weight_VD.shape[0]
        self.rows = max(1, min(self.N, rows_per_chunk or CHUNK_LOGITS // self.V))
        padded = -(-self.V // PACK) * PACK
        self.buffer_RS = torch.empty(self.rows, padded, dtype=torch.float32, device=hidden_ND.device)
        self.gradient_RS = self.buffer_RS.view(hidden_ND.dtype)[:, :padded]

    @property
    def single(self) -> bool:
        return self.rows >= self.N

    def __iter__(self):
        """-> slice, (n, S) float32 logits in the first V columns, (n, S) for their gradient."""
        for start in range(0, self.N, self.rows):
            here = slice(start, min(self.N, start + self.rows))
            n = here.stop - start
            logits(self.hidden_ND[here], self.weight_VD, self.buffer_RS[:n, : self.V])
            yield here, self.buffer_RS[:n], self.gradient_RS[:n]


class _Gradients:
    """dX and dW, gathered chunk by chunk."""

    def __init__(self, chunks: _Chunks, need_dx: bool, need_dw: bool) -> None:
        self.chunks, self.need_dw = chunks, need_dw
        hidden_ND = chunks.hidden_ND
        self.dx_ND = torch.empty_like(hidden_ND, memory_format=torch.contiguous_format) if need_dx else None
        self.dw_VD = None

    def add(self, here: slice, gradient_RS: Tensor) -> None:
        dz_RV = gradient_RS[:, : self.chunks.V]
        if self.dx_ND is not None:
            torch.mm(dz_RV, self.chunks.weight_VD, out=self.dx_ND[here])
        if self.need_dw:
            self.dw_VD = add_to_dw(self.dw_VD, dz_RV, self.chunks.hidden_ND[here], single=self.chunks.single)

    def result(self, dtype: torch.dtype) -> tuple[Tensor | None, Tensor | None]:
        return self.dx_ND, finish_dw(self.dw_VD, self.chunks.weight_VD, dtype) if self.need_dw else None


def _sweep(hidden_ND, weight_VD, targets_N, valid_N, scale_N, z_loss, softcap, need_dx, need_dw, details, rows_per_chunk):
    """-> (loss, top, log_total), correct, entropy (None without `details`), gradients."""
    N = hidden_ND.shape[0]
    loss_N, top_N, log_total_N = (torch.empty(N, dtype=torch.float32, device=hidden_ND.device) for _ in range(3))
    correct_N = torch.empty(N, dtype=torch.bool, device=hidden_ND.device) if details else None
    entropy_N = torch.empty_like(loss_N) if details else None
    targets_N = targets_N.long().contiguous()
    valid_N = valid_N.contiguous()
    chunks = _Chunks(hidden_ND, weight_VD, rows_per_chunk)
    gradients = _Gradients(chunks, need_dx, need_dw)
    wanted = need_dx or need_dw
    for here, logits_RS, gradient_RS in chunks:
        torch.ops.emergence_cuda.loss_rows(
            logits_RS, gradient_RS if wanted else logits_RS, chunks.V, targets_N[here], valid_N[here],
            scale_N[here] if wanted else None, loss_N[here], top_N[here], log_total_N[here],
            correct_N[here] if details else None, entropy_N[here] if details else None, z_loss, softcap or 0.0,
        )  # fmt: skip
        if wanted:
            gradients.add(here, gradient_RS)
    return (loss_N, top_N, log_total_N), correct_N, entropy_N, gradients


def fused_rows(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    targets_N: Tensor,
    valid_N: Tensor,
    scale_N: Tensor,
    *,
    z_loss: float,
    need_dx: bool,
    need_dw: bool,
    rows_per_chunk: int | None = None,
) -> tuple[RowStatistics, Tensor | None, Tensor | None]:
    """As reference.cross_entropy.fused_rows."""
    (loss_N, top_N, log_total_N), correct_N, entropy_N, gradients = _sweep(
        hidden_ND, weight_VD, targets_N, valid_N, scale_N, z_loss, None, need_dx, need_dw, True, rows_per_chunk
    )
    rows = RowStatistics(loss_N, top_N + log_total_N, correct_N, entropy_N)
    return rows, *gradients.result(gradient_dtype(weight_VD.dtype))


def forward_rows(hidden_ND, weight_VD, targets_N, valid_N, *, softcap, rows_per_chunk=None):
    """As reference.cross_entropy.forward_rows."""
    return _sweep(hidden_ND, weight_VD, targets_N, valid_N, None, 0.0, softcap, False, False, False, rows_per_chunk)[0]


def backward_rows(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    targets_N: Tensor,
    valid_N: Tensor,
    top_N: Tensor,
    log_total_N: Tensor,
    grad_N: Tensor,
    *,
    z_loss: float,
    softcap: float | None,
    need_dx: bool,
    need_dw: bool,
    rows_per_chunk: int | None = None,
) -> tuple[Tensor | None, Tensor | None]:
    """As reference.cross_entropy.backward_rows."""
    targets_N, grad_N = targets_N.long().contiguous(), grad_N.float().contiguous()
    chunks = _Chunks(hidden_ND, weight_VD, rows_per_chunk)
    gradients = _Gradients(chunks, need_dx, need_dw)
    for here, logits_RS, gradient_RS in chunks:
        torch.ops.emergence_cuda.loss_rows_gradient(
            logits_RS, gradient_RS, chunks.V, targets_N[here], valid_N[here], grad_N[here], top_N[here],
            log_total_N[here], z_loss, softcap or 0.0,
        )  # fmt: skip
        gradients.add(here, gradient_RS)
    return gradients.result(gradient_dtype(weight_VD.dtype))


def position_sums(token_loss_BT: Tensor, valid_BT: Tensor, correct_BT: Tensor, entropy_BT: Tensor) -> tuple[Tensor, ...]:
    """-> count, loss, loss squared, correct, entropy, (T,) each, in int64 and float64, summed in a fixed order."""
    T, device = token_loss_BT.shape[1], token_loss_BT.device
    count_T, correct_T = (torch.empty(T, dtype=torch.int64, device=device) for _ in range(2))
    loss_T, square_T, entropy_T = (torch.empty(T, dtype=torch.float64, device=device) for _ in range(3))
    torch.ops.emergence_cuda.position_sums(
        token_loss_BT, valid_BT, correct_BT, entropy_BT, count_T, loss_T, square_T, correct_T, entropy_T
    )
    return count_T, loss_T, square_T, correct_T, entropy_T
