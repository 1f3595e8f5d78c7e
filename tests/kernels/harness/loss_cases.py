"""Inputs that losses of others got wrong, and the float64 oracle of both losses. Made anew by each test, on the CPU."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from compiled import COMPILED
from kernel_checks import placed
from torch import Tensor

IGNORE = -100


@dataclass
class Inputs:
    hidden: Tensor  # (B, T, D)
    weight: Tensor  # (V, D)
    targets: Tensor  # (B, T)

    def to(self, dtype: torch.dtype, device: torch.device) -> "Inputs":
        """Layout kept (strided, expanded and transposed tensors stay so)."""
        return Inputs(placed(self.hidden, dtype, device), placed(self.weight, dtype, device), self.targets.to(device))


LENGTH = 19 if COMPILED else 9  # the interpreter takes 10 ms a row; two of its tiles of 16 rows either way


def ordinary(B: int = 2, T: int = LENGTH, D: int = 37, V: int = 131, scale: float = 1.0) -> Inputs:
    """Prime sizes."""
    return Inputs(torch.randn(B, T, D), torch.randn(V, D) * scale * 0.5, torch.randint(V, (B, T)))


def ignored(where: str) -> Callable[[], Inputs]:
    def make() -> Inputs:
        inputs = ordinary(T=19)
        flat = inputs.targets.view(-1)
        if where == "all":
            flat[:] = IGNORE
        elif where == "chunk":  # chunks of 16 rows are used where it matters
            flat[16:32] = IGNORE
        elif where == "edges":
            flat[[0, 15, 16, 31, 37]] = IGNORE
        else:
            flat[torch.rand(flat.shape) < 0.5] = IGNORE
        return inputs

    return make


def confident() -> Inputs:
    """Targets with p between 0.99 and 1 - 1e-9: the loss and the target's gradient are differences of near equals."""
    inputs = ordinary(T=17, D=40, V=101)
    direction = F.normalize(inputs.weight[inputs.targets], dim=-1)
    inputs.hidden = direction * torch.linspace(5, 25, 34).view(2, 17, 1)
    inputs.weight = F.normalize(inputs.weight, dim=-1) * 1.5
    return inputs


def peaked_elsewhere() -> Inputs:
    """The softmax is concentrated on a token that is not the target: losses of tens of nats."""
    inputs = ordinary(scale=6.0)
    return inputs


def transposed() -> Inputs:
    B, T, D, V = 3, 11, 29, 67
    hidden = torch.randn(T, B, D).transpose(0, 1)
    weight = torch.randn(D, V).t() * 0.5
    return Inputs(hidden, weight, torch.randint(V, (T, B)).t())


def strided() -> Inputs:
    hidden = torch.randn(2, 14, 2, 33)[:, :, 1]
    weight = torch.randn(59, 66)[:, ::2] * 0.5
    return Inputs(hidden, weight, torch.randint(59, (2, 28))[:, ::2])


def expanded() -> Inputs:
    """One row for the whole batch, stride 0."""
    return Inputs(torch.randn(1, 13, 24).expand(3, 13, 24), torch.randn(71, 24) * 0.5, torch.randint(71, (3, 13)))


def small_integers() -> Inputs:
    inputs = ordinary(B=1, T=5, D=8, V=3)
    inputs.targets = inputs.targets.int()
    return inputs


def one_word() -> Inputs:
    return ordinary(B=1, T=3, D=4, V=1)


CASES: dict[str, Callable[[], Inputs]] = {
    "ordinary": ordinary,
    "all ignored": ignored("all"),
    "a chunk ignored": ignored("chunk"),
    "edges ignored": ignored("edges"),
    "half ignored": ignored("half"),
    "confident": confident,
    "peaked elsewhere": peaked_elsewhere,
    "transposed": transposed,
    "strided": strided,
    "expanded": expanded,
    "int32 targets": small_integers,
    "one word": one_word,
    "rows of 1 KiB": lambda: ordinary(V=256),
}
if COMPILED:  # several blocks of a row; several tiles, and loops over features as compilers pipeline them
    CASES["blocks of a row"] = lambda: ordinary(B=1, T=4, D=24, V=8209)
    CASES["several tiles"] = lambda: ordinary(B=1, T=150, D=208, V=301)
    CASES["whole tiles"] = lambda: ordinary(B=2, T=128, D=256, V=256)
    CASES["several tiles, off by one"] = lambda: ordinary(B=1, T=129, D=193, V=257)


def token_losses(
    hidden: Tensor, weight: Tensor, targets: Tensor, softcap: float | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Plain PyTorch in the inputs' dtype: loss, log-sum-exp, top-1 and entropy of each token, 0 where ignored."""
    logits = hidden @ weight.t()
    if logits.dtype in (torch.bfloat16, torch.float16):
        logits = logits.float()
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    valid = targets != IGNORE
    loss = F.cross_entropy(logits.flatten(0, -2), targets.long().flatten(), reduction="none", ignore_index=IGNORE)
    lse = torch.logsumexp(logits, -1).masked_fill(~valid, 0)
    probability = torch.softmax(logits, -1)
    entropy = -(probability * torch.log_softmax(logits, -1)).sum(-1).masked_fill(~valid, 0)
    correct = (logits.argmax(-1) == targets) & valid
    return loss.view(targets.shape), lse, correct, entropy
