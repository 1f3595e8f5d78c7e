"""Models that compute alike in another order, and wrong ones: transformers' own Llama is the original."""

import math

import pytest
import torch

from emergence_train.convert import hf_names, logits
from emergence_train.convert.logits import compare_import, in_words, original_logits
from emergence_train.models.hf_config import stored_tensors
from emergence_train.models.registry import build_model

transformers = pytest.importorskip("transformers")


def sharp(scale: float):
    """A Llama whose attention logits are `scale` times larger."""
    torch.manual_seed(0)
    shape = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 12, "num_attention_heads": 4}
    config = transformers.LlamaConfig(**shape, num_key_value_heads=2, vocab_size=320, max_position_embeddings=64)
    theirs = transformers.LlamaForCausalLM(config).eval()
    for name, weight in theirs.named_parameters():
        factor = math.sqrt(scale) if "q_proj" in name or "k_proj" in name else 1
        weight.data *= 4 * factor if weight.dim() > 1 else 1
    return theirs


def decoder_of(theirs):
    model = hf_names.decoder_config(theirs.config)
    weights = {name: tensor.detach() for name, tensor in stored_tensors(theirs).items()}
    ours = build_model(model).eval()
    ours.load_state_dict(hf_names.decoder_weights(weights, model, "llama"), strict=False)
    return model, ours


def test_sharp_attention_amplifies_rounding_and_is_no_other():
    theirs = sharp(30)
    model, ours = decoder_of(theirs)
    compared = compare_import(model, ours, original_logits(model, theirs))
    assert compared.max_difference > logits.NOISE * compared.scale and compared.is_noise
    assert 0.1 < compared.max_difference / compared.rounding < 5
    assert f"; the last bit of every weight moves them by {compared.rounding:.2g})" in in_words(compared)


@pytest.mark.parametrize("scale", [1, 30])
def test_a_wrong_weight_is_another_model_sharp_or_not(scale):
    theirs = sharp(scale)
    model, ours = decoder_of(theirs)
    theirs.model.layers[0].mlp.down_proj.weight.data[:, 0] *= 1.5
    compared = compare_import(model, ours, original_logits(model, theirs))
    assert compared.rounding is not None and not compared.is_noise


def test_rounding_is_not_computed_where_logits_are_equal():
    theirs = sharp(1)
    model, ours = decoder_of(theirs)
    original, before = original_logits(model, theirs), {n: t.clone() for n, t in ours.stored_tensors().items()}
    compared = compare_import(model, ours, original)
    assert compared.is_noise and compared.rounding is None
    assert "last bit" not in in_words(compared)
    assert all(torch.equal(tensor, before[name]) for name, tensor in ours.stored_tensors().items())
