"""Generation with a key-value cache, greedy or sampled, batches distributed over the ranks.

Under ZeRO-3 every forward pass gathers weights from all ranks, so all must run the same number: a rank whose texts are finished,
or that has none, runs until those of the others are.
"""

from collections.abc import Callable

import torch

from emergence_train.models.language_model import LanguageModel
from emergence_train.parallel.mesh import Mesh
from emergence_train.parallel.ranks import all_reduce_sum

ROWS = 16  # prompts generated together

Choose = Callable[[torch.Tensor, list[int]], torch.Tensor]  # (logits [B, V], the prompts' numbers) -> next tokens [B]


def greedy(logits_BV: torch.Tensor, prompts: list[int]) -> torch.Tensor:
    """The likeliest tokens."""
    return logits_BV.argmax(-1)


def sampled(temperature: float, seed: int) -> Choose:
    """Draw from softmax(logits / temperature); 0 is greedy. Each prompt has a generator of its own, seeded by (seed, its
    number), so its text depends on neither the others nor the number of ranks."""
    if temperature == 0:
        return greedy
    generators: dict[int, torch.Generator] = {}

    def choose(logits_BV: torch.Tensor, prompts: list[int]) -> torch.Tensor:
        shares = (logits_BV.float() / temperature).softmax(-1).cpu()
        drawn = []
        for share, prompt in zip(shares, prompts):
            if prompt not in generators:
                generators[prompt] = torch.Generator().manual_seed((seed << 20) + prompt)
            drawn.append(torch.multinomial(share, 1, generator=generators[prompt]))
        return torch.cat(drawn).to(logits_BV.device)

    return choose


@torch.no_grad()
def generate(
    model: LanguageModel,
    prompts: list[list[int]],
    most: int,
    finished: Callable[[list[int]], bool],
    mesh: Mesh,
    each_batch: Callable[[], None] = lambda: None,
    *,
    choose: Choose = greedy,
) -> list[list[int]]:
    """Generate at most `most` tokens for each prompt; the same on every rank. Collective: all ranks call it.

    `model` is a LanguageModel or an engine around one. `finished(ids)` says after each token whether a text is done. Prompts of
    equal length go together; a prompt and what is generated must fit in the model's max_sequence.
    """
    if not prompts:
        return []
    was_training = model.training
    model.eval()
    generated = torch.zeros(len(prompts), most, dtype=torch.int64, device=mesh.device)  # a token + 1; 0: none
    batches = _batches(prompts)
    for number in range(
        mesh.gradients.rank, -(-len(batches) // mesh.gradients.size) * mesh.gradients.size, mesh.gradients.size
    ):
        each_batch()
        real = number < len(batches)
        rows = batches[number] if real else batches[-1][:1]
        texts: dict[int, list[int]] = {row: [] for row in rows}
        going = set(rows) if real else set()
        cache = model.new_cache()
        tokens = torch.tensor([prompts[row] for row in rows], dtype=torch.int64, device=mesh.device)
        for _ in range(most):
            tokens = choose(model(tokens, cache=cache), rows)[:, None]
            for row, token in zip(rows, tokens[:, 0].tolist()):
                if row in going:
                    texts[row].append(token)
                    if finished(texts[row]):
                        going.discard(row)
            if not all_reduce_sum(torch.tensor([len(going)], device=mesh.device), mesh.gradients).item():
                break
        for row in rows if real else ():
            generated[row, : len(texts[row])] = torch.tensor(texts[row], device=mesh.device) + 1
    model.train(was_training)
    return [[token - 1 for token in row if token] for row in all_reduce_sum(generated, mesh.gradients).tolist()]


def _batches(prompts: list[list[int]]) -> list[list[int]]:
    """Indices of prompts of equal length, ROWS at most."""
    by_length: dict[int, list[int]] = {}
    for number, prompt in enumerate(prompts):
        by_length.setdefault(len(prompt), []).append(number)
    return [group[begin : begin + ROWS] for group in by_length.values() for begin in range(0, len(group), ROWS)]
