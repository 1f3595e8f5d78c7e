"""Cross-entropy of a linear head: matrix products by PyTorch, rows by csrc/ (loss_rows.cu has the mathematics).

A chunk of logits is computed in float32 into one buffer, whose rows start at multiples of 16 bytes. One sweep over it
yields every row's statistics and writes the gradient over the logits, in the inputs' dtype: 16-bit gradients are in the
first half of their float32 row. On a GPU ignored rows take part in the products and get zeros. On Hopper rows that fit into
shared memory have a kernel of their own (loss_rows_hopper.cu).

options.backend: "cuda" or "cpu" (float32 only).
"""

import torch
from torch import Tensor

from ..backends import triton_configs as configs
from ..backends.library import is_hopper, operations
from .chunks import Gradients, LogitChunks, chunks_on_gpu, part
from .options import LossInputs, RowOptions
from .reference import RowStatistics, chunk_rows, unpack

_Rows = tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]  # loss, top, log_total, correct, entropy; (N,) each


HOPPER_ROW = 14 << 14  # bytes of logits: slots of rows_hopper


def _chunks(hidden_ND: Tensor, weight_VD: Tensor, rows_per_chunk: int | None) -> LogitChunks:
    if hidden_ND.device.type == "cuda":
        return chunks_on_gpu(hidden_ND, weight_VD, rows_per_chunk, configs.architecture(hidden_ND.device))
    rows = rows_per_chunk or chunk_rows(hidden_ND.shape[0], weight_VD.shape[0], hidden_ND.device)
    return LogitChunks(hidden_ND, weight_VD, rows)


def rows_stay(device: torch.device, V: int) -> bool:
    """Whether rows_hopper takes rows of V logits, with their gradients: a short row would leave its threads idle. On an H100 a
    position_loss by it was 3 to 7% faster than Triton's at 50,304 logits (20261127-loss-rows.json)."""
    return device.type == "cuda" and is_hopper(device) and HOPPER_ROW // 8 <= 4 * V <= HOPPER_ROW


def fused_rows(
    inputs: LossInputs, scale_N: Tensor, options: RowOptions
) -> tuple[RowStatistics, Tensor | None, Tensor | None]:
    """As reference.fused_rows."""
    rows, gradients, packed = _sweep(inputs, scale_N, options, statistics=True)
    loss_N, top_N, log_total_N, correct_N, entropy_N = (packed.unpacked(row) for row in rows if row is not None)
    dx_ND, dw_VD = gradients.result()
    dx_ND = None if dx_ND is None else packed.unpacked(dx_ND)
    return RowStatistics(loss_N, top_N + log_total_N, correct_N, entropy_N), dx_ND, dw_VD


def _sweep(
    inputs: LossInputs, scale_N: Tensor | None, options: RowOptions, *, statistics: bool
) -> tuple[_Rows, Gradients, "_Packed"]:
    """-> statistics of the packed rows (the last two are None without `statistics`), their gradients, and the packing."""
    packed = _Packed(inputs.valid_N)
    targets_N, hidden_ND = packed.rows(inputs.targets_N).long(), packed.rows(inputs.hidden_ND)
    wanted = scale_N is not None and options.need_gradients
    packed_scale_N = packed.rows(scale_N) if scale_N is not None and wanted else None
    N, device = hidden_ND.shape[0], hidden_ND.device
    loss_N, top_N, log_total_N = (torch.empty(N, dtype=torch.float32, device=device) for _ in range(3))
    correct_N = torch.empty(N, dtype=torch.bool, device=device) if statistics else None
    entropy_N = torch.empty(N, dtype=torch.float32, device=device) if statistics else None
    rows = (loss_N, top_N, log_total_N, correct_N, entropy_N)
    chunks = _chunks(hidden_ND, inputs.weight_VD, options.rows_per_chunk)
    gradients = Gradients(chunks, wanted and options.need_dx, wanted and options.need_dw)
    ops, at_once = operations(options.backend), wanted and statistics and options.softcap is None
    by_hopper = at_once and rows_stay(hidden_ND.device, chunks.V)
    for here, logits_RS, gradient_RS in chunks:
        into_RS = gradient_RS if wanted else logits_RS
        given = (logits_RS, into_RS, chunks.V, part(targets_N, here), part(packed.valid_N, here))
        scale = None if packed_scale_N is None else part(packed_scale_N, here)
        results = [None if row is None else part(row, here) for row in rows]
        if by_hopper:
            ops.loss_rows_hopper.default(*given, scale, *results, options.z_loss)
        else:
            ops.loss_rows.default(*given, scale, *results, options.z_loss, options.softcap or 0.0)
        if wanted:
            gradients.add(here, gradient_RS)
    return rows, gradients, packed


class _Packed:
    """Rows that are not ignored, packed on a CPU; on a GPU packing would need a sync."""

    def __init__(self, valid_N: Tensor) -> None:
        self.all_N, self.valid_N = valid_N, valid_N.contiguous()
        self.keep: Tensor | None = None
        if valid_N.device.type == "cpu" and not bool(valid_N.all()):
            self.keep = valid_N.nonzero().squeeze(1)
            self.valid_N = valid_N[self.keep]

    def rows(self, t: Tensor) -> Tensor:
        return t.contiguous() if self.keep is None else t[self.keep]

    def unpacked(self, row: Tensor) -> Tensor:
        """Unpack; zeros for ignored rows, which on a GPU the kernels wrote."""
        return row if self.keep is None else unpack(self.keep, self.all_N, row)


def forward_rows(inputs: LossInputs, options: RowOptions) -> tuple[Tensor, Tensor, Tensor]:
    """As reference.forward_rows."""
    rows, _, packed = _sweep(inputs, None, options, statistics=False)
    loss_N, top_N, log_total_N, *_ = rows
    return packed.unpacked(loss_N), packed.unpacked(top_N), packed.unpacked(log_total_N)


def backward_rows(
    inputs: LossInputs, top_N: Tensor, log_total_N: Tensor, grad_N: Tensor, options: RowOptions
) -> tuple[Tensor | None, Tensor | None]:
    """As reference.backward_rows."""
    packed = _Packed(inputs.valid_N)
    targets_N, top_N, log_total_N = packed.rows(inputs.targets_N).long(), packed.rows(top_N), packed.rows(log_total_N)
    grad_N = packed.rows(grad_N.float())
    chunks = _chunks(packed.rows(inputs.hidden_ND), inputs.weight_VD, options.rows_per_chunk)
    gradients = Gradients(chunks, options.need_dx, options.need_dw)
    for here, logits_RS, gradient_RS in chunks:
        operations(options.backend).loss_rows_gradient.default(
            logits_RS,
            gradient_RS,
            chunks.V,
            *(part(row, here) for row in (targets_N, packed.valid_N, grad_N, top_N, log_total_N)),
            options.z_loss,
            options.softcap or 0.0,
        )
        gradients.add(here, gradient_RS)
    dx_ND, dw_VD = gradients.result()
    return None if dx_ND is None else packed.unpacked(dx_ND), dw_VD


def position_sums(
    token_loss_BT: Tensor, valid_BT: Tensor, correct_BT: Tensor, entropy_BT: Tensor, *, backend: str
) -> tuple[Tensor, ...]:
    """-> count, loss, loss squared, correct, entropy, (T,) each, in int64 and float64, summed in a fixed order."""
    T, device = token_loss_BT.shape[1], token_loss_BT.device
    count_T, correct_T = (torch.empty(T, dtype=torch.int64, device=device) for _ in range(2))
    loss_T, square_T, entropy_T = (torch.empty(T, dtype=torch.float64, device=device) for _ in range(3))
    operations(backend).position_sums.default(
        token_loss_BT, valid_BT, correct_BT, entropy_BT, count_T, loss_T, square_T, correct_T, entropy_T
    )
    return count_T, loss_T, square_T, correct_T, entropy_T
