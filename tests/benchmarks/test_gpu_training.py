"""The variants of the benchmark of training steps, and what is predicted of them; the steps themselves need a GPU."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import gpu_training  # noqa: E402


@pytest.mark.parametrize(
    ("name", "gib"),
    [
        ("ours", 23.64),
        ("ours, eager", 23.64),
        ("ours, micro_batch=32", 37.63),
        ("ours, attention=cuda", 23.64),
        ("liger", None),
    ],
)
def test_prediction_is_beside_what_was_measured(name, gib):
    """Measured on an H100; the configuration is that of the benchmark."""
    config = gpu_training.configuration("468m", [])
    assert gpu_training.predicted_gib(config, name) == (None if gib is None else pytest.approx(gib, abs=0.1))


def test_keys_of_a_variant_add_up():
    config = gpu_training.configuration("1.2b", [])
    changed, others = gpu_training.variant(
        config, "micro_batch=32, activation_checkpointing=selective, logits=bfloat16"
    )
    training = changed.training
    assert (training.micro_batch, training.activation_checkpointing, training.cuda_graphs) == (32, "selective", True)
    assert others == {"logits": "bfloat16"} and config.training.micro_batch == 16
    gibs = [
        gpu_training.predicted_gib(config, f"ours, activation_checkpointing={kind}") for kind in ("selective", "full")
    ]
    assert gibs == sorted(gibs, reverse=True) and gibs[0] < gpu_training.predicted_gib(config, "ours")
    with pytest.raises(ValueError, match="activation_checkpointing"):
        gpu_training.variant(config, "activation_checkpointing=some")
