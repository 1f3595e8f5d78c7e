"""Cross-entropy of a linear head, in chunks of rows: at most one chunk of logits exists at a time.

Shapes: N rows (tokens), D features, V vocabulary, R rows of a chunk. With z = hidden @ weight^T (softcapped if asked),
lse = log sum exp z, p = softmax z and y the target:

    loss          = lse - z_y, computed as (top - z_y) + log_total with top = max z and lse = top + log_total: where the
                    model is confident these two are small while lse and z_y are large
    d loss / dz_v = p_v - [v = y]
    z-loss        = z_loss * lse^2,  its d/dz_v = 2 * z_loss * lse * p_v        (Chowdhery et al. 2022, section 5)
    entropy       = lse - sum_v p_v z_v
    correct       = [z_y = max_v z_v]        (no argmax is needed; a tie with the target counts as correct)

Logits are float32 (float64 for float64 inputs). Gradients of logits are formed in float32, and on a GPU rounded to the
inputs' dtype for the matrix products. On a CPU 16-bit inputs are converted to float32, since 16-bit products are slow there,
at the cost of a float32 copy of the weight.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ..backends.products import add_to_dw, finish_dw, logits
from .chunks import equal_rows
from .options import LossInputs, RowOptions

# Logits of one chunk: on a CPU small enough for a core's cache, with enough rows for the matrix products; on a GPU large
# enough to fill the device.
CHUNK_LOGITS = {"cpu": 1 << 20, "cuda": 1 << 28}
LEAST_ROWS = 128
MULTIPLE = {"cpu": 16, "cuda": 128}  # rows: whole tiles of the matrix products


class RowStatistics(NamedTuple):
    """Per row, [N] each."""

    loss: Tensor  # nats, without the z-loss term
    lse: Tensor  # 0 where ignored
    correct: Tensor  # bool
    entropy: Tensor  # nats; empty where not computed


def chunk_rows(rows: int, vocabulary: int, device: torch.device) -> int:
    """Rows per chunk, for equal chunks."""
    most = max(LEAST_ROWS, CHUNK_LOGITS.get(device.type, 1 << 24) // vocabulary)
    return equal_rows(rows, most, MULTIPLE.get(device.type, 16))


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _operands(hidden_ND: Tensor, weight_VD: Tensor) -> tuple[Tensor, Tensor]:
    """hidden and weight in the dtype of the matrix products."""
    if hidden_ND.is_cuda:
        return hidden_ND, weight_VD
    dtype = compute_dtype(hidden_ND.dtype)
    return hidden_ND.to(dtype), weight_VD.to(dtype)


def gradient_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of dW in a compiled graph until backward: a sum over tokens may exceed float16."""
    return torch.float32 if dtype == torch.float16 else dtype


def _pack(valid_N: Tensor, targets_N: Tensor, *rows: Tensor) -> tuple[Tensor | None, tuple[Tensor, ...]]:
    """Index of the rows that are not ignored, and (targets, rows...) packed. On a GPU packing would need a sync: the index
    is None and every row is computed, with target 0 where ignored."""
    if valid_N.device.type == "cpu" and not bool(valid_N.all()):
        keep = valid_N.nonzero().squeeze(1)
        return keep, (targets_N[keep], *(row[keep] for row in rows))
    return None, (targets_N.masked_fill(~valid_N, 0), *rows)


def unpack(keep: Tensor | None, valid_N: Tensor, row: Tensor) -> Tensor:
    """Unpack to N rows, 0 where ignored."""
    if keep is None:
        return row.masked_fill_(~valid_N if row.dim() == 1 else ~valid_N.unsqueeze(1), 0)
    return torch.zeros(valid_N.shape[0], *row.shape[1:], dtype=row.dtype, device=row.device).index_copy_(0, keep, row)


def _softcap(z_RV: Tensor, softcap: float | None) -> None:
    if softcap is not None:
        z_RV.div_(softcap).tanh_().mul_(softcap)


def fused_rows(
    inputs: LossInputs, scale_N: Tensor, options: RowOptions
) -> tuple[RowStatistics, Tensor | None, Tensor | None]:
    """Statistics of every row, and the gradients of sum_n scale_n * (loss_n + z_loss * lse_n^2), in one sweep.

    dX has the inputs' dtype, dW that of its sum: float32 over several chunks. Rows that are not valid have zeros
    everywhere.
    """
    hidden_ND, weight_VD, targets_N, valid_N = inputs
    keep, (targets_N, hidden_ND, scale_N) = _pack(valid_N, targets_N, hidden_ND, scale_N)
    N, V = hidden_ND.shape[0], weight_VD.shape[0]
    dtype = compute_dtype(hidden_ND.dtype)
    z_loss = options.z_loss
    rows = min(N, options.rows_per_chunk or chunk_rows(N, V, hidden_ND.device)) or 1
    x_ND, w_VD = _operands(hidden_ND, weight_VD)
    device = hidden_ND.device
    loss_N, lse_N, entropy_N = (torch.empty(N, dtype=dtype, device=device) for _ in range(3))
    correct_N = torch.empty(N, dtype=torch.bool, device=device)
    z_buffer, p_buffer = (torch.empty(rows, V, dtype=dtype, device=device) for _ in range(2))
    dx_ND = torch.empty_like(hidden_ND, memory_format=torch.contiguous_format) if options.need_dx else None
    dw_VD = None
    for start in range(0, N, rows):
        here = slice(start, min(N, start + rows))
        n = here.stop - start
        z_RV, p_RV = z_buffer[:n], p_buffer[:n]
        target_R1 = targets_N[here].long().unsqueeze(1)
        logits(x_ND[here], w_VD, z_RV)
        top_R = z_RV.amax(-1)
        torch.softmax(z_RV, -1, out=p_RV)
        # At the largest logit p = 1 / sum exp(z - top), so one cheap pass over p yields log_total.
        log_total_R = p_RV.amax(-1).log_().neg_()
        lse_R = top_R + log_total_R
        z_target_R = z_RV.gather(1, target_R1).squeeze(1)
        loss_N[here] = (top_R - z_target_R).add_(log_total_R)
        lse_N[here] = lse_R
        correct_N[here] = z_target_R == top_R
        entropy_N[here] = (lse_R - torch.linalg.vecdot(p_RV, z_RV)).clamp_min_(0)
        if not options.need_gradients:
            continue
        scale_R = scale_N[here]
        # The target's entry is computed separately: p - 1 first, with its weight, before rounding to the inputs' dtype.
        p_target_R = p_RV.gather(1, target_R1).squeeze(1)
        dz_target_R = scale_R * ((p_target_R - 1) + 2 * z_loss * lse_R * p_target_R)
        p_RV.mul_((scale_R * (1 + 2 * z_loss * lse_R) if z_loss else scale_R).unsqueeze(1))
        p_RV.scatter_(1, target_R1, dz_target_R.unsqueeze(1))
        dz_RV = p_RV.to(w_VD.dtype)
        if dx_ND is not None:
            dx_ND[here] = dz_RV @ w_VD
        if options.need_dw:
            dw_VD = add_to_dw(dw_VD, dz_RV, x_ND[here], single=rows >= N)
    statistics = RowStatistics(*(unpack(keep, valid_N, row) for row in (loss_N, lse_N, correct_N, entropy_N)))
    if dx_ND is not None and keep is not None:
        dx_ND = unpack(keep, valid_N, dx_ND)
    return statistics, dx_ND, finish_dw(dw_VD, weight_VD) if options.need_dw else None


def forward_rows(inputs: LossInputs, options: RowOptions) -> tuple[Tensor, Tensor, Tensor]:
    """(loss, top, log_total) of every row, [N] each, 0 where ignored."""
    hidden_ND, weight_VD, targets_N, valid_N = inputs
    keep, (targets_N, hidden_ND) = _pack(valid_N, targets_N, hidden_ND)
    N, V = hidden_ND.shape[0], weight_VD.shape[0]
    dtype = compute_dtype(hidden_ND.dtype)
    rows = min(N, options.rows_per_chunk or chunk_rows(N, V, hidden_ND.device)) or 1
    x_ND, w_VD = _operands(hidden_ND, weight_VD)
    z_buffer = torch.empty(rows, V, dtype=dtype, device=hidden_ND.device)
    loss_N, top_N, log_total_N = (torch.empty(N, dtype=dtype, device=hidden_ND.device) for _ in range(3))
    for start in range(0, N, rows):
        here = slice(start, min(N, start + rows))
        z_RV = z_buffer[: min(N, start + rows) - start]
        logits(x_ND[here], w_VD, z_RV)
        _softcap(z_RV, options.softcap)
        z_target_R = z_RV.gather(1, targets_N[here].long().unsqueeze(1)).squeeze(1)
        top_R = z_RV.amax(-1)
        log_total_R = z_RV.sub_(top_R.unsqueeze(1)).exp_().sum(-1).log_()
        top_N[here], log_total_N[here] = top_R, log_total_R
        loss_N[here] = (top_R - z_target_R).add_(log_total_R)
    loss_N, top_N, log_total_N = (unpack(keep, valid_N, row) for row in (loss_N, top_N, log_total_N))
    return loss_N, top_N, log_total_N


def backward_rows(
    inputs: LossInputs, top_N: Tensor, log_total_N: Tensor, grad_N: Tensor, options: RowOptions
) -> tuple[Tensor | None, Tensor | None]:
    """dX and dW of sum_n grad_n * (loss_n + z_loss * lse_n^2), recomputing the logits.

    grad_N must be 0 where a row is not valid. dX has the inputs' dtype, dW that of its sum.
    """
    hidden_ND, weight_VD, targets_N, valid_N = inputs
    keep, (targets_N, hidden_ND, top_N, log_total_N, grad_N) = _pack(
        valid_N, targets_N, hidden_ND, top_N, log_total_N, grad_N
    )
    N, V = hidden_ND.shape[0], weight_VD.shape[0]
    dtype = compute_dtype(hidden_ND.dtype)
    z_loss, softcap = options.z_loss, options.softcap
    rows = min(N, options.rows_per_chunk or chunk_rows(N, V, hidden_ND.device)) or 1
    x_ND, w_VD = _operands(hidden_ND, weight_VD)
    z_buffer = torch.empty(rows, V, dtype=dtype, device=hidden_ND.device)
    dx_ND = torch.empty_like(hidden_ND, memory_format=torch.contiguous_format) if options.need_dx else None
    dw_VD = None
    for start in range(0, N, rows):
        here = slice(start, min(N, start + rows))
        x_RD, target_R1 = x_ND[here], targets_N[here].long().unsqueeze(1)
        grad_R1, top_R1, log_total_R1 = (row[here].unsqueeze(1) for row in (grad_N, top_N, log_total_N))
        z_RV = z_buffer[: len(x_RD)]
        logits(x_RD, w_VD, z_RV)
        _softcap(z_RV, softcap)
        slope_RV = None if softcap is None else 1 - (z_RV / softcap) ** 2
        p_RV = z_RV.sub_(top_R1).sub_(log_total_R1).exp_()
        p_target_R1 = p_RV.gather(1, target_R1)
        pull_R1 = 2 * z_loss * (top_R1 + log_total_R1)
        dz_RV = p_RV.mul_(grad_R1 * (1 + pull_R1))
        dz_RV.scatter_(1, target_R1, grad_R1 * ((p_target_R1 - 1) + pull_R1 * p_target_R1))
        if slope_RV is not None:
            dz_RV.mul_(slope_RV)
        dz_RV = dz_RV.to(w_VD.dtype)
        if dx_ND is not None:
            dx_ND[here] = dz_RV @ w_VD
        if options.need_dw:
            dw_VD = add_to_dw(dw_VD, dz_RV, x_RD, single=rows >= N)
    if dx_ND is not None and keep is not None:
        dx_ND = unpack(keep, valid_N, dx_ND)
    return dx_ND, finish_dw(dw_VD, weight_VD) if options.need_dw else None
