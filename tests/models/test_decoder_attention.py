"""The decoder with softcap, sinks and ALiBi; and documents' block ranges, computed once a step."""

import importlib
from types import SimpleNamespace

import pytest
import torch
from pydantic import ValidationError
from test_decoder import SMALL, decoder

from emergence_kernels.attention import document_ranges
from emergence_kernels.backends.dispatch import interpreting
from emergence_train.models.decoder import Decoder
from emergence_train.models.decoder_config import DecoderConfig

SCORES = {"attention": {"softcap": 2.0, "sinks": True, "bias": "alibi"}}


def with_sinks(**changes) -> Decoder:
    """Sinks that differ, as after some training."""
    model = decoder(**SCORES | changes)
    for number, block in enumerate(model.blocks):
        block.attention.sinks.data = torch.linspace(-1, 2, model.config.heads).double() + number
    return model


def test_counts_with_sinks_equal_the_module():
    config = DecoderConfig(**SMALL | SCORES)
    model, plain = decoder(**SCORES), DecoderConfig(**SMALL)
    assert config.parameters() == sum(p.numel() for p in model.parameters()) == plain.parameters() + 2 * 4
    assert config.flops_per_token(64) == plain.flops_per_token(64)  # a sink is in no product
    assert all(not block.attention.sinks.any() for block in model.blocks)


@pytest.mark.parametrize(
    "heads, slopes",
    [
        (8, [1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32, 1 / 64, 1 / 128, 1 / 256]),
        (6, [1 / 4, 1 / 16, 1 / 64, 1 / 256, 1 / 2, 1 / 8]),  # those of 4, and of 8 the first and the third
    ],
)
def test_alibi_slopes_are_those_of_the_paper(heads, slopes):
    config = DecoderConfig(**SMALL | SCORES | {"heads": heads, "width": 8 * heads, "kv_heads": heads})
    assert config.alibi_slopes() == slopes
    assert torch.equal(Decoder(config).bfloat16().slopes(torch.device("cpu")), torch.tensor(slopes))


def test_each_setting_changes_the_logits():
    tokens = torch.randint(0, 96, (1, 20))
    plain = decoder()(tokens)
    for setting in ({"softcap": 0.01}, {"sinks": True}, {"bias": "alibi"}):
        assert (decoder(attention=setting)(tokens) - plain).abs().max() > 1e-6, setting
    loose = decoder(attention={"softcap": 1e9})(tokens)
    torch.testing.assert_close(loose, plain, atol=1e-9, rtol=1e-6)


def test_generation_and_branches_agree_with_forward():
    """Token by token with a cache, and two continuations of a prefix in one row, positions counted from the prefix."""
    model = with_sinks()
    tokens = torch.randint(0, 96, (1, 12))
    with torch.no_grad():
        whole = model(tokens)
        cache = model.new_cache()
        steps = [model(tokens[:, :5], cache=cache), *(model(tokens[:, i : i + 1], cache=cache) for i in range(5, 12))]
        torch.testing.assert_close(torch.stack(steps, 1), whole[:, 4:], atol=1e-9, rtol=1e-6)
        row, other = (
            torch.cat([tokens, tokens[:, 3:9].flip(1)], 1),
            torch.cat([tokens[:, :6], tokens[:, 3:9].flip(1)], 1),
        )
        branches = torch.tensor([[0] * 6 + [1] * 6 + [2] * 6])
        both = model(row, branches_BT=branches)
        torch.testing.assert_close(both[:, :12], whole, atol=1e-9, rtol=1e-6)
        torch.testing.assert_close(both[:, 12:], model(other)[:, 6:], atol=1e-9, rtol=1e-6)


def test_documents_are_as_if_apart_with_sinks():
    model, tokens = with_sinks(), torch.randint(0, 96, (1, 20))
    ids = torch.tensor([[0] * 8 + [1] * 12])
    with torch.no_grad():
        together, alone = model(tokens, tokens, None, ids).token_loss, model(tokens[:, 8:], tokens[:, 8:]).token_loss
    torch.testing.assert_close(together[:, 8:], alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("wrong", [{"softcap": 0}, {"softcap": -1.0}, {"bias": "t5"}, {"sinks": 0.5}, {"cap": 3}])
def test_wrong_attention_settings_are_refused(wrong):
    with pytest.raises(ValidationError):
        DecoderConfig(**SMALL | {"attention": wrong})


@pytest.mark.parametrize("checkpointing, attention", [("none", {}), ("full", {"sinks": True})])
def test_documents_are_planned_once_a_step(checkpointing, attention, monkeypatch):
    """Of all layers and both passes, also where a layer's forward pass runs twice; by Triton's kernels in their interpreter,
    which read the same ranges forward and backward."""
    pytest.importorskip("triton")
    if not interpreting():
        pytest.skip("Triton's kernels need its interpreter here")
    computed, original = [], document_ranges.ranges_for_kernels
    monkeypatch.setattr(
        document_ranges, "ranges_for_kernels", lambda ids, *blocks: computed.append(blocks) or original(ids, *blocks)
    )
    attention_op = importlib.import_module("emergence_kernels.attention.op")
    gradients = []
    for backend in ("triton", "torch"):
        monkeypatch.setattr(attention_op, "resolve_backend", lambda *_, backend=backend: backend)
        model = decoder(dtype=torch.float32, attention=attention, heads=2, kv_heads=2)
        model.activation_checkpointing = checkpointing
        tokens, ids = torch.arange(8)[None], torch.tensor([[0] * 3 + [1] * 5])
        model(tokens, tokens, None, ids).loss.backward()
        assert computed == [(32, 16, 2)]
        gradients.append([p.grad for p in model.parameters()])
    for ours, wanted in zip(*gradients):
        torch.testing.assert_close(ours, wanted, atol=1e-5, rtol=1e-3)


def test_documents_are_planned_where_sinks_are_elsewhere():
    """As at ZeRO-3, which has a parameter whole in its own module only: a run that resumed there ended with an error."""
    model = decoder(**SCORES)
    ids, shared = torch.zeros(1, 4, dtype=torch.int64), model._shared(4, torch.device("cpu"))
    model.blocks[0].attention.sinks.data = torch.empty(0)
    assert model._plan(ids, torch.float32, shared).ids is ids


def test_captured_steps_wait_for_nothing(monkeypatch):
    """flash-attn's kernels for documents need their number, for which a CUDA graph could not wait."""
    from emergence_train.models import decoder as module
    from emergence_train.training.micro_batch import MicroBatch

    model, promised, original = decoder(), [], module.document_plan
    monkeypatch.setattr(
        module, "document_plan", lambda ids, **options: promised.append(options["adjacent"]) or original(ids, **options)
    )
    tokens = torch.zeros(1, 4, dtype=torch.int64)
    for graphs in (False, True):
        MicroBatch(SimpleNamespace(module=model), None, None, 0.0, graphs=graphs)
        model(tokens, tokens, None, tokens)
    assert promised == [True, False]
