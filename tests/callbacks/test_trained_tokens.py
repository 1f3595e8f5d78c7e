"""Tokens and losses of all ranks, of which another is played here; tests/callbacks/test_lightning.py has two processes."""

import pytest
import torch

from emergence_train.callbacks import trained_tokens
from emergence_train.callbacks.trained_tokens import TrainedTokens


def test_tokens_are_summed_and_losses_averaged(monkeypatch):
    other = torch.tensor([2**40 + 1, 5.0], dtype=torch.float64)
    monkeypatch.setattr(trained_tokens, "device_of", lambda: torch.device("cpu"))
    monkeypatch.setattr(trained_tokens.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(trained_tokens.dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(trained_tokens.dist, "all_reduce", lambda both: both.add_(other))
    tokens = TrainedTokens(10)
    tokens.add(torch.tensor(6))
    assert tokens.all_reduce_with_loss(torch.tensor(2.0)) == (10 + 6 + 2**40 + 1, 3.5)
    assert tokens.all_reduce_sum() == 10 + 6 + 2 * (2**40 + 1), "each is counted once"


def test_a_process_alone_keeps_its_loss():
    tokens = TrainedTokens()
    tokens.add(3)
    assert tokens.all_reduce_with_loss(torch.tensor(0.25)) == (3, pytest.approx(0.25)) and tokens.estimate == 3
