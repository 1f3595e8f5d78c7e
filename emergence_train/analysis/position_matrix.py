"""A `positions` table as matrices, one per run and split: checkpoints by positions, with variances for weighting."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from emergence_train.errors import InputError

KEY = ["run", "params", "step", "tokens", "split"]


@dataclass(frozen=True)
class PositionMatrix:
    """One run's split: rows are checkpoints (C), columns positions (P). A count of 0 marks a hole."""

    keys: pd.DataFrame  # C rows of KEY
    position: np.ndarray  # (P,) float
    count: np.ndarray  # (C, P)
    loss: np.ndarray  # (C, P) mean loss, nats; 0 in a hole
    variance: np.ndarray  # (C, P) smoothed variance of one token's loss
    mean_loss: np.ndarray  # (C,) over all tokens

    @property
    def weight(self) -> np.ndarray:
        """(C, P) inverse squared standard error of the mean loss; 0 in a hole."""
        return self.count / self.variance


def position_matrices(frame: pd.DataFrame) -> list[PositionMatrix]:
    """Pivot a `positions` frame (tables.read) into one matrix per run and split, sorted by step."""
    needed = [*KEY, "position", "count", "loss_sum", "loss_sq_sum"]
    missing = [column for column in needed if column not in frame]
    if missing:
        raise InputError(f"positions table: column {missing[0]!r} is missing; it needs {', '.join(needed)}")
    return [_matrix(group) for _, group in frame.groupby(["run", "split"], sort=True)]


def observed_rows(matrix: PositionMatrix, keep: np.ndarray) -> PositionMatrix:
    """The checkpoints of `matrix` where `keep` (C,) is True."""
    return PositionMatrix(
        matrix.keys[keep].reset_index(drop=True),
        matrix.position,
        matrix.count[keep],
        matrix.loss[keep],
        matrix.variance[keep],
        matrix.mean_loss[keep],
    )


def _matrix(group: pd.DataFrame) -> PositionMatrix:
    keys = group[KEY].drop_duplicates().sort_values(["step"], ignore_index=True)
    position, column = np.unique(group["position"].to_numpy(), return_inverse=True)
    row = np.searchsorted(keys["step"].to_numpy(), group["step"].to_numpy())
    sums = np.zeros((3, len(keys), len(position)))
    for k, name in enumerate(("count", "loss_sum", "loss_sq_sum")):
        np.add.at(sums[k], (row, column), group[name].to_numpy(float))
    count, total, squares = sums
    tokens = count.sum(1)
    if np.any(tokens == 0):
        bad = keys.iloc[int(np.argmax(tokens == 0))]
        where = f"run {bad['run']!r}, split {bad['split']!r}, step {bad['step']}"
        raise InputError(f"positions table: {where} counts no token; drop it")
    loss = total / np.maximum(count, 1)
    raw = np.maximum(squares / np.maximum(count, 1) - loss**2, 0)
    variance = _smooth(raw, count, position)
    return PositionMatrix(keys, position.astype(float), count, loss, variance, total.sum(1) / tokens)


def _smooth(variance: np.ndarray, count: np.ndarray, position: np.ndarray, bins: int = 16) -> np.ndarray:
    """Average variances in bins of log position, (C, P); never zero."""
    bin_of = position_bins(position, bins)
    member = (bin_of[:, None] == np.arange(bin_of.max() + 1)).astype(float)  # (P, B)
    total = count @ member
    mean = (count * variance) @ member / np.maximum(total, 1)
    typical = (mean * total).sum(1, keepdims=True) / np.maximum(total.sum(1, keepdims=True), 1)
    typical = np.where(typical > 0, typical, 1.0)  # a table without spread: equal weights
    return np.maximum(mean, 1e-3 * typical)[:, bin_of]


def position_bins(position: np.ndarray, bins: int) -> np.ndarray:
    """(P,) bin of each position, at most `bins`, equal in log position, none empty."""
    edges = np.geomspace(position[0], position[-1] + 1, bins + 1)
    return np.unique(np.searchsorted(edges, position, side="right"), return_inverse=True)[1]
