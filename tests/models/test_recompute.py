"""Activations computed again: the same gradients to the bit, and the bytes that are kept."""

import json

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from emergence_train.models.decoder import Decoder
from emergence_train.models.decoder_config import DecoderConfig
from emergence_train.models.presets import PRESETS
from emergence_train.training.main_gradients import AccumulatingLinear
from support import command

KINDS = ("none", "selective", "full")
SHAPE = {"layers": 3, "width": 64, "heads": 4, "kv_heads": 2, "ffn": 160, "vocab_size": 320, "max_sequence": 32}


def decoder(kind: str, dtype: torch.dtype = torch.float32) -> Decoder:
    model = Decoder(DecoderConfig(**SHAPE))
    model.init_weights(3)
    model.activation_checkpointing = kind
    return model.to(dtype)


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens, and documents that begin within a sequence."""
    tokens = torch.randint(0, 320, (2, 32), generator=torch.Generator().manual_seed(0))
    return tokens, (torch.arange(32) // 11).expand(2, 32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize("main_gradients", [False, True])
def test_gradients_are_the_same_bits(dtype, documents, main_gradients):
    tokens, ids = batch()
    every = []
    for kind in KINDS:
        model = decoder(kind, dtype)
        for layer in model.blocks.modules() if main_gradients else ():
            if type(layer) is torch.nn.Linear:
                layer.__class__ = AccumulatingLinear
                layer.weight.main_grad = torch.zeros(layer.weight.shape)
        for _ in range(2):
            model(tokens, tokens, None, ids if documents else None).loss.backward()
        every.append([getattr(p, "main_grad", p.grad) for p in model.parameters()])
    for none, *others in zip(*every):
        assert none.any() and all(torch.equal(none, other) for other in others)


def alive_after_forward(kind: str) -> int:
    """Bytes that the blocks' forward pass has allocated and not freed, by PyTorch's own account of its allocator."""
    model, (tokens, _) = decoder(kind), batch()
    model._trunk(tokens, None)  # makes the rotary table
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        kept = model._trunk(tokens, None)
    assert kept[0].requires_grad
    return sum(event.self_cpu_memory_usage for event in profiler.key_averages())


def test_kept_bytes_are_those_of_the_model():
    """The last block's output, which the next norm takes, is alive too, and with full the last residual."""
    config, tokens = DecoderConfig(**SHAPE), 2 * 32
    for kind in KINDS:
        expected = tokens * (config.activations(kind, 4).blocks + 4 * 64 * (2 if kind == "full" else 1))
        assert alive_after_forward(kind) == pytest.approx(expected, rel=0.02), kind


@pytest.mark.parametrize("size", ["468m", "1.2b"])
def test_selective_keeps_70_percent(size):
    """Of the two sizes that have been measured on a GPU, by the model whose bytes the test above counts."""
    config = DecoderConfig(**PRESETS[size])
    none, selective, full = (config.activations(kind, 2).blocks for kind in KINDS)
    assert 0.70 < selective / none < 0.71 and full / none < 0.13


@pytest.mark.slow
def test_compiled_blocks_are_whole_graphs():
    """Traced and differentiated by the compiler, its code generation aside; the same gradients but for rounding."""
    tokens, _ = batch()
    every = []
    for kind in ("none", "selective"):
        model = decoder(kind)
        if kind == "selective":
            for block in model.blocks:
                block.compile(backend="aot_eager", fullgraph=True)
        model(tokens, tokens).loss.backward()
        every.append([p.grad for p in model.parameters()])
    for plain, compiled in zip(*every):
        torch.testing.assert_close(plain, compiled, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_zero_3_gathers_what_is_computed_again(config_file, tmp_path):
    """The losses' bits of two ranks whose norms are empty between their turns."""
    over = ["train", str(config_file), "training.zero_stage=3", "training.tokens=512", "training.precision=bf16"]
    losses = []
    for kind in ("none", "selective"):
        done = command(*over, f"training.activation_checkpointing={kind}", f"name={kind}", processes=2)
        assert done.returncode == 0, done.stderr
        rows = map(json.loads, (tmp_path / "runs" / kind / "metrics.jsonl").read_text().splitlines())
        losses.append([row["loss"] for row in rows if row["kind"] == "train"])
    assert losses[0] == losses[1] and len(losses[0]) == 2


def test_without_gradients_nothing_is_kept():
    model, (tokens, _) = decoder("selective"), batch()
    with torch.no_grad():
        assert torch.equal(model(tokens), decoder("none")(tokens))
