"""Log-likelihoods of continuations, batched and padded, with the same number of forward passes on every rank.

Consecutive requests with a common prefix, such as the choices of an item, share a row: the prefix once, then the rest of each,
which attends to the prefix and itself (Decoder.forward's `branches_BT`).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from tokenizers import Tokenizer

from emergence_train.data.tokenizer import ending
from emergence_train.errors import InputError
from emergence_train.models.begin_token import WithBeginToken
from emergence_train.models.language_model import IGNORED
from emergence_train.parallel.mesh import Mesh
from emergence_train.parallel.ranks import all_reduce_sum

TOKENS = 16_384  # of a forward pass on each rank
MULTIPLE = 16  # lengths are rounded up to this, so that few shapes occur
LONGEST_SHARED = 4096  # tokens of a shared row: its mask grows with the square


@dataclass(frozen=True)
class Request:
    """Token ids of a context and its continuation; the last `scored` ids are the continuation. `lost` more of it do not fit.

    `unconditional`: the first id is no text but stands for its beginning, and a model's begin token takes its place.
    """

    ids: tuple[int, ...]
    scored: int
    lost: int = 0
    unconditional: bool = False


@dataclass(frozen=True)
class Row:
    """Requests that share their first `shared` ids, and their tokens in total."""

    requests: list[int]  # their indices
    shared: int
    length: int


def encode(tokenizer: Tokenizer, context: str, continuation: str, end_of_text: int, longest: int) -> Request:
    """Tokenize `context` + `continuation` as lm-eval does.

    Spaces at the end of the context belong to the continuation. The context has its own tokens, and the continuation those of the
    whole text after as many, though the two may join characters differently. An empty context becomes an end-of-text token. Long
    contexts are truncated on the left.
    """
    bare = context.rstrip()
    continuation = context[len(bare) :] + continuation
    bare = ending(tokenizer, bare, longest + 1)
    whole = tokenizer.encode(bare + continuation, add_special_tokens=False).ids
    own = tokenizer.encode(bare, add_special_tokens=False).ids if bare else []
    own = own[: max(len(whole) - 1, 0)]  # where nothing comes after as many, the last token is scored
    rest = whole[len(own) :]
    unconditional = not own and (len(rest) < 2 or rest[0] != end_of_text)
    kept = ([end_of_text] * unconditional + own + rest)[-(longest + 1) :]
    if len(kept) < 2:
        raise InputError(
            f"nothing to score: the continuation {continuation!r} of {context[-40:]!r} has no tokens; fix the item"
        )
    fitting = min(len(rest), len(kept) - 1)
    return Request(tuple(kept), fitting, len(rest) - fitting, unconditional and len(rest) <= longest)


def log_likelihoods(
    model: torch.nn.Module, requests: list[Request], mesh: Mesh, each_batch: Callable[[], None] = lambda: None
) -> np.ndarray:
    """(R,) log-likelihoods of the continuations, nats, the same on every rank. Collective: all ranks call it."""
    return score(model, requests, mesh, each_batch)[:, 0]


@torch.no_grad()
def score(
    model: torch.nn.Module,
    requests: list[Request],
    mesh: Mesh,
    each_batch: Callable[[], None] = lambda: None,
    *,
    greedy: bool = False,
) -> np.ndarray:
    """(R, 2): log-likelihood in nats, and with `greedy` 1 where every token of the continuation is the likeliest, else
    0. `greedy` needs the logits in memory."""
    if isinstance(model, WithBeginToken) and any(request.unconditional for request in requests):
        return _begun_once(model, requests, mesh, each_batch, greedy)
    batches = _batches(_rows(requests), mesh.gradients.size)
    scores = torch.zeros(len(requests), 2, dtype=torch.float64, device=mesh.device)
    was_training = model.training
    model.eval()
    for real, chosen in batches[mesh.gradients.rank :: mesh.gradients.size]:
        each_batch()
        tokens, targets, branches = (t.to(mesh.device) for t in _tensors(chosen, requests))
        if not real:
            targets.fill_(IGNORED)
        shared = {"branches_BT": branches} if chosen[0].shared else {}
        if real and getattr(model, "boundaries", None):
            padding = (targets != IGNORED).flip(1).cumsum(1).flip(1) == 0  # a row's last token has a target
            shared = {"branches_BT": branches.masked_fill(padding, -1)}
        if greedy:
            log_p, likeliest = _from_logits(model(tokens, **shared), targets)
        else:
            log_p = -model(tokens, targets, **shared).token_loss.double()
            likeliest = torch.zeros_like(targets, dtype=torch.bool)
        likeliest |= targets == IGNORED
        for branch in range(1, max(len(row.requests) for row in chosen) + 1) if real else ():
            mine = branches == branch
            sums = torch.stack([(log_p * mine).sum(1), (likeliest | ~mine).all(1).double()], 1)
            held = [
                (number, row.requests[branch - 1]) for number, row in enumerate(chosen) if branch <= len(row.requests)
            ]
            rows, of_request = torch.tensor(held, device=mesh.device).T
            scores[of_request] = sums[rows]
    model.train(was_training)
    return all_reduce_sum(scores, mesh.gradients).cpu().numpy()


def _begun_once(
    model: WithBeginToken, requests: list[Request], mesh: Mesh, each_batch: Callable[[], None], greedy: bool
) -> np.ndarray:
    """As `score`, with the begin token alone before the unconditional requests."""
    scores = np.empty((len(requests), 2))
    alone = np.array([request.unconditional for request in requests])
    begun = [Request((model.begin, *request.ids[1:]), request.scored) for request in requests if request.unconditional]
    scores[alone] = score(model.model, begun, mesh, each_batch, greedy=greedy)
    if others := [request for request in requests if not request.unconditional]:
        scores[~alone] = score(model, others, mesh, each_batch, greedy=greedy)
    return scores


def _rows(requests: list[Request]) -> list[Row]:
    """Group requests into rows: one joins the row before it where that saves tokens."""
    rows: list[Row] = []
    for number, request in enumerate(requests):
        count = len(request.ids) - 1
        before = rows[-1] if rows else None
        if before is not None:
            first = requests[before.requests[0]]
            # All but the last token of the context: that one predicts, and each request another token.
            most = min(before.shared or len(first.ids) - 1 - first.scored, count - request.scored)
            common = _common(first.ids, request.ids, most)
            others = len(before.requests)
            spared = common * others - before.shared * (others - 1)
            length = before.length + count - spared
            if spared > 0 and length <= LONGEST_SHARED:
                rows[-1] = Row([*before.requests, number], common, length)
                continue
        rows.append(Row([number], 0, count))
    return rows


def _common(a: tuple[int, ...], b: tuple[int, ...], most: int) -> int:
    """Length of the common prefix, at most `most`."""
    if a[:most] == b[:most]:
        return most
    return next(i for i in range(most) if a[i] != b[i])


def _batches(rows: list[Row], world: int) -> list[tuple[bool, list[Row]]]:
    """Batches, the longest first, in groups of `world` that are all shared or all not: under ZeRO-3 every rank must run the
    same modules. A rank without a batch runs a dummy one whose targets are ignored."""
    batches: list[tuple[bool, list[Row]]] = []
    for shared in (False, True):
        of_kind: list[list[Row]] = []
        for row in sorted(
            (row for row in rows if (row.shared > 0) == shared), key=lambda row: (-row.length, row.requests)
        ):
            if not of_kind or (len(of_kind[-1]) + 1) * _padded(of_kind[-1][0].length) > TOKENS:
                of_kind.append([])
            of_kind[-1].append(row)
        batches += [(True, batch) for batch in of_kind]
        batches += [(False, of_kind[-1][:1]) for _ in range(-len(of_kind) % world)]
    return batches


def _padded(tokens: int) -> int:
    return -(-tokens // MULTIPLE) * MULTIPLE


def _tensors(rows: list[Row], requests: list[Request]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """tokens, targets and branches [B, T], padded on the right, which causal attention never sees.

    Branch 0 is the shared prefix, branch k the k-th request of the row."""
    shape = len(rows), _padded(rows[0].length)
    tokens, branches = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
    targets = np.full(shape, IGNORED, dtype=np.int64)
    for at, row in enumerate(rows):
        tokens[at, : row.shared] = requests[row.requests[0]].ids[: row.shared]
        end = row.shared
        for branch, number in enumerate(row.requests, 1):
            request = requests[number]
            begin, end = end, end + len(request.ids) - 1 - row.shared
            tokens[at, begin:end] = request.ids[row.shared : -1]
            targets[at, end - request.scored : end] = request.ids[-request.scored :]
            branches[at, begin:end] = branch
        branches[at, end:] = len(row.requests)
    return torch.from_numpy(tokens), torch.from_numpy(targets), torch.from_numpy(branches)


def _from_logits(logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """[B, T] log-likelihood of each target, 0 where there is none, and whether it is the likeliest token."""
    wanted = targets.clamp(min=0)
    log_p = logits.float().log_softmax(-1).gather(-1, wanted[..., None])[..., 0].double()
    return log_p * (targets != IGNORED), logits.argmax(-1) == wanted
