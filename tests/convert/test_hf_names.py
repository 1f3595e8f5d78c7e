"""The tables of names and sizes against transformers' own reading of them."""

import pytest

from emergence_train.convert.hf_names import decoder_config, hf_config
from emergence_train.models.decoder_config import DecoderConfig

transformers = pytest.importorskip("transformers")
SIZES = dict(vocab_size=320, layers=1, heads=1, kv_heads=1, ffn=8, max_sequence=32)


def phi3(head_dim: int, factor: float):
    sizes = dict(vocab_size=320, hidden_size=head_dim, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    return transformers.Phi3Config(**sizes, max_position_embeddings=32, pad_token_id=0, partial_rotary_factor=factor)


def test_every_rotary_fraction_rotates_as_many_in_transformers():
    """Phi3's own frequencies are base^(-2i/r) of r dimensions; as a plain loop over all even r of heads up to 256 wide."""
    embedding = transformers.models.phi3.modeling_phi3.Phi3RotaryEmbedding
    for head_dim in range(4, 257, 2):
        for rotated in range(2, head_dim, 2):
            model = DecoderConfig(**SIZES, width=head_dim, rotary_fraction=rotated / head_dim)
            factor = hf_config(model)["partial_rotary_factor"]
            assert int(head_dim * factor) == rotated, (head_dim, rotated)
    theirs = phi3(52, hf_config(DecoderConfig(**SIZES, width=52, rotary_fraction=30 / 52))["partial_rotary_factor"])
    frequencies, _ = embedding.compute_default_rope_parameters(theirs, "cpu")
    assert frequencies.tolist() == pytest.approx([1e4 ** (-2 * i / 30) for i in range(15)])


def test_an_imported_fraction_is_truncated_as_by_transformers():
    """0.43 of 14 are 6.02: 6 dimensions; 0.42 of 14 are 5, an odd number, which the decoder has not, as are 30/52 of 52."""
    ours = decoder_config(phi3(14, 0.43))
    assert isinstance(ours, DecoderConfig) and ours.rotary_dim == 6
    assert "rotates 5 of 14" in decoder_config(phi3(14, 0.42))
    assert "rotates 29 of 52" in decoder_config(phi3(52, 30 / 52))
