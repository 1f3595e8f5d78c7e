"""Log-likelihoods of continuations, batched and padded, with the same number of forward passes on every rank."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from emergence_train.distributed import Ranks, sum_over_ranks
from emergence_train.evaluation.positions import IGNORED

TOKENS = 16_384  # of a forward pass, each rank
MULTIPLE = 16  # lengths are rounded up to this, so that few shapes occur


@dataclass(frozen=True)
class Request:
    """Token ids of a context and its continuation; the last `scored` ids are the continuation."""

    ids: tuple[int, ...]
    scored: int


def encode(tokenizer, context: str, continuation: str, end_of_text: int, longest: int) -> Request:
    """Tokens of `context` + `continuation`, as lm-eval splits them: spaces that end the context belong to the continuation,
    and the continuation's tokens are those of the whole text beyond the context's own. An empty context is the end of the
    text before. What does not fit is cut off on the left."""
    bare = context.rstrip()
    continuation = context[len(bare) :] + continuation
    whole = tokenizer.encode(bare + continuation, add_special_tokens=False).ids
    before = len(tokenizer.encode(bare, add_special_tokens=False).ids) if bare else 0
    if not bare:
        whole, before = [end_of_text, *whole], 1
    # Where the last characters of the context and the first of the continuation are one token, that token is scored.
    scored = max(len(whole) - before, 1)
    kept = whole[-(longest + 1) :]
    return Request(tuple(kept), min(scored, len(kept) - 1))


def log_likelihoods(
    model: torch.nn.Module, requests: list[Request], ranks: Ranks, each_batch: Callable[[], None] = lambda: None
) -> np.ndarray:
    """(R,) sums of log p over each request's continuation, nats, the same on every rank. All ranks call it."""
    return score(model, requests, ranks, each_batch)[:, 0]


@torch.no_grad()
def score(
    model: torch.nn.Module, requests: list[Request], ranks: Ranks, each_batch: Callable[[], None] = lambda: None, *,
    greedy: bool = False,
) -> np.ndarray:  # fmt: skip
    """(R, 2): log-likelihood in nats, and with `greedy` whether every token of the continuation is the likeliest one (1 or
    0). That needs the logits, which take memory: leave it out where only the likelihood is wanted."""
    order = sorted(range(len(requests)), key=lambda r: (-len(requests[r].ids), requests[r].ids))
    batches: list[list[int]] = []
    for r in order:
        length = _padded(len(requests[batches[-1][0]].ids)) if batches else 0
        if not batches or (len(batches[-1]) + 1) * length > TOKENS:
            batches.append([])
        batches[-1].append(r)
    found = torch.zeros(len(requests), 2, dtype=torch.float64, device=ranks.device)
    was_training = model.training
    model.eval()
    for number in range(ranks.rank, -(-len(batches) // ranks.world) * ranks.world, ranks.world):
        each_batch()
        real = number < len(batches)  # a rank left without a batch runs one whose targets are all ignored
        chosen = batches[number] if real else batches[-1][:1]
        tokens, targets = _tensors([requests[r] for r in chosen], ranks.device)
        if not real:
            targets.fill_(IGNORED)
        if greedy:
            values = _from_logits(model(tokens), targets)
        else:
            losses = model(tokens, targets).token_loss.double().sum(1)
            values = torch.stack([-losses, torch.zeros_like(losses)], 1)
        if real:
            found[torch.tensor(chosen, device=ranks.device)] = values
    model.train(was_training)
    return sum_over_ranks(found).cpu().numpy()


def _from_logits(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """[B, 2] log-likelihood and greediness of each row's targets."""
    counted = targets != IGNORED
    wanted = targets.clamp(min=0)
    log_p = logits.float().log_softmax(-1).gather(-1, wanted[..., None])[..., 0].double()
    likeliest = (logits.argmax(-1) == wanted) | ~counted
    return torch.stack([(log_p * counted).sum(1), likeliest.all(1).double()], 1)


def _padded(ids: int) -> int:
    return -(-(ids - 1) // MULTIPLE) * MULTIPLE


def _tensors(requests: list[Request], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """tokens and targets [B, T], padded on the right: causal attention never looks there."""
    length = _padded(max(len(request.ids) for request in requests))
    tokens = np.zeros((len(requests), length), dtype=np.int64)
    targets = np.full((len(requests), length), IGNORED, dtype=np.int64)
    for row, request in enumerate(requests):
        count = len(request.ids) - 1
        tokens[row, :count] = request.ids[:-1]
        targets[row, count - request.scored : count] = request.ids[-request.scored :]
    return torch.from_numpy(tokens).to(device), torch.from_numpy(targets).to(device)
