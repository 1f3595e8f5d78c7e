"""The decoder against counts, against transformers' Llama on the same weights, and against itself."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from emergence_train.models.config import padded_vocabulary
from emergence_train.models.decoder import Decoder
from emergence_train.models.decoder_config import DecoderConfig
from emergence_train.models.presets import PRESETS
from support import llama_of

SMALL = {"layers": 2, "width": 32, "heads": 4, "kv_heads": 2, "ffn": 48, "vocab_size": 96, "max_sequence": 64}


def decoder(seed: int = 1, dtype=torch.float64, **changes) -> Decoder:
    config = DecoderConfig(**SMALL | changes)
    model = Decoder(config)
    model.init_weights(seed)
    return model.to(dtype)


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_parameters_in_closed_form_equal_a_count(name):
    config = DecoderConfig(**PRESETS[name] | {"vocab_size": PRESETS[name].get("vocab_size", 2048)})
    with torch.device("meta"):
        model = Decoder(config)
    counted = sum(p.numel() for p in model.parameters())
    outside = counted - sum(p.numel() for n, p in model.named_parameters() if n.startswith(("embedding", "head")))
    assert config.parameters() == counted
    assert config.non_embedding_parameters() == outside


@pytest.mark.parametrize(
    ("name", "least", "most"),
    [
        ("300m", 0.27e9, 0.36e9),
        ("540m", 0.5e9, 0.6e9),
        ("1b", 0.9e9, 1.3e9),
        ("1.5b", 1.35e9, 1.75e9),
        ("3b", 2.8e9, 3.5e9),
        ("6b", 5.5e9, 6.7e9),
        ("32b", 29e9, 34e9),
        ("468m", 0.466e9, 0.47e9),
        ("1.2b", 1.19e9, 1.23e9),
    ],
)
def test_presets_are_the_sizes_they_are_called(name, least, most):
    assert least <= DecoderConfig(**PRESETS[name]).parameters() <= most


@pytest.mark.parametrize("tied", [True, False])
def test_flops_in_closed_form_equal_a_count(tied, monkeypatch):
    monkeypatch.setenv("EMERGENCE_KERNELS_BACKEND", "torch")
    model = decoder(dtype=torch.float32, tied=tied)
    tokens = torch.randint(0, 96, (2, 64))
    # The counter knows products of matrices, not the CPU's kernels; the plain path does the full, uncausal work.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        logits = model(tokens)
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens.flatten()).backward()
    hidden_keys = 12 * model.config.layers * model.config.width * (64 - 65 / 2)
    assert counter.get_total_flops() / 128 == model.config.flops_per_token(64) + hidden_keys


def test_it_is_llama():
    """Same weights in transformers' LlamaForCausalLM (full rotation, float64): same logits."""
    pytest.importorskip("transformers")
    model = decoder(vocab_size=128)
    other = llama_of(model)
    with torch.no_grad():
        tokens = torch.randint(0, 128, (3, 64), generator=torch.Generator().manual_seed(0))
        # Rotary angles and the mean square are float32 in both; hence not 1e-12.
        torch.testing.assert_close(model(tokens), other(tokens).logits, atol=2e-6, rtol=2e-5)


@pytest.mark.parametrize("changes", [{}, {"rotary_fraction": 0.5}, {"tied": True}, {"kv_heads": 1}])
def test_a_token_sees_nothing_after_it(changes):
    model = decoder(**changes)
    tokens = torch.randint(0, 96, (1, 20))
    later = tokens.clone()
    later[0, 12:] = (later[0, 12:] + 1) % 96
    with torch.no_grad():
        before, after = model(tokens), model(later)
    torch.testing.assert_close(before[0, :12], after[0, :12], atol=1e-12, rtol=0)
    assert (before[0, 12:] - after[0, 12:]).abs().min() > 0


def test_masked_documents_are_as_if_apart():
    """Rotary attention knows distances only, so the second document gives the logits that it gives alone."""
    model = decoder()
    tokens = torch.randint(0, 96, (1, 20))
    ids = torch.tensor([[0] * 8 + [1] * 12])
    with torch.no_grad():
        together = model(tokens, tokens, None, ids).token_loss
        alone = model(tokens[:, 8:], tokens[:, 8:]).token_loss
    torch.testing.assert_close(together[:, 8:], alone, atol=1e-5, rtol=1e-5)


def test_half_rotation_leaves_the_other_half():
    from emergence_kernels import rotary
    from emergence_train.models.decoder import RotaryTable

    config = DecoderConfig(**SMALL | {"rotary_fraction": 0.5})
    x = torch.randn(2, 10, 4, 8, dtype=torch.float64)
    turned = rotary(x, *RotaryTable(config)(10, x.device))
    assert torch.equal(turned[..., 4:], x[..., 4:])
    torch.testing.assert_close(turned[..., :4].norm(dim=-1), x[..., :4].norm(dim=-1), rtol=1e-6, atol=1e-6)
    angle = 3 * 10_000.0 ** (-2 / 4)  # position 3, second pair: elements 1 and 3
    wanted = x[:, 3, :, 1] * torch.cos(torch.tensor(angle)) - x[:, 3, :, 3] * torch.sin(torch.tensor(angle))
    torch.testing.assert_close(turned[:, 3, :, 1], wanted, rtol=1e-6, atol=1e-6)


def test_initial_weights_depend_on_seed_and_name_alone():
    first, again, other = decoder(1), decoder(1), decoder(2)
    deeper = decoder(1, layers=3)
    for (name, a), b, c in zip(first.named_parameters(), again.parameters(), other.parameters()):
        assert torch.equal(a, b)
        assert a.ndim < 2 or not torch.equal(a, c)
        if a.ndim >= 2 and not name.endswith(("attention.out.weight", "swiglu.down.weight")):
            assert torch.equal(a, dict(deeper.named_parameters())[name])
    assert first.embedding.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert first.blocks[0].swiglu.down.weight.std().item() == pytest.approx(0.02 / 2, rel=0.1)


def test_activation_checkpointing_changes_no_gradient():
    tokens = torch.randint(0, 96, (2, 16))
    gradients = []
    for kind in ("none", "full"):
        model = decoder()
        model.activation_checkpointing = kind
        model(tokens, tokens).loss.backward()
        gradients.append([p.grad for p in model.parameters()])
    for a, b in zip(*gradients):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize(("tokens", "rows"), [(1, 64), (64, 64), (65, 128), (50_257, 50_304)])
def test_padded_vocabulary(tokens, rows):
    assert padded_vocabulary(tokens) == rows
