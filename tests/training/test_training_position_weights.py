"""The loss weights by position."""

import torch

from emergence_train.config import PositionWeights
from emergence_train.training.position_weights import weight_vector


def test_position_weights():
    assert weight_vector(PositionWeights(), 50) is None
    vector = weight_vector(PositionWeights(head=0.5, tail=2.0), 50)
    assert vector.tolist() == [0.5] * 5 + [1.0] * 40 + [2.0] * 5
    assert torch.equal(weight_vector(PositionWeights(vector=[1, 2, 3]), 3), torch.tensor([1.0, 2.0, 3.0]))
