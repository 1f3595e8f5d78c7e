"""Cases of rms_norm, rotary and swiglu: bound by memory, so measured in bytes a second."""

from collections.abc import Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from ..rms_norm.op import rms_norm
from ..rotary.op import rotary
from ..rotary.reference import rotary as rotary_torch
from ..swiglu.op import swiglu
from .candidate import Candidate, Case, Forward, candidates, constant, errors_of, peers_first, relative

NORM_SHAPES = {
    "full": [(n, d) for n in (8192, 32768) for d in (1024, 2048, 4096, 8192)],
    "short": [(16384, 1024), (16384, 2048), (8192, 4096)],
    "laptop": [(2048, d) for d in (128, 256, 512)],
    "tiny": [(32, 48)],
}
ROTARY_SHAPES = {
    "full": [(4, 2048, 16, 128), (8, 1024, 24, 64), (1, 16384, 32, 128)],
    "short": [(4, 2048, 16, 128)],
    "laptop": [(8, 256, 4, 32), (8, 256, 8, 64)],
    "tiny": [(1, 8, 2, 16)],
}
SWIGLU_SHAPES = {  # tokens, features of the gate
    "full": [(16384, f) for f in (2752, 4096, 5632, 11008)],
    "short": [(16384, 2752), (16384, 5632)],
    "laptop": [(2048, f) for f in (336, 680, 1360, 2048)],
    "tiny": [(32, 48)],
}


def _plain_norm(x: Tensor, weight: Tensor, residual: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
    """-> y, or (y, x + residual)."""
    if residual is None:
        return F.rms_norm(x, (x.shape[-1],), weight, 1e-6)
    total = x + residual
    return F.rms_norm(total, (x.shape[-1],), weight, 1e-6), total


def _norm_peers(x: Tensor, weight: Tensor, residual: Tensor | None = None) -> Iterator[tuple[str, Forward]]:
    try:
        from liger_kernel.transformers.functional import liger_fused_add_rms_norm, liger_rms_norm

        if residual is None:
            yield "liger-kernel", lambda: liger_rms_norm(x, weight, 1e-6, in_place=False)
        else:
            yield "liger-kernel", lambda: tuple(liger_fused_add_rms_norm(x, residual, weight, 1e-6, in_place=False))
    except ImportError:
        pass
    try:
        from quack.rmsnorm import rmsnorm

        if residual is None:
            yield "quack", lambda: rmsnorm(x, weight, eps=1e-6)
        else:
            yield "quack", lambda: tuple(rmsnorm(x, weight, residual=residual, eps=1e-6, prenorm=True))
    except ImportError:
        pass


def _norm(x: Tensor, weight: Tensor, residual: Tensor | None = None, *, backend: str) -> Tensor | tuple[Tensor, Tensor]:
    return rms_norm(x, weight, residual=residual, backend=backend)


def norm_cases(suite: str, device: torch.device, dtype: torch.dtype, backends: list[str]) -> Iterator[Case]:
    """Alone, and with the residual addition fused, as a decoder's blocks have it."""
    for N, D in NORM_SHAPES[suite]:
        for with_residual in (True, False):
            torch.manual_seed(0)
            x, weight, residual = (
                torch.randn(*shape, device=device).to(dtype).requires_grad_() for shape in ((N, D), (D,), (N, D))
            )
            leaves = (x, weight, residual) if with_residual else (x, weight)
            upstream = torch.randn(N, D, device=device).to(dtype)
            names = ("y", "total", "dx", "dweight", "dresidual") if with_residual else ("y", "dx", "dweight")
            size = x.element_size() * N * D
            forward, backward = (4, 4) if with_residual else (2, 3)
            yield Case(
                op="rms_norm",
                shape={"rows": N, "features": D, "residual": with_residual},
                candidates=candidates(_norm, _plain_norm, leaves, backends, suite, _norm_peers(*leaves)),
                bytes={
                    "eval": forward * size,
                    "forward": forward * size,
                    "backward": backward * size,
                    "both": (forward + backward) * size,
                },
                formula="forward reads x (and the residual), writes y (and the sum); backward reads the sum, dy (and the "
                "residual's gradient), writes dx",
                upstream=constant(upstream),
                errors=partial(errors_of, _plain_norm, names, leaves, upstream),
            )


def _rotary_errors(exact: Tensor, results: tuple[Tensor, ...]) -> dict[str, float]:
    return {"y": relative(results[0], exact)}


def rotary_cases(suite: str, device: torch.device, dtype: torch.dtype, backends: list[str]) -> Iterator[Case]:
    for B, T, H, D in ROTARY_SHAPES[suite]:
        torch.manual_seed(0)
        x = torch.randn(B, T, H, D, device=device).to(dtype).requires_grad_()
        upstream = torch.randn(B, T, H, D, device=device).to(dtype)
        angle = torch.rand(T, D // 2, device=device) * 6
        cos, sin = angle.cos(), angle.sin()
        runs: list[tuple[str, Forward]] = [
            (f"emergence {b}", partial(rotary, x, cos, sin, backend=b)) for b in backends
        ]
        if suite != "tiny":
            runs.append(("torch.compile", partial(torch.compile(rotary_torch, dynamic=False), x, cos, sin)))
        size = x.numel() * x.element_size()
        exact = rotary_torch(x.detach().double(), cos, sin)
        yield Case(
            op="rotary",
            shape={"batch": B, "seq": T, "heads": H, "head_dim": D},
            candidates=[partial(Candidate, name, run, (x,)) for name, run in sorted(runs, key=peers_first)],
            bytes={"eval": 2 * size, "forward": 2 * size, "backward": 2 * size, "both": 4 * size},
            formula="each way reads and writes the tensor once",
            upstream=constant(upstream),
            errors=partial(_rotary_errors, exact),
        )


def _swiglu_plain(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, -1)
    return F.silu(gate) * up


def _swiglu_peers(x: Tensor) -> Iterator[tuple[str, Forward]]:
    """Liger's takes gate and up apart: autograd joins their gradients, as it would in a model with one projection."""
    try:
        from liger_kernel.ops.swiglu import LigerSiLUMulFunction

        yield "liger-kernel", lambda: LigerSiLUMulFunction.apply(*x.chunk(2, -1))
    except ImportError:
        pass


def swiglu_cases(suite: str, device: torch.device, dtype: torch.dtype, backends: list[str]) -> Iterator[Case]:
    for N, width in SWIGLU_SHAPES[suite]:
        torch.manual_seed(0)
        x = torch.randn(N, 2 * width, device=device).to(dtype).requires_grad_()
        upstream = torch.randn(N, width, device=device).to(dtype)
        size = x.element_size() * N * width
        yield Case(
            op="swiglu",
            shape={"rows": N, "features": width},
            candidates=candidates(swiglu, _swiglu_plain, (x,), backends, suite, _swiglu_peers(x)),
            bytes={"eval": 3 * size, "forward": 3 * size, "backward": 5 * size, "both": 8 * size},
            formula="forward reads gate and up, writes y; backward reads gate, up and dy, writes both gradients",
            upstream=constant(upstream),
            errors=partial(errors_of, _swiglu_plain, ("y", "dx"), (x,), upstream),
        )
