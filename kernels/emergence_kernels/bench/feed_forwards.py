"""Cases of feed_forward, both products and their activation, beside PyTorch's and Liger's."""

from collections.abc import Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from ..feed_forward.op import feed_forward
from .candidate import Case, Forward, candidates, constant, errors_of

SHAPES = {  # tokens, features, hidden features: of decoders of 468M, 1.2B and wider ones
    "full": [(16384, 1024, 3584), (32768, 1024, 3584), (32768, 2048, 5504), (16384, 4096, 11008)],
    "short": [(32768, 1024, 3584), (32768, 2048, 5504)],
    "laptop": [(2048, 256, 704)],
    "tiny": [(32, 48, 64)],
}


def _plain(x: Tensor, gate_up_weight: Tensor, down_weight: Tensor) -> Tensor:
    gate, up = F.linear(x, gate_up_weight).chunk(2, -1)
    return F.linear(F.silu(gate) * up, down_weight)


def _liger(x: Tensor, gate_up_weight: Tensor, down_weight: Tensor) -> Iterator[tuple[str, Forward]]:
    """With gate and up in two products, as its layer has them."""
    try:
        from liger_kernel.ops.swiglu import LigerSiLUMulFunction
    except ImportError:
        return
    gate, up = gate_up_weight.chunk(2)
    yield "liger-kernel", lambda: F.linear(LigerSiLUMulFunction.apply(F.linear(x, gate), F.linear(x, up)), down_weight)


def cases(suite: str, device: torch.device, dtype: torch.dtype, backends: list[str]) -> Iterator[Case]:
    for N, K, hidden in SHAPES[suite]:
        torch.manual_seed(0)
        x, upstream = (torch.randn(N, K, device=device).to(dtype) for _ in range(2))
        w = (torch.randn(2 * hidden, K, device=device) / K**0.5).to(dtype)
        down = (torch.randn(K, hidden, device=device) / hidden**0.5).to(dtype)
        leaves = tuple(t.requires_grad_() for t in (x, w, down))
        products = 6.0 * N * K * hidden
        yield Case(
            op="feed_forward",
            shape={"rows": N, "features": K, "hidden": hidden},
            candidates=candidates(feed_forward, _plain, leaves, backends, suite, _liger(*leaves)),
            flops={"eval": products, "forward": products, "backward": 2 * products, "both": 3 * products},
            formula="6 rows x features x hidden forward, twice that backward",
            upstream=constant(upstream),
            # Against float32: float64 would take seconds. Hidden values in 16 bits are in the errors.
            errors=partial(errors_of, _plain, ("y", "dx", "d_gate_up", "d_down"), leaves, upstream, wide=torch.float32),
        )
