"""Cross-entropy of a linear head in Triton (the mathematics is in reference/cross_entropy.py).

Rows that count are packed to the front, and chunk after chunk of R of them goes through

    _statistics_kernel   a tile of logits z = x w^T on the tensor cores; of each row of the tile it keeps the maximum m,
                         sum e and sum e * (z - m) with e = exp(z - m), the target's z, and, where gradients will be
                         wanted, e itself (in [0, 1], so that rounding it to 16 bits costs a relative 2^-9 however large
                         z is; rounding z would not)
    _combine_kernel      the tiles of a row -> loss, log-sum-exp, entropy, top-1
    _rescale_kernel      e -> d loss / dz, in place; the target's entry is formed in float32, then rounded

and two plain matrix products (cuBLAS on a GPU) make dX and add to dW, in float32. linear_cross_entropy's backward has
the log-sum-exp already, so _gradient_kernel writes d loss / dz straight from the recomputed tile.

Nothing is atomic and every sum has a fixed order. Without gradients no logits are stored at all, and tiles without a
row that counts end at once.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..products import add_to_dw, finish_dw
from ..reference.cross_entropy import RowStatistics, gradient_dtype
from . import configs
from .common import WIDEN, dot_precision, on_device

LOW = tl.constexpr(-1.0e30)  # in the place of what is not there; finite, so that 0 * LOW is 0


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
    """Program id -> tile: GROUP tiles of rows at a time, so that they meet the same columns of w in the cache."""
    pid = tl.program_id(0)
    per_group = GROUP * tiles_v
    first = (pid // per_group) * GROUP
    size = tl.minimum(tiles_m - first, GROUP)
    return first + (pid % per_group) % size, (pid % per_group) // size


@triton.jit
def _tanh(x):
    """Without libdevice; a series near 0, where the quotient of exponentials would cancel."""
    a = tl.abs(x)
    e = tl.exp(-2.0 * a)
    far = (1.0 - e) / (1.0 + e)
    s = a * a
    near = a * (1.0 + s * (-1.0 / 3 + s * (2.0 / 15 + s * (-17.0 / 315 + s * (62.0 / 2835)))))
    t = tl.where(a < 0.25, near, far)
    return tl.where(x < 0, -t, t)


@triton.jit
def _emit_statistics(
    z, strip, target_ptr, e_ptr, max_ptr, sum_ptr, dot_ptr, z_target_ptr, stride_e, tile_m, R, V, strips, softcap,
    BLOCK_M: tl.constexpr, STRIP: tl.constexpr, SOFTCAP: tl.constexpr, STORE: tl.constexpr,
):  # fmt: skip
    """A strip (BLOCK_M rows, STRIP columns) of logits -> its line in the partial sums."""
    offs_m = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_v = strip * STRIP + tl.arange(0, STRIP)
    if SOFTCAP:
        z = softcap * _tanh(z / softcap)
    z = tl.where(offs_v[None, :] < V, z, LOW)
    inside = offs_m < R
    rows = offs_m.to(tl.int64)
    partial = rows * strips + strip
    top = tl.max(z, 1)
    tl.store(max_ptr + partial, top, mask=inside)
    z -= top[:, None]  # exactly 0 where the maximum was: z_target == top stays a test for top-1

    target = tl.load(target_ptr + rows, mask=inside, other=-1)
    here = (target >= strip * STRIP) & (target < tl.minimum(V, (strip + 1) * STRIP))
    z_target = top + tl.sum(tl.where(offs_v[None, :] == target[:, None], z, 0.0), 1)
    tl.store(z_target_ptr + rows, z_target, mask=inside & here)

    e = tl.exp(z)
    tl.store(sum_ptr + partial, tl.sum(e, 1), mask=inside)
    tl.store(dot_ptr + partial, tl.sum(e * z, 1), mask=inside)
    if STORE:
        e_ptrs = e_ptr + rows[:, None] * stride_e + offs_v[None, :]
        tl.store(e_ptrs, e.to(e_ptr.dtype.element_ty), mask=inside[:, None] & (offs_v[None, :] < V))


@triton.jit
def _halves(z, BLOCK_M: tl.constexpr, STRIP: tl.constexpr):
    """(BLOCK_M, 2 * STRIP) -> left and right (BLOCK_M, STRIP)."""
    return tl.split(tl.permute(tl.reshape(z, (BLOCK_M, 2, STRIP)), (0, 2, 1)))


@triton.jit
def _statistics_kernel(
    x_ptr, w_ptr, target_ptr, count_ptr, e_ptr, max_ptr, sum_ptr, dot_ptr, z_target_ptr,
    stride_x, stride_wv, stride_wd, stride_e, start, R, V, D, tiles_v, softcap,
    BLOCK_M: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_D: tl.constexpr, GROUP: tl.constexpr, SPLIT: tl.constexpr,
    EVEN_D: tl.constexpr, PRECISION: tl.constexpr, SOFTCAP: tl.constexpr, STORE: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
):  # fmt: skip
    tile_m, tile_v = _tile_ids(tl.cdiv(R, BLOCK_M), tiles_v, GROUP)
    counted = tl.load(count_ptr) - start  # rows of this chunk that count
    if tile_m * BLOCK_M >= counted:
        return
    z = _tile_of_logits(
        x_ptr, w_ptr, stride_x, stride_wv, stride_wd, R, V, D, tile_m, tile_v,
        BLOCK_M, BLOCK_V, BLOCK_D, EVEN_D, PRECISION, DESCRIPTORS,
    )  # fmt: skip
    if SPLIT:  # half a tile at a time, or the registers of a wide tile spill
        left, right = _halves(z, BLOCK_M, BLOCK_V // 2)
        _emit_statistics(
            left, 2 * tile_v, target_ptr, e_ptr, max_ptr, sum_ptr, dot_ptr, z_target_ptr, stride_e, tile_m,
            R, V, 2 * tiles_v, softcap, BLOCK_M, BLOCK_V // 2, SOFTCAP, STORE,
        )  # fmt: skip
        _emit_statistics(
            right, 2 * tile_v + 1, target_ptr, e_ptr, max_ptr, sum_ptr, dot_ptr, z_target_ptr, stride_e, tile_m,
            R, V, 2 * tiles_v, softcap, BLOCK_M, BLOCK_V // 2, SOFTCAP, STORE,
        )  # fmt: skip
    else:
        _emit_statistics(
            z, tile_v, target_ptr, e_ptr, max_ptr, sum_ptr, dot_ptr, z_target_ptr, stride_e, tile_m,
            R, V, tiles_v, softcap, BLOCK_M, BLOCK_V, SOFTCAP, STORE,
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
        factor = tl.exp(gap)
        part = tl.load(sum_ptr + partial + first + strip, mask=mask, other=0.0)
        total += tl.sum(factor * part, 1)
        if ENTROPY:
            part_dot = tl.load(dot_ptr + partial + first + strip, mask=mask, other=0.0)
            dot += tl.sum(factor * (part_dot + gap * part), 1)
    log_total = tl.log(tl.where(counts, total, 1.0))
    z_target = tl.load(z_target_ptr + offs_r, mask=counts, other=0.0)
    # (top - z) first: for a confident row both terms are small, while lse and z may be large.
    loss = (top - z_target) + log_total
    # Rows that do not count get zeros; every row of the batch is written by exactly one program.
    row = tl.load(order_ptr + start + offs_r, mask=inside, other=0)
    tl.store(loss_ptr + row, tl.where(counts, loss, 0.0), mask=inside)
    tl.store(top_ptr + row, tl.where(counts, top, 0.0), mask=inside)
    tl.store(log_total_ptr + row, tl.where(counts, log_total, 0.0), mask=inside)
    if ENTROPY:
        entropy = log_total - dot / tl.where(counts, total, 1.0)
        tl.store(entropy_ptr + row, tl.where(counts, tl.maximum(entropy, 0.0), 0.0), mask=inside)
        tl.store(correct_ptr + row, counts & (z_target == top), mask=inside)


@triton.jit
def _rescale_kernel(
    e_ptr, max_ptr, z_target_ptr, top_ptr, log_total_ptr, scale_ptr, target_ptr, count_ptr, order_ptr,
    stride_e, start, R, V, strips, z_loss,
    ROWS: tl.constexpr, STRIP: tl.constexpr,
):  # fmt: skip
    strip = tl.program_id(1)
    offs_r = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    offs_v = strip * STRIP + tl.arange(0, STRIP)
    inside = offs_r < R
    counts = inside & (start + offs_r < tl.load(count_ptr))
    rows = offs_r.to(tl.int64)
    row = tl.load(order_ptr + start + offs_r, mask=inside, other=0)
    scale = tl.load(scale_ptr + row, mask=counts, other=0.0)
    top = tl.load(top_ptr + row, mask=counts, other=0.0)
    log_total = tl.load(log_total_ptr + row, mask=counts, other=0.0)
    strip_top = tl.load(max_ptr + rows * strips + strip, mask=counts, other=float("-inf"))
    z_target = tl.load(z_target_ptr + rows, mask=counts, other=float("-inf"))
    target = tl.load(target_ptr + rows, mask=counts, other=-1)
    pull = 2.0 * z_loss * (top + log_total)
    mask = inside[:, None] & (offs_v[None, :] < V)
    e_ptrs = e_ptr + rows[:, None] * stride_e + offs_v[None, :]
    # Not loaded for rows that do not count: nobody wrote them.
    e = tl.load(e_ptrs, mask=mask & counts[:, None], other=0.0).to(tl.float32)
    dz = e * (tl.exp((strip_top - top) - log_total) * (1.0 + pull) * scale)[:, None]
    p_target = tl.exp((z_target - top) - log_total)
    dz_target = ((p_target - 1.0) + pull * p_target) * scale
    dz = tl.where(offs_v[None, :] == target[:, None], dz_target[:, None], dz)
    tl.store(e_ptrs, dz.to(e_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _emit_gradient(
    z, strip, target_ptr, top_ptr, log_total_ptr, scale_ptr, dz_ptr, stride_dz, tile_m, counted, R, V, softcap, z_loss,
    BLOCK_M: tl.constexpr, STRIP: tl.constexpr, SOFTCAP: tl.constexpr,
):  # fmt: skip
    """A strip of logits -> the same strip of d loss / dz."""
    offs_m = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_v = strip * STRIP + tl.arange(0, STRIP)
    rows = offs_m.to(tl.int64)
    inside = offs_m < R
    counts = inside & (offs_m < counted)
    scale = tl.load(scale_ptr + rows, mask=counts, other=0.0)
    top = tl.load(top_ptr + rows, mask=counts, other=-LOW)  # so that p is 0
    log_total = tl.load(log_total_ptr + rows, mask=counts, other=0.0)
    target = tl.load(target_ptr + rows, mask=counts, other=-1)
    pull = 2.0 * z_loss * (top + log_total)
    if SOFTCAP:
        t = _tanh(z / softcap)
        z = softcap * t
    p = tl.exp((z - top[:, None]) - log_total[:, None])
    dz = tl.where(offs_v[None, :] == target[:, None], p - 1.0, p) + pull[:, None] * p
    dz *= scale[:, None]
    if SOFTCAP:
        dz *= 1.0 - t * t
    dz_ptrs = dz_ptr + rows[:, None] * stride_dz + offs_v[None, :]
    tl.store(dz_ptrs, dz.to(dz_ptr.dtype.element_ty), mask=inside[:, None] & (offs_v[None, :] < V))


@triton.jit
def _gradient_kernel(
    x_ptr, w_ptr, target_ptr, count_ptr, top_ptr, log_total_ptr, scale_ptr, dz_ptr,
    stride_x, stride_wv, stride_wd, stride_dz, start, R, V, D, tiles_v, softcap, z_loss,
    BLOCK_M: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_D: tl.constexpr, GROUP: tl.constexpr, SPLIT: tl.constexpr,
    EVEN_D: tl.constexpr, PRECISION: tl.constexpr, SOFTCAP: tl.constexpr, DESCRIPTORS: tl.constexpr,
):  # fmt: skip
    tile_m, tile_v = _tile_ids(tl.cdiv(R, BLOCK_M), tiles_v, GROUP)
    counted = tl.load(count_ptr) - start
    if tile_m * BLOCK_M >= counted:
        offs_m = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
        offs_v = tile_v * BLOCK_V + tl.arange(0, BLOCK_V)
        dz_ptrs = dz_ptr + offs_m.to(tl.int64)[:, None] * stride_dz + offs_v[None, :]
        mask = (offs_m[:, None] < R) & (offs_v[None, :] < V)
        tl.store(dz_ptrs, tl.zeros((BLOCK_M, BLOCK_V), dz_ptr.dtype.element_ty), mask=mask)
        return
    z = _tile_of_logits(
        x_ptr, w_ptr, stride_x, stride_wv, stride_wd, R, V, D, tile_m, tile_v,
        BLOCK_M, BLOCK_V, BLOCK_D, EVEN_D, PRECISION, DESCRIPTORS,
    )  # fmt: skip
    if SPLIT:
        left, right = _halves(z, BLOCK_M, BLOCK_V // 2)
        _emit_gradient(
            left, 2 * tile_v, target_ptr, top_ptr, log_total_ptr, scale_ptr, dz_ptr, stride_dz, tile_m,
            counted, R, V, softcap, z_loss, BLOCK_M, BLOCK_V // 2, SOFTCAP,
        )  # fmt: skip
        _emit_gradient(
            right, 2 * tile_v + 1, target_ptr, top_ptr, log_total_ptr, scale_ptr, dz_ptr, stride_dz, tile_m,
            counted, R, V, softcap, z_loss, BLOCK_M, BLOCK_V // 2, SOFTCAP,
        )  # fmt: skip
    else:
        _emit_gradient(
            z, tile_v, target_ptr, top_ptr, log_total_ptr, scale_ptr, dz_ptr, stride_dz, tile_m, counted, R, V,
            softcap, z_loss, BLOCK_M, BLOCK_V, SOFTCAP,
        )  # fmt: skip


class _Chunks:
    """Rows packed so that those that count come first, cut into chunks."""

    def __init__(
        self, hidden_ND: Tensor, weight_VD: Tensor, valid_N: Tensor, softcap: float | None, rows_per_chunk: int | None
    ):
        self.N, self.D = hidden_ND.shape
        self.V = weight_VD.shape[0]
        arch = configs.architecture(hidden_ND.device)
        self.config = config = configs.LOGITS[arch, hidden_ND.element_size(), softcap is not None]
        self.rows = max(1, min(self.N, rows_per_chunk or configs.CHUNK_LOGITS[arch] // self.V))
        self.tiles_v = triton.cdiv(self.V, config.block_n)
        self.strips = self.tiles_v * (2 if config.split else 1)
        self.strip = config.block_n // (2 if config.split else 1)
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
            num_warps=config.num_warps,
            num_stages=config.num_stages,
        )
        self.softcap = dict(softcap=softcap or 1.0, SOFTCAP=softcap is not None)

    def operands(self, x_RD: Tensor, weight_VD: Tensor) -> tuple:
        """x, w and their strides as the kernels take them."""
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

    def logits_buffer(self, like: Tensor) -> Tensor:
        """(rows, V), with rows padded to 16 bytes: cuBLAS is slow on rows that start unaligned."""
        step = 16 // like.element_size()
        padded = (self.V + step - 1) // step * step
        return torch.empty(self.rows, padded, dtype=like.dtype, device=like.device)[:, : self.V]


def _sweep(hidden_ND, weight_VD, targets_N, valid_N, scale_N, *, z_loss, softcap, need_dx, need_dw, entropy, chunk):
    """Statistics of all rows, and gradients as far as they are needed."""
    chunks = _Chunks(hidden_ND, weight_VD, valid_N, softcap, chunk)
    new = dict(dtype=torch.float32, device=hidden_ND.device)
    N, R = chunks.N, chunks.rows
    loss_N, top_N, log_total_N = (torch.empty(N, **new) for _ in range(3))
    entropy_N = torch.empty(N if entropy else 0, **new)
    correct_N = torch.empty(N if entropy else 0, dtype=torch.bool, device=hidden_ND.device)
    max_RT, sum_RT, dot_RT = (torch.empty(R, chunks.strips, **new) for _ in range(3))
    z_target_R = torch.empty(R, **new)
    need = need_dx or need_dw
    e_RV = chunks.logits_buffer(hidden_ND) if need else max_RT
    dx_ND = torch.empty(hidden_ND.shape, dtype=hidden_ND.dtype, device=hidden_ND.device) if need_dx else None
    dw_VD = None
    single = R >= N
    with on_device(hidden_ND):
        for start, order_R in chunks:
            n = len(order_R)
            x_RD, target_R = hidden_ND.index_select(0, order_R), targets_N.index_select(0, order_R)
            # A target outside the vocabulary meets no tile: its logit stays -inf and its loss becomes inf.
            z_target_R.fill_(float("-inf"))
            x, w, strides = chunks.operands(x_RD, weight_VD)
            _statistics_kernel[chunks.grid(n)](
                x, w, target_R, chunks.count, e_RV, max_RT, sum_RT, dot_RT, z_target_R,
                *strides, e_RV.stride(0), start, n, chunks.V, chunks.D, chunks.tiles_v,
                STORE=need, **chunks.softcap, **chunks.gemm,
            )  # fmt: skip
            _combine_kernel[(triton.cdiv(n, 4),)](
                max_RT, sum_RT, dot_RT, z_target_R, chunks.count, chunks.order_N,
                loss_N, top_N, log_total_N, entropy_N, correct_N, start, n, chunks.strips,
                ROWS=4, BLOCK=128, ENTROPY=entropy, num_warps=4,
            )  # fmt: skip
            if not need:
                continue
            _rescale_kernel[(triton.cdiv(n, 32), chunks.strips)](
                e_RV, max_RT, z_target_R, top_N, log_total_N, scale_N, target_R, chunks.count, chunks.order_N,
                e_RV.stride(0), start, n, chunks.V, chunks.strips, z_loss, ROWS=32, STRIP=chunks.strip, num_warps=4,
            )  # fmt: skip
            dx_ND, dw_VD = _products(e_RV[:n], x_RD, weight_VD, order_R, dx_ND, dw_VD, need_dw, single)
    return (loss_N, top_N, log_total_N, correct_N, entropy_N), dx_ND, dw_VD


def _products(dz_RV, x_RD, weight_VD, order_R, dx_ND, dw_VD, need_dw, single):
    if dx_ND is not None:
        dx_ND.index_copy_(0, order_R, dz_RV @ weight_VD)
    if need_dw:
        dw_VD = add_to_dw(dw_VD, dz_RV, x_RD, single=single)
    return dx_ND, dw_VD


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
):
    """As reference.cross_entropy.fused_rows."""
    rows, dx_ND, dw_VD = _sweep(
        hidden_ND, weight_VD, targets_N, valid_N, scale_N, z_loss=z_loss, softcap=None,
        need_dx=need_dx, need_dw=need_dw, entropy=True, chunk=rows_per_chunk,
    )  # fmt: skip
    loss_N, top_N, log_total_N, correct_N, entropy_N = rows
    rows = RowStatistics(loss_N, top_N + log_total_N, correct_N, entropy_N)
    return rows, dx_ND, finish_dw(dw_VD, weight_VD, gradient_dtype(weight_VD.dtype)) if need_dw else None


def forward_rows(hidden_ND, weight_VD, targets_N, valid_N, *, softcap, rows_per_chunk=None):
    """As reference.cross_entropy.forward_rows."""
    rows, _, _ = _sweep(
        hidden_ND, weight_VD, targets_N, valid_N, None, z_loss=0.0, softcap=softcap,
        need_dx=False, need_dw=False, entropy=False, chunk=rows_per_chunk,
    )  # fmt: skip
    return rows[:3]


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
    chunks = _Chunks(hidden_ND, weight_VD, valid_N, softcap, rows_per_chunk)
    dz_RV = chunks.logits_buffer(hidden_ND)
    dx_ND = torch.empty(hidden_ND.shape, dtype=hidden_ND.dtype, device=hidden_ND.device) if need_dx else None
    dw_VD = None
    single = chunks.rows >= chunks.N
    with on_device(hidden_ND):
        for start, order_R in chunks:
            n = len(order_R)
            x_RD = hidden_ND.index_select(0, order_R)
            rows = (targets_N, top_N, log_total_N, grad_N)
            target_R, top_R, log_total_R, grad_R = (row.index_select(0, order_R) for row in rows)
            x, w, strides = chunks.operands(x_RD, weight_VD)
            _gradient_kernel[chunks.grid(n)](
                x, w, target_R, chunks.count, top_R, log_total_R, grad_R, dz_RV,
                *strides, dz_RV.stride(0), start, n, chunks.V, chunks.D, chunks.tiles_v,
                z_loss=z_loss, **chunks.softcap, **chunks.gemm,
            )  # fmt: skip
            dx_ND, dw_VD = _products(dz_RV[:n], x_RD, weight_VD, order_R, dx_ND, dw_VD, need_dw, single)
    return dx_ND, finish_dw(dw_VD, weight_VD, gradient_dtype(weight_VD.dtype)) if need_dw else None
