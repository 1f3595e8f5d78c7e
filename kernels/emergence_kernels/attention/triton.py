"""Attention in Triton, forward and backward, without a (T, T) matrix (Dao, arXiv 2307.08691).

With s = scale * q k^T, p = softmax(s) and lse the log-sum-exp of a row, kept by the forward pass (in base 2):

    o = p v        p = exp(s - lse)        dv = p^T do        dp = do v^T
    ds = p * (dp - delta), delta = rowsum(o * do)        dq = scale * ds k        dk = scale * ds^T q

Backward runs one kernel over blocks of keys (dk, dv, summing the query heads of a group) and one over blocks of queries
(dq). That recomputes s and dp twice, and needs no atomics: it is always deterministic.

A block of queries visits the contiguous range of key blocks that any of its rows may see: from the causal edge, the
window and, for documents, the range of blocks whose ids overlap. Blocks that need no mask get none.

A softcap c makes s = c tanh(scale * q k^T / c), so ds is multiplied by 1 - tanh^2 for dq and dk; a bias is added to s; both
are in triton_scores.py. A sink is one more exp in the sum of p, present in lse: backward's formulas hold as they are. Its own
gradient is -sum of exp(sink - lse) * delta over the rows of a head.
"""

import math
from functools import partial

import torch
import triton
from torch import Tensor

from ..backends import triton_configs as configs
from ..backends.triton_common import dot_precision, on_device
from .document_ranges import Blocks
from .options import Gradients, Options, Saved, empty_gradients
from .triton_backward import _delta_kernel, _dkdv_kernel, _dq_kernel
from .triton_forward import _forward_kernel
from .triton_scores import BIASES

_LOG2E = math.log2(math.e)


def _unit_rows(t: Tensor) -> Tensor:
    return t if t.stride(3) == 1 else t.contiguous()


class _Launch:
    """Arguments that the three large kernels share."""

    def __init__(self, q: Tensor, k: Tensor, v: Tensor, options: Options):
        self.q, self.k, self.v = (_unit_rows(t) for t in (q, k, v))
        self.B, self.T, self.H, self.D = q.shape
        self.G = k.shape[2]
        self.plan = options.plan()
        self.ids = None if self.plan is None else self.plan.ids.contiguous()
        self.window = options.window or 0
        self.block_d = max(16, triton.next_power_of_2(self.D))
        self.config = partial(_config, q, options)
        self.sinks = None if options.sinks is None else options.sinks.contiguous()
        self.flags = dict(
            CAUSAL=options.causal,
            WINDOW=options.window is not None,
            DOCUMENTS=self.ids is not None,
            PRECISION=dot_precision(q.dtype),
            SOFTCAP=options.softcap is not None,
        )
        self._set_scores(options)
        self.strides = [s for t in (self.q, self.k, self.v) for s in t.stride()[:3]]

    def _set_scores(self, options: Options) -> None:
        """scales: scale2 and cap2 of triton_scores; bias: its parameters, and its function in the flags."""
        self.scale = self.D**-0.5 if options.scale is None else options.scale
        cap = options.softcap
        self.scales = (self.scale * _LOG2E, 0.0) if cap is None else (self.scale / cap, cap * _LOG2E)
        name, parameters = next(iter(options.biases().items()), ("", None))  # op.py refuses several
        self.bias = None if parameters is None else parameters.contiguous()
        self.flags["BIAS"] = BIASES.get(name)

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

    def ranges(self, blocks: Blocks) -> tuple[Tensor, Tensor]:
        """Document ids and block ranges; any pointer where there are no documents."""
        if self.ids is None or self.plan is None:
            return self.q, self.q
        return self.ids, self.plan.blocks(*blocks)


def _config(q: Tensor, options: Options, part: str) -> configs.Attention:
    B, T, H, D = q.shape
    careful = options.window is not None or options.document_ids is not None or options.changes_scores
    block_d = max(16, triton.next_power_of_2(D))
    return configs.attention(configs.architecture(q.device), q.element_size(), block_d, part, T, careful)


def _ranges_of_queries(config: configs.Attention) -> Blocks:
    return config.block_q, config.block_k, 2


def _ranges_of_keys(config: configs.Attention) -> Blocks:
    return config.block_k, config.block_q, 2


def document_blocks(q: Tensor, options: Options, backward: bool) -> list[Blocks]:
    """The ranges that forward reads, and backward too."""
    blocks = [_ranges_of_queries(_config(q, options, "forward"))]
    if backward:
        blocks += [_ranges_of_keys(_config(q, options, "dkdv")), _ranges_of_queries(_config(q, options, "dq"))]
    return blocks


def forward(q: Tensor, k: Tensor, v: Tensor, options: Options) -> tuple[Tensor, Tensor]:
    """-> out (B, T, H, D), lse (B, H, T) float32, in base 2 for exp2."""
    a = _Launch(q, k, v, options)
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    lse = torch.empty(a.B, a.H, a.T, dtype=torch.float32, device=q.device)
    config = a.config("forward")
    with on_device(q):
        _forward_kernel[(triton.cdiv(a.T, config.block_q) * a.B * a.H,)](
            a.q, a.k, a.v, out, lse, *a.ranges(_ranges_of_queries(config)), a.sinks, a.bias, *a.strides,
            a.T, a.H, a.window, *a.scales, **a.options(config),
        )  # fmt: skip
    return out, lse


def _delta(do: Tensor, out: Tensor) -> Tensor:
    """rowsum(o * do), (B, H, T) float32; do's features are adjacent."""
    B, T, H, D = out.shape
    delta = torch.empty(B, H, T, dtype=torch.float32, device=out.device)
    with on_device(out):
        _delta_kernel[(triton.cdiv(T, 64) * B * H,)](
            out, do, delta, *out.stride()[:3], *do.stride()[:3], T, H, D=D, BLOCK_D=max(16, triton.next_power_of_2(D)),
            BLOCK_Q=64, num_warps=4,
            enable_fp_fusion=False,  # as in rms_norm/triton.py: o * do + (the neighbour's o * do) is rounded twice
        )  # fmt: skip
    return delta


def sinks_gradient(do: Tensor, out: Tensor, lse: Tensor, sinks: Tensor) -> Tensor:
    """Of the forward pass's results: -sum of exp(sink - lse) * delta, (H,); deterministic."""
    p = torch.exp2(sinks.float()[:, None] * _LOG2E - lse)  # at most 1: the sink is in lse
    return -(p * _delta(_unit_rows(do), out)).sum((0, 2)).to(sinks.dtype)


def backward(do: Tensor, saved: Saved, options: Options, into: Gradients | None = None) -> Gradients:
    """-> dq, dk, dv, always deterministic. into: where to write them (options.py)."""
    q, k, v, out, lse = saved
    a = _Launch(q, k, v, options)
    do = _unit_rows(do)
    dq, dk, dv = into or empty_gradients(q, k, v)
    delta = _delta(do, out)
    with on_device(q):
        config = a.config("dkdv")
        _dkdv_kernel[(triton.cdiv(a.T, config.block_k) * a.B * a.G,)](
            a.q, a.k, a.v, do, lse, delta, dk, dv, *a.ranges(_ranges_of_keys(config)), a.bias, *a.strides,
            *do.stride()[:3], *dk.stride()[:2], a.T, a.H, a.window, a.scale, *a.scales, **a.options(config),
        )  # fmt: skip
        config = a.config("dq")
        _dq_kernel[(triton.cdiv(a.T, config.block_q) * a.B * a.H,)](
            a.q, a.k, a.v, do, lse, delta, dq, *a.ranges(_ranges_of_queries(config)), a.bias, *a.strides,
            *do.stride()[:3], *dq.stride()[:2], a.T, a.H, a.window, a.scale, *a.scales, **a.options(config),
        )  # fmt: skip
    return dq, dk, dv
