"""An optimizer that is never compiled computes what torch's does."""

import torch

from emergence_train.optim.base import eager


def test_steps_are_those_of_the_class_it_is_made_from():
    torch.manual_seed(1)
    first = torch.nn.Linear(7, 5)
    second = torch.nn.Linear(7, 5)
    second.load_state_dict(first.state_dict())
    plain = torch.optim.AdamW(first.parameters(), lr=0.01, fused=True)
    ours = eager(torch.optim.AdamW)(second.parameters(), lr=0.01, fused=True)
    assert isinstance(ours, torch.optim.AdamW) and type(ours).__name__ == "AdamW"
    for _ in range(5):
        x = torch.randn(3, 7)
        for model, optimizer in ((first, plain), (second, ours)):
            optimizer.zero_grad()
            model(x).square().sum().backward()
            optimizer.step()
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b) and b.requires_grad
    assert all(not value.requires_grad for state in ours.state.values() for value in state.values())
