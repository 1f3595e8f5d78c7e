"""The scores of attention's Triton kernels: scaled products, a softcap on them, a bias of (head, query, key) added to them.

A bias is a device function of a head's parameter (float32) and of the positions of queries and keys, broadcast against each
other; the launcher passes it as a constant of the kernel and the parameters as one tensor (heads,). It is computed where the
scores are, so there is never a matrix of it, and no gradient flows to its parameters. To add one: a function here and its line in
BIASES, its name in those of options.py; docs/how-to/extend.md has the rest.
"""

import triton
import triton.language as tl

from ..backends.triton_common import LOG2E, tanh


@triton.jit
def _alibi(slope, at_q, at_k):
    """-slope |i - j| (Press et al., arXiv 2108.12409)."""
    return -slope * tl.abs(at_q - at_k).to(tl.float32)


BIASES = {"alibi": _alibi}  # by the option of its parameters


@triton.jit
def _parameter(ptr, h):
    """A head's entry of a tensor (heads,), float32; 0 where there is none."""
    x = 0.0
    if ptr is not None:
        x = tl.load(ptr + h).to(tl.float32)
    return x


@triton.jit
def _scores(product, at_q, at_k, scale2, cap2, parameter, SOFTCAP: tl.constexpr, BIAS: tl.constexpr):
    """-> scores in base 2, and with a softcap the tanh in them, 1 - tanh^2 being their derivative by scale * product.

    scale2, cap2: scale * log2(e); with a softcap scale / softcap and softcap * log2(e).
    """
    s = product * scale2
    t = s
    if SOFTCAP:
        t = tanh(s)
        s = t * cap2
    if BIAS is not None:
        s += BIAS(parameter, at_q, at_k) * LOG2E
    return s, t
