"""Generation with a cache gives what the model gives without one."""

import pytest
import torch

from emergence_train.evaluation.generation import Cache, generate, next_logits
from emergence_train.models.config import ModelConfig
from emergence_train.models.decoder import Decoder


def model(**changes) -> Decoder:
    torch.manual_seed(1)
    shape = {"layers": 2, "width": 32, "heads": 4, "kv_heads": 2, "ffn": 48, "vocab_size": 64, "max_sequence": 48}
    made = Decoder(ModelConfig(**shape | changes))
    for parameter in made.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    return made


@pytest.mark.parametrize("changes", [{}, {"rotary_fraction": 0.5}, {"tied": True}, {"kv_heads": 4}])
@torch.no_grad()
def test_cached_logits_are_the_whole_model_s(changes):
    made = model(**changes)
    tokens = torch.randint(0, 64, (3, 20), generator=torch.Generator().manual_seed(0))
    cache = Cache(2)
    cached = [next_logits(made, tokens[:, :9], cache)]
    cached += [next_logits(made, tokens[:, t : t + 1], cache) for t in range(9, 20)]
    torch.testing.assert_close(torch.stack(cached, 1), made(tokens)[:, 8:], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_generation_is_greedy_and_stops():
    made = model()
    prompts = [[1, 2, 3], [4, 5], [6, 7, 8]]
    found = generate(made, prompts, 10, lambda ids: False)
    for prompt, ids in zip(prompts, found):
        text = list(prompt)
        for token in ids:
            assert token == int(made(torch.tensor([text]))[0, -1].argmax())
            text.append(token)
    stopped = generate(made, prompts, 10, lambda ids: len(ids) == 4)
    assert stopped == [ids[:4] for ids in found]
