"""The exchange of heads: who gets which, by slices of the whole; the bytes that autograd keeps of it."""

import pytest
import torch

from emergence_train.models import sequence_parallel
from emergence_train.models.decoder import Decoder
from emergence_train.models.decoder_config import DecoderConfig
from emergence_train.models.sequence_parallel import own_heads, to_heads, to_tokens
from emergence_train.parallel.mesh import Group
from models.test_memory import kept_bytes


def of_all_ranks(monkeypatch, ranks: int, call) -> list[torch.Tensor]:
    """call(rank, group) on every rank of one process: what each sends is noted first, then handed out."""
    sent: list[torch.Tensor] = []

    def note(x, group):
        sent.append(x.clone().view(ranks, -1))
        return x

    def receive(x, group):
        return torch.stack([parts[group.rank] for parts in sent]).view(x.shape).clone()

    for all_to_all in (note, receive):
        monkeypatch.setattr(sequence_parallel, "_all_to_all", all_to_all)
        results = [call(rank, Group(rank, ranks)) for rank in range(ranks)]
    return results


@pytest.mark.parametrize(("heads", "kv_heads", "ranks"), [(4, 4, 2), (8, 2, 4), (12, 6, 4), (6, 1, 3), (12, 3, 2)])
@pytest.mark.parametrize("batch", [1, 3])
def test_a_rank_has_the_keys_of_its_queries(monkeypatch, heads, kv_heads, ranks, batch):
    t, d = 2, 3
    count, served = heads + 2 * kv_heads, heads // kv_heads
    whole = torch.randn(batch, ranks * t, count, d)
    q, k, v = whole.split([heads, kv_heads, kv_heads], 2)

    def call(rank: int, group: Group) -> torch.Tensor:
        return to_heads(whole[:, rank * t : (rank + 1) * t].flatten(2), heads, kv_heads, group)

    for rank, qkv in enumerate(of_all_ranks(monkeypatch, ranks, call)):
        mine = heads // ranks
        theirs = (qkv.shape[-1] // d - mine) // 2
        own_q, own_k, own_v = qkv.unflatten(-1, (-1, d)).split([mine, theirs, theirs], 2)
        for head in range(mine):
            number = rank * mine + head
            assert own_q[:, :, head].equal(q[:, :, number])
            assert own_k[:, :, head // (mine // theirs)].equal(k[:, :, number // served])
            assert own_v[:, :, head // (mine // theirs)].equal(v[:, :, number // served])
        assert own_heads(torch.arange(heads), Group(rank, ranks)).tolist() == [rank * mine + i for i in range(mine)]
        assert not qkv._is_view(), "attention may then rotate it in place"


@pytest.mark.parametrize("batch", [1, 2])
def test_outputs_come_back_to_their_tokens(monkeypatch, batch):
    ranks, t, width = 4, 3, 5
    whole = torch.randn(batch, ranks * t, ranks * width)

    def call(rank: int, group: Group) -> torch.Tensor:
        return to_tokens(whole[:, :, rank * width : (rank + 1) * width].contiguous(), group)

    for rank, mine in enumerate(of_all_ranks(monkeypatch, ranks, call)):
        assert mine.equal(whole[:, rank * t : (rank + 1) * t])


@pytest.mark.parametrize("kv_heads", [1, 2])
def test_activations_are_what_autograd_saves_of_a_part(kv_heads, monkeypatch):
    """By Triton's kernels, as test_memory has it, of 8 of 16 positions; with one key head, which both ranks have."""
    monkeypatch.setenv("EMERGENCE_KERNELS_BACKEND", "triton")
    monkeypatch.setattr(sequence_parallel, "_all_to_all", lambda x, group: x.clone())
    config = DecoderConfig(layers=2, width=32, heads=2, kv_heads=kv_heads, ffn=48, vocab_size=64, max_sequence=16)
    model = Decoder(config)
    model.init_weights(0)
    trunk = model._trunk
    monkeypatch.setattr(model, "_trunk", lambda tokens, ids: trunk(tokens, ids, Group(1, 2)))
    kept, given = kept_bytes(model, torch.randint(0, 64, (1, 8)))
    table = sum(t.untyped_storage().nbytes() for t in model.rotary(16, torch.device("cpu")))
    assert kept == 8 * config.activations("none", 4, sequence_ranks=2).blocks, (kept, given, table)
    assert given == 3


def test_what_cannot_be_split_is_one_line():
    config = DecoderConfig(layers=1, width=24, heads=6, kv_heads=2, ffn=8)
    assert config.unsplit_reason(3) is None and "model.heads 6" in config.unsplit_reason(4)
    assert config.exchanged(3) == 2 * 6 * 4 + 2 * 6 * 4, "two key heads for three ranks are sent as six"
