"""A short training with the fused loss stays with one that has the reference's."""

from functools import partial

import pytest
import torch
from compiled import COMPILED

from emergence_train.models.decoder import Decoder
from emergence_train.models.decoder_config import DecoderConfig

STEPS = 200
ROWS, T = (8, 8) if COMPILED else (2, 2)  # the interpreter takes 20 ms a row
CONFIG = DecoderConfig(layers=1, width=16, heads=2, kv_heads=1, ffn=32, vocab_size=48, max_sequence=T)

pytestmark = [] if COMPILED else [pytest.mark.slow]  # two minutes of interpreter and emulator


def train(backend: str, device: torch.device) -> torch.Tensor:
    """-> the loss of every step: sums modulo the vocabulary, some tokens ignored, positions weighted, a z-loss."""
    torch.manual_seed(0)
    model = Decoder(CONFIG)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1 if parameter.dim() > 1 else 0.0)
        parameter.data += parameter.dim() == 1
    model.to(device)
    model.head.forward = partial(model.head.forward, backend=backend)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    weights = torch.linspace(0.5, 1.5, T, device=device)
    losses = []
    for _ in range(STEPS):
        tokens = (torch.randint(48, (ROWS, 1)) + torch.arange(T + 1) * 3) % 48
        targets = tokens[:, 1:].masked_fill(torch.rand(ROWS, T) < 0.1, -100)
        loss = model(tokens[:, :-1].to(device), targets.to(device), weights=weights, z_loss=1e-4).loss
        optimizer.zero_grad()
        (loss / 2).backward()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses).cpu()


def test_training_follows_the_reference(fused, device):
    """In float32 the two differ by roundings only: 200 updates of Adam make them no more than 0.2% of the loss."""
    ours, reference = train(fused, device), train("torch", device)
    assert reference[-20:].mean() < 0.8 * reference[:20].mean(), "it learns"
    assert ((ours - reference).abs() <= 2e-3 * reference).all(), (ours - reference).abs().max()
