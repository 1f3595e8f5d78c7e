"""Weights of the training loss by position (arXiv 2404.17785): head, body and tail of the sequence, or any vector."""

import torch

from emergence_train.config import PositionWeights


def weight_vector(weights: PositionWeights, sequence: int) -> torch.Tensor | None:
    """The loss weight of each position [T] float32, or None where all are alike.

    Head is the first 10% of positions, tail the last 10%, rounded to whole positions (arXiv 2404.17785).
    """
    if weights.vector is not None:
        return torch.tensor(weights.vector, dtype=torch.float32)
    if weights.head == weights.body == weights.tail:
        return None
    edge = max(1, round(0.1 * sequence))
    vector = torch.full((sequence,), weights.body)
    vector[:edge], vector[-edge:] = weights.head, weights.tail
    return vector
