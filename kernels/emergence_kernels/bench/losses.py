"""Cases of the linear losses: PyTorch, this package, and its peers where they are installed."""

import inspect
from collections.abc import Callable, Iterator
from functools import cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor

from ..cross_entropy.linear import linear_cross_entropy
from ..cross_entropy.position_loss import position_loss
from .candidate import Candidate, Case, Forward, constant, relative

# (tokens, features, vocabulary)
SHAPES = {
    "full": [(n, d, v) for v in (32000, 50304, 131072) for d in (1024, 2048, 4096) for n in (8192, 16384)],
    "short": [(8192, 2048, 50304), (8192, 4096, 131072), (8192, 1024, 32000), (16384, 1024, 131072)],
    "laptop": [(2048, d, 4096) for d in (128, 256, 512)],
    "tiny": [(64, 32, 131)],
}


LIGER_ROWS = 4096


def _eager(hidden: Tensor, weight: Tensor, targets: Tensor, reduction: str) -> Tensor:
    return F.cross_entropy(F.linear(hidden, weight).float(), targets, reduction=reduction)


Named = Iterator[tuple[str, Forward]]


def _liger(hidden: Tensor, weight: Tensor, targets: Tensor, reduction: str) -> Named:
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    liger = LigerFusedLinearCrossEntropyLoss(reduction=reduction)
    yield "liger-kernel", lambda: liger(weight, hidden, targets)
    if run := _liger_by_large_chunks(hidden, weight, targets, reduction):
        yield "liger-kernel, large chunks", run


def _cut_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor, reduction: str) -> Named:
    from cut_cross_entropy import linear_cross_entropy as cce

    for impl in ("cce", "torch_compile"):
        yield f"cut-cross-entropy {impl}", partial(cce, hidden, weight, targets, reduction=reduction, impl=impl)


def _quack(hidden: Tensor, weight: Tensor, targets: Tensor, reduction: str) -> Named:
    from quack.linear_cross_entropy import chunked_linear_cross_entropy, linear_cross_entropy_func

    if reduction != "none":
        yield "quack chunked", lambda: chunked_linear_cross_entropy(hidden, weight, targets, reduction=reduction)
    yield "quack", lambda: linear_cross_entropy_func(hidden, weight, None, targets, reduction=reduction)


def _peers(*arguments) -> Named:
    """(name, callable) of the peers that are installed; of one that cannot be imported, a callable that says why."""

    def broken(error: Exception) -> Tensor:
        raise error

    for name, peer in (("liger-kernel", _liger), ("cut-cross-entropy", _cut_cross_entropy), ("quack", _quack)):
        try:
            yield from peer(*arguments)
        except ModuleNotFoundError:
            pass
        except Exception as error:  # noqa: BLE001
            yield name, partial(broken, error)


def _liger_by_large_chunks(
    hidden: Tensor, weight: Tensor, targets: Tensor, reduction: str
) -> Callable[[], Tensor] | None:
    """Liger with chunks of some 4096 tokens, where its version lets them be chosen: by default they have tokens x D / V."""
    from liger_kernel.ops.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyFunction as function

    parameters = list(inspect.signature(function.forward).parameters.values())[1:]
    names = [parameter.name for parameter in parameters]
    if "chunk_mem_const" not in names:
        return None
    chunks = -(-len(hidden) // LIGER_ROWS)
    chosen = {"reduction": reduction, "chunk_mem_const": max(1, -(-weight.shape[0] // (weight.shape[1] * chunks)))}
    rest = [chosen.get(parameter.name, parameter.default) for parameter in parameters[3:]]
    return lambda: function.apply(hidden, weight, targets, *rest)[0]


def _exact(
    hidden: Tensor, weight: Tensor, targets: Tensor, upstream_N: Tensor, rows: int, words: int
) -> Iterator[Tensor]:
    """Loss and dX of the first rows, and dW of the first words from all rows, in float64, a block of rows at a time."""
    W = weight.detach().double()
    dw = W.new_zeros(min(words, len(W)), W.shape[1])
    for start in range(0, len(targets), rows):
        block = slice(start, start + rows)
        x, target_n = hidden[block].detach().double(), targets[block]
        log_p = torch.log_softmax(x @ W.t(), -1)
        if start == 0:
            yield -log_p.gather(1, target_n[:, None])[:, 0]
        dz = log_p.exp_()
        dz[torch.arange(len(target_n), device=dz.device), target_n] -= 1
        dz *= upstream_N[block, None].double()
        if start == 0:
            yield dz @ W
        dw += dz[:, :words].t() @ x
    yield dw


def _errors(exact: Callable[[], tuple[Tensor, Tensor, Tensor]], results: tuple) -> dict[str, float]:
    """Of the loss and dX of the first rows, and of dW of the first words."""
    out, got_dx, got_dw, *_ = results
    loss, dx, dw = exact()
    errors = {"dx": relative(got_dx[: len(dx)], dx), "dw": relative(got_dw[: len(dw)], dw)}
    if out.dim():
        errors["loss"] = relative(out.view(-1)[: len(loss)], loss)
    return errors


def cases(op: str, suite: str, device: torch.device, dtype: torch.dtype, backends: list[str]) -> Iterator[Case]:
    """op: "position_loss" (scalar, gradients in the forward pass) or "linear_cross_entropy" (a loss a token)."""
    scalar = op == "position_loss"
    reduction = "mean" if scalar else "none"
    for N, D, V in SHAPES[suite]:
        torch.manual_seed(0)
        hidden = torch.randn(N, D, device=device).to(dtype).requires_grad_()
        weight = (torch.randn(V, D, device=device) * D**-0.5).to(dtype).requires_grad_()
        targets = torch.randint(V, (N,), device=device)
        leaves = (hidden, weight)
        upstream_N = torch.full((N,), 1 / N, device=device)
        sequence = min(N, 1024)

        def ours(backend, N=N, D=D, sequence=sequence, hidden=hidden, weight=weight, targets=targets, leaves=leaves):
            def forward() -> Tensor:
                if scalar:
                    shaped = hidden.view(N // sequence, sequence, D)
                    return position_loss(shaped, weight, targets.view(-1, sequence), backend=backend).loss
                return linear_cross_entropy(hidden, weight, targets, backend=backend)

            return Candidate(f"emergence {backend}", forward, leaves)

        def plain(name, run, hidden=hidden, weight=weight, targets=targets, leaves=leaves):
            return Candidate(name, lambda: run(hidden, weight, targets, reduction), leaves)

        candidates: list[Callable[[], Candidate]] = [partial(ours, backend) for backend in backends]
        candidates.append(partial(plain, "torch eager", _eager))
        if suite != "tiny":
            candidates.append(partial(plain, "torch.compile", torch.compile(_eager, dynamic=False)))
        peers = [partial(Candidate, *peer, leaves) for peer in _peers(hidden, weight, targets, reduction)]
        exact = partial(_exact, hidden, weight, targets, upstream_N, 256, 256)
        matrix = 2.0 * N * D * V
        yield Case(
            op=op,
            shape={"tokens": N, "features": D, "vocabulary": V},
            candidates=[*peers, *candidates],
            flops={"eval": matrix, "both": (3 if scalar else 4) * matrix},
            formula="6TDV, all in one pass" if scalar else "8TDV: forward 2, recomputed logits 2, gradients 4",
            upstream=constant(None if scalar else upstream_N),
            errors=partial(_errors, cache(lambda exact=exact: tuple(exact()))),
        )
