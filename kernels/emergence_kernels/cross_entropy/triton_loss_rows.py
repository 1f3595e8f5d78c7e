"""Statistics and d loss / dz of rows of logits, for losses with gradients (the mathematics is in reference.py).

cuBLAS computes a chunk of logits; one program per row then reads the row twice, the second time from the L2 cache where it is
still there, and overwrites the logits by the gradient; cuBLAS computes dX and dW from it. Logits, statistics and gradients are
float32 in registers. 16-bit gradients are in the last half of their float32 row, of S columns: that of column c begins at byte
2 S + 2 c, never before its logit at 4 c. So the second sweep runs backwards, from the columns read last, and only overwrites
logits that it has read.

Each thread keeps a running maximum m, s = sum e and d = sum e (z - m), e = exp(z - m), of its columns (Milakov and
Gimelshein, arXiv 1805.02867); a larger maximum m' turns them into s f and (d + s (m - m')) f, f = exp(m - m'). Every sum has
a fixed order. Ignored rows are not read and get zeros.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..backends import triton_configs as configs
from ..backends.triton_common import LOG2E, LOW, on_device, tanh
from .chunks import Gradients, chunks_on_gpu
from .options import LossInputs, RowOptions
from .reference import RowStatistics


@triton.jit
def _columns(block, THREADS: tl.constexpr, UNROLL: tl.constexpr, VECTOR: tl.constexpr):
    """(UNROLL, THREADS, VECTOR): the columns of a block as its threads hold them."""
    vectors = tl.arange(0, UNROLL)[:, None] * THREADS + tl.arange(0, THREADS)[None, :]
    first = (block * (UNROLL * THREADS) + vectors) * VECTOR
    return first[:, :, None] + tl.arange(0, VECTOR)[None, None, :]


@triton.jit
def _over_threads(x):
    """Sum of what each thread holds: (UNROLL, THREADS, VECTOR) -> (THREADS,)"""
    return tl.sum(tl.sum(x, 2), 0)


@triton.jit
def _loss_rows_kernel(
    z_ptr, dz_ptr, target_ptr, valid_ptr, scale_ptr, loss_ptr, lse_ptr, entropy_ptr, correct_ptr,
    stride_z, stride_dz, V, S, softcap, z_loss, RESULTS: tl.constexpr, SOFTCAP: tl.constexpr,
    THREADS: tl.constexpr, UNROLL: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    """RESULTS: also compute loss, log-sum-exp, entropy and top-1.

    S, V rounded up, masks every access: as a multiple of 16 it does not split vectors. Values beyond V are not used.
    """
    row = tl.program_id(0).to(tl.int64)
    z_ptr += row * stride_z
    dz_ptr += row * stride_dz
    blocks = tl.cdiv(V, THREADS * UNROLL * VECTOR)
    if tl.load(valid_ptr + row).to(tl.int32) == 0:
        for block in range(0, blocks):
            column = _columns(block, THREADS, UNROLL, VECTOR)
            tl.store(dz_ptr + column, tl.zeros(column.shape, dz_ptr.dtype.element_ty), mask=column < S)
        if RESULTS:
            tl.store(loss_ptr + row, 0.0)
            tl.store(lse_ptr + row, 0.0)
            tl.store(entropy_ptr + row, 0.0)
            tl.store(correct_ptr + row, False)
        return
    # Read before it is overwritten. A target outside the vocabulary gives an infinite loss and no access out of bounds.
    target = tl.load(target_ptr + row)
    known = (target >= 0) & (target < V)
    z_target = tl.load(z_ptr + target, mask=known, other=float("-inf")).to(tl.float32)

    m = tl.full((THREADS,), LOW, tl.float32)
    s = tl.zeros((THREADS,), tl.float32)
    d = tl.zeros((THREADS,), tl.float32)
    for block in range(0, blocks):
        column = _columns(block, THREADS, UNROLL, VECTOR)
        z = tl.load(z_ptr + column, mask=column < S, other=0.0).to(tl.float32)
        if SOFTCAP:
            z = softcap * tanh(z / softcap)
        z = tl.where(column < V, z, LOW)
        largest = tl.maximum(m, tl.max(tl.max(z, 2), 0))
        gap = m - largest
        factor = tl.exp2(gap * LOG2E)
        z -= largest[None, :, None]
        e = tl.exp2(z * LOG2E)
        if RESULTS:
            d = (d + s * gap) * factor + _over_threads(e * z)
        s = s * factor + _over_threads(e)
        m = largest
    top = tl.max(m, 0)
    gap = m - top
    factor = tl.exp2(gap * LOG2E)
    total = tl.sum(s * factor, 0)
    log_total = tl.log(total)
    if RESULTS:
        dot = tl.sum((d + s * gap) * factor, 0)
        # (top - z) first: for a confident row both terms are small, while lse and z may be large.
        tl.store(loss_ptr + row, (top - z_target) + log_total)
        tl.store(lse_ptr + row, top + log_total)
        tl.store(entropy_ptr + row, log_total - dot / total)
        tl.store(correct_ptr + row, z_target == top)

    scale = tl.load(scale_ptr + row)
    pull = 2.0 * z_loss * (top + log_total)
    slope = (1.0 + pull) * scale
    log2_total = log_total * LOG2E
    for back in range(0, blocks):
        column = _columns(blocks - 1 - back, THREADS, UNROLL, VECTOR)
        z = tl.load(z_ptr + column, mask=column < S, other=0.0).to(tl.float32)
        z = tl.where(column < V, z, LOW)  # whose gradient is 0
        if SOFTCAP:
            t = tanh(z / softcap)
            z = softcap * t
            dz = tl.exp2((z - top) * LOG2E - log2_total) * slope * (1.0 - t * t)
        else:
            dz = tl.exp2((z - top) * LOG2E - log2_total) * slope
        if dz_ptr.dtype.element_ty != z_ptr.dtype.element_ty:
            tl.debug_barrier()  # narrower gradients overwrite logits that other threads read in this block or before
        tl.store(dz_ptr + column, dz.to(dz_ptr.dtype.element_ty), mask=column < S)

    # The target's entry is computed separately, in float32: p - 1 of a rounded p would be all error.
    bend = 1.0
    if SOFTCAP:
        t = tanh(z_target / softcap)
        z_target = softcap * t
        bend = 1.0 - t * t
    p = tl.exp2((z_target - top) * LOG2E - log2_total)
    dz_target = ((p - 1.0) + pull * p) * scale * bend
    tl.debug_barrier()  # after the row's own store there
    tl.store(dz_ptr + target, dz_target.to(dz_ptr.dtype.element_ty), mask=known)


class _Sweep:
    """Chunks of logits, and the launch of the kernel over one."""

    def __init__(self, inputs: LossInputs, options: RowOptions) -> None:
        hidden_ND, weight_VD, *_ = inputs
        self.options = options
        arch = configs.architecture(hidden_ND.device)
        self.chunks = chunks_on_gpu(hidden_ND.contiguous(), weight_VD, options.rows_per_chunk, arch, gradient_last=True)
        entry = configs.loss_rows(arch, self.chunks.V)
        vector = 16 // self.chunks.buffer_RS.element_size()
        self.tile = dict(THREADS=entry.threads, UNROLL=entry.columns // vector, VECTOR=vector)
        self.launch = dict(num_warps=entry.num_warps, num_stages=1)

    def rows(self, z_RS, dz_RS, target_R, valid_R, scale_R, results) -> None:
        """results: (loss, lse, entropy, correct), or None."""
        z_loss, softcap = self.options.z_loss, self.options.softcap
        _loss_rows_kernel[(len(z_RS),)](
            z_RS, dz_RS, target_R, valid_R, scale_R, *(results or (scale_R,) * 4),
            z_RS.stride(0), dz_RS.stride(0), self.chunks.V, z_RS.shape[1], softcap or 1.0, z_loss,
            RESULTS=results is not None, SOFTCAP=softcap is not None, **self.tile, **self.launch,
        )  # fmt: skip


def fused_rows(
    inputs: LossInputs, scale_N: Tensor, options: RowOptions
) -> tuple[RowStatistics, Tensor | None, Tensor | None]:
    """As reference.fused_rows."""
    hidden_ND, _, targets_N, valid_N = inputs
    sweep = _Sweep(inputs, options)
    N, device = len(hidden_ND), hidden_ND.device
    loss_N, lse_N, entropy_N = (torch.empty(N, dtype=torch.float32, device=device) for _ in range(3))
    correct_N = torch.empty(N, dtype=torch.bool, device=device)
    targets_N, valid_N, scale_N = (row.contiguous() for row in (targets_N, valid_N, scale_N))
    results = (loss_N, lse_N, entropy_N, correct_N)
    gradients = Gradients(sweep.chunks, options.need_dx, options.need_dw)
    with on_device(hidden_ND):
        for here, z_RS, dz_RS in sweep.chunks:
            chunk_results = [row[here] for row in results]
            sweep.rows(z_RS, dz_RS, targets_N[here], valid_N[here], scale_N[here], chunk_results)
            gradients.add(here, dz_RS)
    return RowStatistics(loss_N, lse_N, correct_N, entropy_N), *gradients.result()


def backward_rows(
    inputs: LossInputs, top_N: Tensor, log_total_N: Tensor, grad_N: Tensor, options: RowOptions
) -> tuple[Tensor | None, Tensor | None]:
    """As reference.backward_rows. top and log_total are computed again: the forward pass has summed its logits in
    another order, and where p is nearly 1 the last bits of both decide on p - 1.
    """
    hidden_ND, _, targets_N, valid_N = inputs
    sweep = _Sweep(inputs, options)
    targets_N, valid_N, grad_N = (row.contiguous() for row in (targets_N, valid_N, grad_N.float()))
    gradients = Gradients(sweep.chunks, options.need_dx, options.need_dw)
    with on_device(hidden_ND):
        for here, z_RS, dz_RS in sweep.chunks:
            sweep.rows(z_RS, dz_RS, targets_N[here], valid_N[here], grad_N[here], None)
            gradients.add(here, dz_RS)
    return gradients.result()
