"""Attention in Triton, forward and backward, without a (T, T) matrix (Dao, arXiv 2307.08691).

With s = scale * q k^T, p = softmax(s) and lse the log-sum-exp of a row, kept by the forward pass (in base 2):

    o = p v        p = exp(s - lse)        dv = p^T do        dp = do v^T
    ds = p * (dp - delta), delta = rowsum(o * do)        dq = scale * ds k        dk = scale * ds^T q

Backward runs one kernel over blocks of keys (dk, dv, summing the query heads of a group) and one over blocks of queries
(dq). That recomputes s and dp twice, and needs no atomics: it is always deterministic.

A block of queries visits the contiguous range of key blocks that any of its rows may see: from the causal edge, the
window and, for documents, the range of blocks whose ids overlap. Blocks that need no mask get none.
"""

import math

import torch
import triton
from torch import Tensor

from ..backends import triton_configs as configs
from ..backends.triton_common import dot_precision, on_device
from .options import Gradients, Options, empty_gradients
from .triton_backward import _delta_kernel, _dkdv_kernel, _dq_kernel
from .triton_document_ranges import block_ranges
from .triton_forward import _forward_kernel


def _unit_rows(t: Tensor) -> Tensor:
    return t if t.stride(3) == 1 else t.contiguous()


class _Launch:
    """Arguments that the three large kernels share."""

    def __init__(self, q: Tensor, k: Tensor, v: Tensor, options: Options):
        causal, scale, document_ids, window, _ = options
        self.q, self.k, self.v = (_unit_rows(t) for t in (q, k, v))
        self.B, self.T, self.H, self.D = q.shape
        self.G = k.shape[2]
        self.scale = self.D**-0.5 if scale is None else scale
        self.ids = None if document_ids is None else document_ids.contiguous()
        self.window = window or 0
        self.block_d = max(16, triton.next_power_of_2(self.D))
        arch = configs.architecture(q.device)
        masked = window is not None or document_ids is not None
        self.config = lambda part: configs.attention(arch, q.element_size(), self.block_d, part, self.T, masked)
        self.flags = dict(
            CAUSAL=causal, WINDOW=window is not None, DOCUMENTS=self.ids is not None, PRECISION=dot_precision(q.dtype)
        )
        self.strides = [s for t in (self.q, self.k, self.v) for s in t.stride()[:3]]

    def options(self, config: configs.Attention) -> dict:
        return self.flags | dict(
            GROUP=self.H // self.G,
            D=self.D,
            BLOCK_D=self.block_d,
            BLOCK_Q=config.block_q,
            BLOCK_K=config.block_k,
            EVEN_T=self.T % config.block_q == 0 and self.T % config.block_k == 0,
            num_warps=config.num_warps,
            num_stages=config.num_stages,
        )

    def ranges(self, rows: int, columns: int) -> tuple[Tensor, Tensor]:
        """Document ids and block ranges; any pointer where there are no documents."""
        if self.ids is None:
            return self.q, self.q
        return self.ids, block_ranges(self.ids, rows, columns, equal=False)


def forward(q: Tensor, k: Tensor, v: Tensor, options: Options) -> tuple[Tensor, Tensor]:
    """-> out (B, T, H, D), lse (B, H, T) float32, in base 2 for exp2."""
    a = _Launch(q, k, v, options)
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    lse = torch.empty(a.B, a.H, a.T, dtype=torch.float32, device=q.device)
    config = a.config("forward")
    keys, values = a.k, a.v
    if config.descriptors:
        from triton.tools.tensor_descriptor import TensorDescriptor

        tile = [1, config.block_k, 1, a.block_d]
        keys, values = (TensorDescriptor.from_tensor(t, tile) for t in (a.k, a.v))
    with on_device(q):
        _forward_kernel[(triton.cdiv(a.T, config.block_q) * a.B * a.H,)](
            a.q, keys, values, out, lse, *a.ranges(config.block_q, config.block_k), *a.strides,
            a.T, a.H, a.window, a.scale * math.log2(math.e), DESCRIPTORS=config.descriptors, **a.options(config),
        )  # fmt: skip
    return out, lse


def backward(
    do: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    options: Options,
    into: Gradients | None = None,
) -> Gradients:
    """-> dq, dk, dv, always deterministic. into: where to write them (options.py)."""
    a = _Launch(q, k, v, options)
    do = _unit_rows(do)
    dq, dk, dv = into or empty_gradients(q, k, v)
    delta = torch.empty_like(lse)
    with on_device(q):
        _delta_kernel[(triton.cdiv(a.T, 64) * a.B * a.H,)](
            out, do, delta, *out.stride()[:3], *do.stride()[:3], a.T, a.H, D=a.D, BLOCK_D=a.block_d, BLOCK_Q=64,
            num_warps=4, enable_fp_fusion=False,  # as in rms_norm/triton.py: o * do + (the neighbour's o * do) is rounded twice
        )  # fmt: skip
        config = a.config("dkdv")
        _dkdv_kernel[(triton.cdiv(a.T, config.block_k) * a.B * a.G,)](
            a.q, a.k, a.v, do, lse, delta, dk, dv, *a.ranges(config.block_k, config.block_q), *a.strides,
            *do.stride()[:3], *dk.stride()[:2], a.T, a.H, a.window, a.scale, **a.options(config),
        )  # fmt: skip
        config = a.config("dq")
        _dq_kernel[(triton.cdiv(a.T, config.block_q) * a.B * a.H,)](
            a.q, a.k, a.v, do, lse, delta, dq, *a.ranges(config.block_q, config.block_k), *a.strides,
            *do.stride()[:3], *dq.stride()[:2], a.T, a.H, a.window, a.scale, **a.options(config),
        )  # fmt: skip
    return dq, dk, dv
