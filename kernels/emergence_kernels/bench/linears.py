"""Cases of fp8_linear beside the same layer in the tensors' own dtype. FLOPs of both ways include dW, which is never in fp8."""

from collections.abc import Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from ..fp8_linear.op import Fp8Weight, fp8_linear, quantize_weight
from .candidate import Candidate, Case, Forward, constant, errors_of, peers_first

SHAPES = {  # tokens, K, N: the four layers of a decoder of 1.2B, and of wider ones
    "full": [
        *[(32768, K, N) for K, N in ((2048, 6144), (2048, 2048), (2048, 11008), (5504, 2048))],
        (16384, 4096, 22016),
        (32768, 1024, 7168),
    ],
    "short": [(32768, 2048, 11008), (32768, 5504, 2048)],
    "laptop": [(2048, 256, 1024)],
    "tiny": [(32, 48, 64)],
}


def _promoted(x: Tensor, weight: Tensor, quantized: Fp8Weight | None, promoted: bool) -> Tensor:
    """fp8_linear by Triton; `promoted`: its sums in float32. Each forward pass sets it for the backward pass that follows."""
    from ..fp8_linear import triton

    triton.FAST_ACCUMULATION = not promoted
    return fp8_linear(x, weight, quantized, backend="triton")


def _runs(x: Tensor, weight: Tensor, backends: list[str]) -> Iterator[tuple[str, Forward]]:
    yield "torch", partial(F.linear, x, weight)
    if "triton" in backends:
        held = quantize_weight(weight, backend="triton")
        yield "emergence triton", partial(_promoted, x, weight, held, False)
        yield "emergence triton, sums in float32", partial(_promoted, x, weight, held, True)
        yield "emergence triton, weight rounded in each pass", partial(_promoted, x, weight, None, False)
    if not x.is_cuda:
        yield "emergence torch", partial(fp8_linear, x, weight, backend="torch")


def cases(suite: str, device: torch.device, dtype: torch.dtype, backends: list[str]) -> Iterator[Case]:
    for M, K, N in SHAPES[suite]:
        torch.manual_seed(0)
        x = torch.randn(M, K, device=device).to(dtype).requires_grad_()
        weight = (0.02 * torch.randn(N, K, device=device)).to(dtype).requires_grad_()
        upstream = torch.randn(M, N, device=device).to(dtype)
        product = 2.0 * M * N * K
        yield Case(
            op="fp8_linear",
            shape={"rows": M, "in": K, "out": N},
            candidates=[
                partial(Candidate, name, run, (x, weight))
                for name, run in sorted(_runs(x, weight, backends), key=peers_first)
            ],
            flops={"eval": product, "forward": product, "backward": 2 * product, "both": 3 * product},
            formula="2 rows x in x out for y, dx and dW each; dW is not in fp8",
            upstream=constant(upstream),
            # What rounding to e4m3 costs is in them.
            errors=partial(errors_of, F.linear, ("y", "dx", "dweight"), (x, weight), upstream),
        )
