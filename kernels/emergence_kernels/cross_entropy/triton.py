"""Cross-entropy of a linear head in Triton (the mathematics is in reference.py).

The kernel with gradients is in triton_loss_rows.py. Here only statistics are computed, and no logits are stored. Rows that are
not ignored are packed to the front, and each chunk of R rows goes through

    _statistics_kernel   a tile of logits z = x w^T on the tensor cores; for each row of the tile the maximum m,
                         sum e and sum e * (z - m) with e = exp(z - m), and the target's z
    _combine_kernel      the tiles of a row -> loss, log-sum-exp, entropy, top-1

There are no atomics and every sum has a fixed order. Tiles of ignored rows return immediately.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..backends import triton_configs as configs
from ..backends.triton_common import LOG2E, LOW, WIDEN, dot_precision, on_device, tanh
from . import triton_loss_rows as loss_rows
from .chunks import equal_rows
from .options import LossInputs, RowOptions
from .reference import RowStatistics
from .triton_loss_rows import backward_rows

__all__ = ["backward_rows", "forward_rows", "fused_rows"]


@triton.jit
def _tile_of_logits(
    x_ptr, w_ptr, stride_x, stride_wv, stride_wd, R, V, D, tile_m, tile_v,
    BLOCK_M: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_D: tl.constexpr,
    EVEN_D: tl.constexpr, PRECISION: tl.constexpr, DESCRIPTORS: tl.constexpr,
):  # fmt: skip
    """float32 (BLOCK_M, BLOCK_V) of x w^T. Rows and columns beyond the edge repeat the last one, or are 0.

    DESCRIPTORS: x_ptr and w_ptr are tensor descriptors, read by Hopper's TMA.
    """
    z = tl.zeros((BLOCK_M, BLOCK_V), dtype=tl.float32)
    if DESCRIPTORS:
        for d in range(0, D, BLOCK_D):
            x = x_ptr.load([tile_m * BLOCK_M, d])
            w = w_ptr.load([tile_v * BLOCK_V, d])
            if WIDEN:
                x = x.to(tl.float32)
                w = w.to(tl.float32)
            z = tl.dot(x, w.T, z, input_precision=PRECISION)
    else:
        offs_d = tl.arange(0, BLOCK_D)
        rows = tl.minimum(tile_m * BLOCK_M + tl.arange(0, BLOCK_M), R - 1).to(tl.int64)
        columns = tl.minimum(tile_v * BLOCK_V + tl.arange(0, BLOCK_V), V - 1).to(tl.int64)
        x_ptrs = x_ptr + rows[:, None] * stride_x + offs_d[None, :]
        w_ptrs = w_ptr + columns[None, :] * stride_wv + offs_d[:, None] * stride_wd
        for d in range(0, D, BLOCK_D):
            if EVEN_D:
                x = tl.load(x_ptrs)
                w = tl.load(w_ptrs)
            else:
                x = tl.load(x_ptrs, mask=offs_d[None, :] < D - d, other=0.0)
                w = tl.load(w_ptrs, mask=offs_d[:, None] < D - d, other=0.0)
            if WIDEN:
                x = x.to(tl.float32)
                w = w.to(tl.float32)
            z = tl.dot(x, w, z, input_precision=PRECISION)
            x_ptrs += BLOCK_D
            w_ptrs += BLOCK_D * stride_wd
    return z


@triton.jit
def _tile_ids(tiles_m, tiles_v, GROUP: tl.constexpr):
    """Program id -> tile: GROUP tiles of rows at a time, so that they share the columns of w in the cache."""
    pid = tl.program_id(0)
    per_group = GROUP * tiles_v
    first = (pid // per_group) * GROUP
    size = tl.minimum(tiles_m - first, GROUP)
    return first + (pid % per_group) % size, (pid % per_group) // size


@triton.jit
def _emit_statistics(
    z, strip, target_ptr, max_ptr, sum_ptr, dot_ptr, z_target_ptr, tile_m, R, V, strips, softcap,
    BLOCK_M: tl.constexpr, STRIP: tl.constexpr, SOFTCAP: tl.constexpr,
):  # fmt: skip
    """A strip (BLOCK_M rows, STRIP columns) of logits -> its line in the partial sums."""
    offs_m = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_v = strip * STRIP + tl.arange(0, STRIP)
    if SOFTCAP:
        z = softcap * tanh(z / softcap)
    z = tl.where(offs_v[None, :] < V, z, LOW)
    inside = offs_m < R
    rows = offs_m.to(tl.int64)
    partial = rows * strips + strip
    top = tl.max(z, 1)
    tl.store(max_ptr + partial, top, mask=inside)
    z -= top[:, None]  # exactly 0 at the maximum: z_target == top remains a test for top-1

    target = tl.load(target_ptr + rows, mask=inside, other=-1)
    here = (target >= strip * STRIP) & (target < tl.minimum(V, (strip + 1) * STRIP))
    if tl.max(tl.where(here, 1.0, 0.0), 0) > 0:  # a pass over the tile that most strips skip
        z_target = top + tl.sum(tl.where(offs_v[None, :] == target[:, None], z, 0.0), 1)
        tl.store(z_target_ptr + rows, z_target, mask=inside & here)

    e = tl.exp2(z * LOG2E)
    tl.store(sum_ptr + partial, tl.sum(e, 1), mask=inside)
    tl.store(dot_ptr + partial, tl.sum(e * z, 1), mask=inside)


@triton.jit
def _halves(z, BLOCK_M: tl.constexpr, STRIP: tl.constexpr):
    """(BLOCK_M, 2 * STRIP) -> left and right (BLOCK_M, STRIP)."""
    return tl.split(tl.permute(tl.reshape(z, (BLOCK_M, 2, STRIP)), (0, 2, 1)))


@triton.jit
def _statistics_kernel(
    x_ptr, w_ptr, target_ptr, count_ptr, max_ptr, sum_ptr, dot_ptr, z_target_ptr,
    stride_x, stride_wv, stride_wd, start, R, V, D, tiles_v, softcap,
    BLOCK_M: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_D: tl.constexpr, GROUP: tl.constexpr, SPLIT: tl.constexpr,
    EVEN_D: tl.constexpr, PRECISION: tl.constexpr, SOFTCAP: tl.constexpr, DESCRIPTORS: tl.constexpr,
):  # fmt: skip
    tile_m, tile_v = _tile_ids(tl.cdiv(R, BLOCK_M), tiles_v, GROUP)
    counted = tl.load(count_ptr) - start  # rows of this chunk that are not ignored
    if tile_m * BLOCK_M >= counted:
        return
    z = _tile_of_logits(
        x_ptr, w_ptr, stride_x, stride_wv, stride_wd, R, V, D, tile_m, tile_v,
        BLOCK_M, BLOCK_V, BLOCK_D, EVEN_D, PRECISION, DESCRIPTORS,
    )  # fmt: skip
    if SPLIT:  # half a tile at a time: the registers of a wide tile would spill
        left, right = _halves(z, BLOCK_M, BLOCK_V // 2)
        _emit_statistics(
            left, 2 * tile_v, target_ptr, max_ptr, sum_ptr, dot_ptr, z_target_ptr, tile_m, R, V, 2 * tiles_v, softcap,
            BLOCK_M, BLOCK_V // 2, SOFTCAP,
        )  # fmt: skip
        _emit_statistics(
            right, 2 * tile_v + 1, target_ptr, max_ptr, sum_ptr, dot_ptr, z_target_ptr, tile_m, R, V, 2 * tiles_v, softcap,
            BLOCK_M, BLOCK_V // 2, SOFTCAP,
        )  # fmt: skip
    else:
        _emit_statistics(
            z, tile_v, target_ptr, max_ptr, sum_ptr, dot_ptr, z_target_ptr, tile_m, R, V, tiles_v, softcap,
            BLOCK_M, BLOCK_V, SOFTCAP,
        )  # fmt: skip


@triton.jit
def _combine_kernel(
    max_ptr, sum_ptr, dot_ptr, z_target_ptr, count_ptr, order_ptr,
    loss_ptr, top_ptr, log_total_ptr, entropy_ptr, correct_ptr, start, R, strips,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, ENTROPY: tl.constexpr,
):  # fmt: skip
    offs_r = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = offs_r < R
    counts = inside & (start + offs_r < tl.load(count_ptr))
    partial = offs_r.to(tl.int64)[:, None] * strips
    strip = tl.arange(0, BLOCK)[None, :]
    top = tl.full((ROWS,), LOW, tl.float32)
    for first in range(0, strips, BLOCK):
        mask = counts[:, None] & (first + strip < strips)
        top = tl.maximum(top, tl.max(tl.load(max_ptr + partial + first + strip, mask=mask, other=LOW), 1))
    top = tl.where(counts, top, 0.0)
    total = tl.zeros((ROWS,), tl.float32)
    dot = tl.zeros((ROWS,), tl.float32)
    for first in range(0, strips, BLOCK):
        mask = counts[:, None] & (first + strip < strips)
        gap = tl.load(max_ptr + partial + first + strip, mask=mask, other=LOW) - top[:, None]
        factor = tl.exp2(gap * LOG2E)
        part = tl.load(sum_ptr + partial + first + strip, mask=mask, other=0.0)
        total += tl.sum(factor * part, 1)
        if ENTROPY:
            part_dot = tl.load(dot_ptr + partial + first + strip, mask=mask, other=0.0)
            dot += tl.sum(factor * (part_dot + gap * part), 1)
    log_total = tl.log(tl.where(counts, total, 1.0))
    z_target = tl.load(z_target_ptr + offs_r, mask=counts, other=0.0)
    # (top - z) first: for a confident row both terms are small, while lse and z may be large.
    loss = (top - z_target) + log_total
    # Ignored rows get zeros; every row of the batch is written by exactly one program.
    row = tl.load(order_ptr + start + offs_r, mask=inside, other=0)
    tl.store(loss_ptr + row, tl.where(counts, loss, 0.0), mask=inside)
    tl.store(top_ptr + row, tl.where(counts, top, 0.0), mask=inside)
    tl.store(log_total_ptr + row, tl.where(counts, log_total, 0.0), mask=inside)
    if ENTROPY:
        entropy = log_total - dot / tl.where(counts, total, 1.0)
        tl.store(entropy_ptr + row, tl.where(counts, entropy, 0.0), mask=inside)
        tl.store(correct_ptr + row, counts & (z_target == top), mask=inside)


class _PackedChunks:
    """Rows with those that are not ignored packed first, in chunks."""

    def __init__(self, inputs: LossInputs, options: RowOptions):
        hidden_ND, weight_VD, _, valid_N = inputs
        softcap = options.softcap
        self.N, self.D = hidden_ND.shape
        self.V = weight_VD.shape[0]
        arch = configs.architecture(hidden_ND.device)
        most = configs.CHUNK_LOGITS[arch] // self.V
        self.rows = max(1, min(self.N, options.rows_per_chunk or equal_rows(self.N, most, configs.CHUNK_MULTIPLE)))
        self.config = config = configs.logits(arch, softcap is not None, hidden_ND, weight_VD)
        self.tiles_v = triton.cdiv(self.V, config.block_n)
        self.strips = self.tiles_v * (2 if config.split else 1)
        # Stable, so the order (and with it every bit) is a function of the mask.
        self.order_N = torch.argsort(valid_N.logical_not(), stable=True)
        self.count = valid_N.sum()
        self.gemm = dict(
            BLOCK_M=config.block_m,
            BLOCK_V=config.block_n,
            BLOCK_D=config.block_k,
            GROUP=config.group,
            SPLIT=config.split,
            EVEN_D=self.D % config.block_k == 0,
            PRECISION=dot_precision(hidden_ND.dtype),
            DESCRIPTORS=config.descriptors,
            **config.launch(),
        )
        self.softcap = dict(softcap=softcap or 1.0, SOFTCAP=softcap is not None)

    def operands(self, x_RD: Tensor, weight_VD: Tensor) -> tuple:
        """x, w and their strides as arguments of the kernels."""
        x, w = x_RD, weight_VD
        if self.config.descriptors:
            from triton.tools.tensor_descriptor import TensorDescriptor

            x = TensorDescriptor.from_tensor(x_RD, [self.config.block_m, self.config.block_k])
            w = TensorDescriptor.from_tensor(weight_VD, [self.config.block_n, self.config.block_k])
        return x, w, (x_RD.stride(0), *weight_VD.stride())

    def __iter__(self):
        for start in range(0, self.N, self.rows):
            yield start, self.order_N[start : start + self.rows]

    def grid(self, R: int) -> tuple[int]:
        return (triton.cdiv(R, self.config.block_m) * self.tiles_v,)


def _sweep(inputs: LossInputs, options: RowOptions, *, entropy: bool) -> tuple[Tensor, ...]:
    """-> loss, top, log_total, correct, entropy of all rows; the last two empty unless `entropy`."""
    hidden_ND, weight_VD, targets_N, _ = inputs
    chunks = _PackedChunks(inputs, options)
    new: dict[str, Any] = dict(dtype=torch.float32, device=hidden_ND.device)
    N, R = chunks.N, chunks.rows
    loss_N, top_N, log_total_N = (torch.empty(N, **new) for _ in range(3))
    entropy_N = torch.empty(N if entropy else 0, **new)
    correct_N = torch.empty(N if entropy else 0, dtype=torch.bool, device=hidden_ND.device)
    max_RT, sum_RT, dot_RT = (torch.empty(R, chunks.strips, **new) for _ in range(3))
    z_target_R = torch.empty(R, **new)
    with on_device(hidden_ND):
        for start, order_R in chunks:
            n = len(order_R)
            x_RD, target_R = hidden_ND.index_select(0, order_R), targets_N.index_select(0, order_R)
            # A target outside the vocabulary is in no tile: its logit stays -inf and its loss is inf.
            z_target_R.fill_(float("-inf"))
            x, w, strides = chunks.operands(x_RD, weight_VD)
            _statistics_kernel[chunks.grid(n)](
                x, w, target_R, chunks.count, max_RT, sum_RT, dot_RT, z_target_R,
                *strides, start, n, chunks.V, chunks.D, chunks.tiles_v, **chunks.softcap, **chunks.gemm,
            )  # fmt: skip
            _combine_kernel[(triton.cdiv(n, 4),)](
                max_RT, sum_RT, dot_RT, z_target_R, chunks.count, chunks.order_N,
                loss_N, top_N, log_total_N, entropy_N, correct_N, start, n, chunks.strips,
                ROWS=4, BLOCK=128, ENTROPY=entropy, num_warps=4,
            )  # fmt: skip
    return loss_N, top_N, log_total_N, correct_N, entropy_N


def fused_rows(
    inputs: LossInputs, scale_N: Tensor, options: RowOptions
) -> tuple[RowStatistics, Tensor | None, Tensor | None]:
    """As reference.fused_rows."""
    if options.need_gradients:
        return loss_rows.fused_rows(inputs, scale_N, options)
    loss_N, top_N, log_total_N, correct_N, entropy_N = _sweep(inputs, options, entropy=True)
    return RowStatistics(loss_N, top_N + log_total_N, correct_N, entropy_N), None, None


def forward_rows(inputs: LossInputs, options: RowOptions) -> tuple[Tensor, ...]:
    """As reference.forward_rows."""
    return _sweep(inputs, options, entropy=False)[:3]
