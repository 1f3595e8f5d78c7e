"""The step of Muon where ZeRO has cut the matrices: each is put together on one rank, orthogonalised there and sent back.

Momentum stays in pieces, in the layout of the weights, so it is saved and loaded as AdamW's moments are, at any world size and
stage. Of a matrix a step sends one reduction and one broadcast, in float32; min(ranks, 16) matrices are whole at a time.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from emergence_train.optim.groups import parameter_groups

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic: singular values from 0.01 to 1 end between 0.68 and 1.14
ITERATIONS = 5
WINDOW = 16  # matrices that exist as wholes at a time
MOMENTUM = "momentum_buffer"


@dataclass(frozen=True)
class Fragment:
    """Elements [start, start + count) of the flattened (M, N) matrix, at [offset, ...) of a flat tensor; count may be 0."""

    rows: int
    columns: int
    start: int
    count: int
    offset: int


def windows(matrices: list[Fragment], ranks: int) -> Iterable[list[tuple[int, Fragment]]]:
    """Groups of matrices that exist as wholes at a time, each with the rank that orthogonalises it."""
    size = min(ranks, WINDOW)
    for begin in range(0, len(matrices), size):
        yield [((begin + k) % ranks, matrix) for k, matrix in enumerate(matrices[begin : begin + size])]


def muon_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """AdamW's groups, with the weights of linear layers in one of their own. The output head is no nn.Linear (LMHead)."""
    linear = [module.weight for module in model.modules() if isinstance(module, nn.Linear)]
    chosen = {id(weight) for weight in linear}
    others = parameter_groups(model, weight_decay)
    for group in others:
        group["params"] = [parameter for parameter in group["params"] if id(parameter) not in chosen]
    own = {"params": linear, "weight_decay": weight_decay, "orthogonal": True}
    return [group | {"orthogonal": group.get("orthogonal", False)} for group in [own, *others] if group["params"]]


def orthogonalised(matrix_MN: Tensor) -> Tensor:
    """The matrix with its singular values near 1: Newton-Schulz iterations, in bf16 on a GPU and float32 on a CPU."""
    a, b, c = COEFFICIENTS
    x = matrix_MN.bfloat16() if matrix_MN.is_cuda else matrix_MN.float()
    wide = x.shape[0] <= x.shape[1]
    x = x if wide else x.T
    x = x / (x.norm() + 1e-7)
    for _ in range(ITERATIONS):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    return (x if wide else x.T).to(matrix_MN.dtype)


class MuonAdamW(torch.optim.Optimizer):
    """Muon for groups that are `orthogonal`, AdamW for the others.

    `attach` says where the matrices are; before, a step of theirs is an error.
    """

    def __init__(self, groups: list[dict], lr: float, momentum: float, betas: tuple[float, float], eps: float) -> None:
        super().__init__(groups, {"lr": lr, "momentum": momentum, "betas": betas, "eps": eps, "orthogonal": False})
        self.fragments: dict[Tensor, list[Fragment]] = {}
        self.group: dist.ProcessGroup | None = None
        self.ranks, self.rank = 1, 0

    def attach(self, fragments: dict[Tensor, list[Fragment]], group: Any = None, ranks: int = 1, rank: int = 0) -> None:
        """Where this rank's pieces of matrices are.

        Args:
            fragments: by the tensor that is updated, every matrix of which any rank has a piece there, in one order on all ranks.
            group, ranks, rank: that share them; 1 where every rank has all of each.
        """
        self.fragments, self.group, self.ranks, self.rank = fragments, group, ranks, rank

    def state_kinds(self, flat: Tensor) -> tuple[str, ...]:
        """Kinds of state that a tensor has, once it was updated."""
        return (MOMENTUM,) if flat in self.fragments else ("exp_avg", "exp_avg_sq")

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for flat in group["params"]:
                if flat.grad is not None:
                    (self._muon if group["orthogonal"] else self._adamw)(flat, flat.grad, group)

    def _muon(self, flat: Tensor, gradient: Tensor, group: dict) -> None:
        state = self.state[flat]
        momentum = state.setdefault(MOMENTUM, torch.zeros_like(flat))
        momentum.lerp_(gradient, 1 - group["momentum"])
        update = gradient.lerp(momentum, group["momentum"]).view(-1)
        weights = flat.view(-1).mul_(1 - group["lr"] * group["weight_decay"])
        for window in windows(self.fragments[flat], self.ranks):
            wholes = self._orthogonalised([(owner, matrix, _put(update, matrix)) for owner, matrix in window])
            for (_, matrix), whole in zip(window, wholes):
                scale = 0.2 * math.sqrt(max(matrix.rows, matrix.columns))
                own = whole.view(-1)[matrix.start : matrix.start + matrix.count]
                weights[matrix.offset : matrix.offset + matrix.count].add_(own, alpha=-group["lr"] * scale)

    def _orthogonalised(self, window: list[tuple[int, Fragment, Tensor]]) -> list[Tensor]:
        """Matrices of which every rank has put its pieces into zeros; each is summed and orthogonalised by its owner."""
        if self.ranks == 1:
            return [orthogonalised(whole) for _, _, whole in window]
        places = [dist.get_global_rank(self.group, owner) if self.group else owner for owner, _, _ in window]
        sums = [dist.reduce(w, p, group=self.group, async_op=True) for p, (_, _, w) in zip(places, window)]
        for work in sums:
            work.wait()
        wholes = [orthogonalised(whole) if owner == self.rank else whole for owner, _, whole in window]
        sent = [dist.broadcast(w, p, group=self.group, async_op=True) for p, w in zip(places, wholes)]
        for work in sent:
            work.wait()
        return wholes

    def _adamw(self, flat: Tensor, gradient: Tensor, group: dict) -> None:
        state, (beta1, beta2) = self.state[flat], group["betas"]
        first, second = (state.setdefault(kind, torch.zeros_like(flat)) for kind in ("exp_avg", "exp_avg_sq"))
        state["step"] = steps = float(state.get("step", 0)) + 1
        flat.mul_(1 - group["lr"] * group["weight_decay"])
        first.lerp_(gradient, 1 - beta1)
        second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        root = (second / (1 - beta2**steps)).sqrt_().add_(group["eps"])
        flat.addcdiv_(first, root, value=-group["lr"] / (1 - beta1**steps))


def _put(update: Tensor, matrix: Fragment) -> Tensor:
    """(M, N) zeros with this rank's elements of the matrix in their place."""
    size = matrix.rows * matrix.columns
    own = update[matrix.offset : matrix.offset + matrix.count]
    if matrix.count == size:
        return own.view(matrix.rows, matrix.columns).clone()
    whole = update.new_zeros(size)
    whole[matrix.start : matrix.start + matrix.count] = own
    return whole.view(matrix.rows, matrix.columns)
