"""Generation with a cache gives what the model gives without one, on one process and distributed over two."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from emergence_train import config as configs
from emergence_train.evaluation import generation
from emergence_train.evaluation.generation import generate, sampled
from emergence_train.models.begin_token import WithBeginToken, beginning
from emergence_train.models.decoder import Cache, Decoder
from emergence_train.models.decoder_config import DecoderConfig
from emergence_train.parallel.mesh import data_parallel
from emergence_train.parallel.ranks import start
from support import run_python


def model(**changes) -> Decoder:
    torch.manual_seed(1)
    shape = {"layers": 2, "width": 32, "heads": 4, "kv_heads": 2, "ffn": 48, "vocab_size": 64, "max_sequence": 48}
    decoder = Decoder(DecoderConfig(**shape | changes))
    for parameter in decoder.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    return decoder


@pytest.mark.parametrize("changes", [{}, {"rotary_fraction": 0.5}, {"tied": True}, {"kv_heads": 4}])
@torch.no_grad()
def test_cached_logits_are_the_whole_model_s(changes):
    decoder = model(**changes)
    tokens = torch.randint(0, 64, (3, 20), generator=torch.Generator().manual_seed(0))
    cache = Cache()
    cached = [decoder(tokens[:, :9], cache=cache)]
    cached += [decoder(tokens[:, t : t + 1], cache=cache) for t in range(9, 20)]
    torch.testing.assert_close(torch.stack(cached, 1), decoder(tokens)[:, 8:], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_generation_is_greedy_and_stops():
    decoder = model()
    prompts = [[1, 2, 3], [4, 5], [6, 7, 8]]
    generated = generate(decoder, prompts, 10, lambda ids: False, start(1))
    for prompt, ids in zip(prompts, generated):
        text = list(prompt)
        for token in ids:
            assert token == int(decoder(torch.tensor([text]))[0, -1].argmax())
            text.append(token)
    stopped = generate(decoder, prompts, 10, lambda ids: len(ids) == 4, start(1))
    assert stopped == [ids[:4] for ids in generated]


@torch.no_grad()
def test_an_empty_prompt_follows_the_begin_token_alone():
    """Of a model with a begin token nothing else stands before the text; of another the end of text does."""
    decoder, begin, end = model(), 7, 1
    begun = WithBeginToken(decoder, begin)
    assert beginning(begun, end) == [] and beginning(decoder, end) == [end]
    prompts = [beginning(begun, end), [4], []]
    for prompt, ids in zip(prompts, generate(begun, prompts, 6, lambda ids: False, start(1))):
        text = [begin, *prompt]
        for token in ids:
            assert token == int(decoder(torch.tensor([text]))[0, -1].argmax())
            text.append(token)


@pytest.mark.slow
def test_two_processes_under_zero_3_generate_what_one_does(config_file, tmp_path):
    """Four batches of texts that end after different numbers of tokens, before and between training steps; a rank that ran
    fewer forwards than the other would leave it waiting."""
    worker = Path(__file__).with_name("generation_worker.py")
    done = run_python(str(worker), str(config_file), "3", str(tmp_path), processes=2)
    assert done.returncode == 0, done.stderr[-2000:]
    first, second = (json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in (0, 1))
    assert first == second and all(part["forwards"] > 2 for part in first)

    from generation_worker import MOST, PROMPTS, finished

    config = configs.load(config_file, ["model.vocab_size=320"])
    alone = Decoder(config.model)
    alone.init_weights(config.seed)
    assert first[0]["texts"] == generate(alone, PROMPTS, MOST, finished, start(1))
    assert len({len(text) for text in first[0]["texts"]}) > 1
    assert first[1]["texts"] != first[0]["texts"]  # the weights have moved since


def test_ranks_run_the_same_number_of_forwards(monkeypatch):
    """Five batches on two ranks, where the other rank appears to have finished: the number of rounds makes the counts equal."""
    decoder = model()
    prompts = [[1] * n for n in range(1, 6)]
    whole = generate(decoder, prompts, 6, lambda ids: False, start(1))
    parts, forwards = [], []
    for rank in range(2):
        calls = []
        handle = decoder.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        # The sum over ranks of what is still open: the other rank is open for all six tokens, and has found nothing.
        monkeypatch.setattr(generation, "all_reduce_sum", lambda tensor, group: tensor + (tensor.numel() == 1))
        parts.append(
            generate(decoder, prompts, 6, lambda ids: len(ids) == 2, data_parallel(rank, 2, rank, torch.device("cpu")))
        )
        forwards.append(len(calls))
        handle.remove()
    assert forwards == [18, 18]
    assert [a or b for a, b in zip(*parts)] == [text[:2] for text in whole] and all(
        not (a and b) for a, b in zip(*parts)
    )


@torch.no_grad()
def test_draws_have_the_softmax_frequencies():
    """4,000 draws of one next token against softmax(logits / T) in float64, by chi-squared."""
    decoder, count = model(vocab_size=16), 4000
    for temperature in (0.5, 1.5):
        drawn = generate(decoder, [[1, 2, 3]] * count, 1, lambda ids: True, start(1), choose=sampled(temperature, 7))
        observed = np.bincount([ids[0] for ids in drawn], minlength=16)
        logits = decoder(torch.tensor([[1, 2, 3]]))[0, -1].double() / temperature
        expected = count * logits.softmax(-1).numpy()
        chi_squared = ((observed - expected) ** 2 / expected).sum()
        assert chi_squared < 37.7, "15 degrees of freedom: exceeded once in 1,000"


def test_a_text_depends_on_its_seed_and_number_alone():
    decoder, prompts = model(), [[1, 2, 3], [4, 5], [1, 2, 3]]

    def drawn(prompts, temperature=1.0, seed=3):
        return generate(decoder, prompts, 12, lambda ids: False, start(1), choose=sampled(temperature, seed))

    first = drawn(prompts)
    assert first == drawn(prompts) and first[0] != first[2] and first != drawn(prompts, seed=4)
    assert drawn(prompts[:1])[0] == first[0], "the others change nothing"
    assert drawn(prompts, temperature=0) == generate(decoder, prompts, 12, lambda ids: False, start(1))
