"""Models of transformers as ours: their own logits, of each text passed alone, are the oracle."""

import numpy as np
import pytest
import torch

from emergence_train.convert import hf_source
from emergence_train.evaluation.generation import generate
from emergence_train.evaluation.scoring import Request, score
from emergence_train.models.begin_token import WithBeginToken
from emergence_train.models.hf_config import HFConfig
from emergence_train.models.hf_model import HFModel
from emergence_train.parallel.ranks import start
from foreign_models import LLAMA, saved

transformers = pytest.importorskip("transformers")


@pytest.mark.parametrize("kind", ["gpt-neox", "mistral-window"])
def test_branches_documents_and_generation_equal_passes(kind, data_path, tmp_path):
    """Each branch sees the prefix and itself, each document itself: as when it is passed alone."""
    theirs = saved(tmp_path / "hf", data_path, kind)
    config = HFConfig(vocab_size=320, max_sequence=64, transformers=theirs.config.to_dict())
    ours = HFModel(config).eval()
    ours.model.load_state_dict(theirs.state_dict())
    ids = torch.randint(0, 320, (30,), generator=torch.Generator().manual_seed(2))
    branches = torch.tensor([0] * 12 + [1] * 8 + [2] * 10)
    with torch.no_grad():
        got = ours(ids[None], branches_BT=branches[None])[0]
        for branch in (1, 2):
            own = branches == branch
            alone = theirs(torch.cat([ids[:12], ids[own]])[None]).logits[0]
            assert (got[own] - alone[12:]).abs().max() < 1e-5
            assert (got[:12] - alone[:12]).abs().max() < 1e-5
        targets = torch.roll(ids, -1)
        split = ours(ids[None], targets[None], document_ids_BT=branches[None])
        for document in range(3):
            own = branches == document
            alone = theirs(ids[own][None]).logits[0]
            wanted = torch.nn.functional.cross_entropy(alone, targets[own], reduction="none")
            assert (split.token_loss[0, own] - wanted).abs().max() < 1e-4
        [text] = generate(ours, [ids[:5].tolist()], 6, lambda ids: False, start(1))
        wanted = ids[:5].tolist()
        for _ in range(6):
            wanted.append(int(theirs(torch.tensor([wanted])).logits[0, -1].argmax()))
    assert text == wanted[5:]


PHI3 = LLAMA | {"original_max_position_embeddings": 24, "pad_token_id": 0, "partial_rotary_factor": 0.5}
FACTORS = {"short_factor": [1.0] * 2, "long_factor": [1.0, 8.0], "original_max_position_embeddings": 24}
SCALED = {
    "longrope": (
        transformers.Phi3Config,
        PHI3 | {"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e2} | FACTORS},
    ),
    "dynamic": (
        transformers.LlamaConfig,
        LLAMA
        | {
            "max_position_embeddings": 40,
            "rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e2, "factor": 4.0},
        },
    ),
}


@pytest.fixture(params=SCALED)
def scaled(request):
    """A model whose frequencies depend on the longest position of a call, ours, and a function: logits of a text passed alone
    to one that has seen none before."""
    config_class, sizes = SCALED[request.param]
    torch.manual_seed(0)
    theirs = transformers.AutoModelForCausalLM.from_config(config_class(**sizes)).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.mul_(8.0) if parameter.ndim > 1 else None
    settings = theirs.config.to_dict()
    ours = HFModel(HFConfig(vocab_size=320, max_sequence=theirs.config.max_position_embeddings, transformers=settings))
    ours.model.load_state_dict(theirs.state_dict())

    @torch.no_grad()
    def alone(ids):
        fresh = transformers.AutoModelForCausalLM.from_config(config_class(**sizes)).eval()
        fresh.load_state_dict(theirs.state_dict())
        return fresh(torch.tensor([ids]), use_cache=False).logits[0]

    return ours.eval(), alone


@pytest.mark.parametrize("begin", [None, 7])
@pytest.mark.parametrize("greedy", [False, True])
def test_a_score_does_not_depend_on_the_batch(scaled, begin, greedy):
    """Beside longer texts, shared prefixes and padding, and after texts of other lengths: as of the text passed alone."""
    ours, alone = scaled
    model, start_ids = (ours, []) if begin is None else (WithBeginToken(ours, begin), [begin])
    longest = ours.config.max_sequence - len(start_ids)
    generator = torch.Generator().manual_seed(3)
    ids = [tuple(torch.randint(1, 320, (n,), generator=generator).tolist()) for n in (longest + 1, 9, 21, 24, 25, 30)]
    prefix = ids[2][:19]
    ids += [prefix + tail for tail in ((5, 6), (7, 8, 9, 10, 11, 12), tuple(range(30, 30 + longest - 18)))]
    requests = [Request(text, 2) for text in ids]
    mesh = start(1)
    together = score(model, requests, mesh, greedy=greedy)[:, 0]
    again = np.concatenate([score(model, [request], mesh, greedy=greedy)[:, 0] for request in requests])
    for text, *got in zip(ids, together, again):
        log_p = alone([*start_ids, *text[:-1]]).double().log_softmax(-1)
        wanted = sum(float(log_p[at, text[at + 1 - len(start_ids)]]) for at in (-2 + len(log_p), -1 + len(log_p)))
        assert got == pytest.approx([wanted] * 2, abs=1e-4), len(text)


@pytest.mark.parametrize("kind", ["qwen3", "deepseek_v3"])
def test_bfloat16_is_as_transformers_loads_it(kind, tmp_path, data_path):
    """Equal bit for bit after moving and casting: rotary frequencies and expert biases are float32 in both."""
    saved(tmp_path / "hf", data_path, kind)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.bfloat16).eval()
    whole = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32)
    ours = HFModel(HFConfig(vocab_size=320, max_sequence=64, transformers=hf_source.plain(whole.config)))
    ours.model.load_state_dict(whole.state_dict())
    ours = WithBeginToken(ours, 5).to("cpu").bfloat16().eval()
    for name, tensor in [*theirs.named_parameters(), *theirs.named_buffers()]:
        mine = dict([*ours.model.model.named_parameters(), *ours.model.model.named_buffers()])[name]
        assert mine.dtype == tensor.dtype and torch.equal(mine, tensor), name
    ids = torch.randint(0, 320, (2, 64), generator=torch.Generator().manual_seed(1))
    ids[:, 0] = 5
    with torch.no_grad():
        assert torch.equal(ours(ids[:, 1:]), theirs(ids, use_cache=False).logits[:, 1:])


def test_generation_goes_on_beyond_the_original_length(scaled):
    """Of each token the logits of the whole text before it."""
    ours, alone = scaled
    ids = torch.randint(1, 320, (20,), generator=torch.Generator().manual_seed(4)).tolist()
    [text] = generate(ours, [ids], 12, lambda ids: False, start(1))
    for token in text:
        assert token == int(alone(ids)[-1].argmax())
        ids.append(token)
    assert ours.has_cache


def test_a_loss_has_the_gradient_of_its_weighted_mean(data_path, tmp_path):
    theirs = saved(tmp_path / "hf", data_path, "gpt-neox")
    ours = HFModel(HFConfig(vocab_size=320, max_sequence=64, transformers=theirs.config.to_dict()))
    ours.model.load_state_dict(theirs.state_dict())
    ids = torch.randint(0, 320, (2, 9), generator=torch.Generator().manual_seed(3))
    targets, weights = ids.roll(-1, 1).masked_fill(ids % 5 == 0, -100), torch.linspace(0.1, 2, 9)
    got = ours(ids, targets, weights=weights, z_loss=0.1)
    logits = theirs(ids).logits.flatten(0, 1)
    losses = torch.nn.functional.cross_entropy(logits, targets.flatten(), reduction="none", ignore_index=-100)
    losses = losses + 0.1 * logits.logsumexp(-1) ** 2
    kept = (targets != -100).flatten() * weights.repeat(2)
    wanted = (losses * kept).sum() / kept.sum()
    torch.testing.assert_close(got.loss, wanted)
    got.loss.backward()
    wanted.backward()
    for mine, other in zip(ours.model.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad)
    assert got.positions.count.tolist() == (targets != -100).sum(0).tolist()
