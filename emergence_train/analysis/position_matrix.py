"""A `positions` table as matrices, one per run and split: checkpoints by positions, with variances for weighting."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from emergence_train.errors import InputError
from emergence_train.recorder import tables

KEY = ["run", "params", "step", "tokens", "split"]
SUMS = ["count", "loss_sum", "loss_sq_sum"]
# a matrix has so many cells for each row of the table at most, where it has more than the second
SPARSE = (50, 10_000_000)


SAME = 0.05  # of the tokens at other positions leave the mean loss comparable


@dataclass(frozen=True)
class PositionMatrix:
    """One run's split: rows are checkpoints (C), columns positions (P). A count of 0 marks a hole."""

    keys: pd.DataFrame  # C rows of KEY
    position: np.ndarray  # (P,) float
    count: np.ndarray  # (C, P)
    loss: np.ndarray  # (C, P) mean loss, nats; 0 in a hole
    variance: np.ndarray  # (C, P) smoothed variance of one token's loss
    mean_loss: np.ndarray  # (C,) nats: over all tokens; where checkpoints differ in their positions, over `share`
    share: np.ndarray  # (P,) of the tokens that the mean loss is of
    composition: str | None = None  # a note: the checkpoints differ in their positions, and what the mean loss is of

    @property
    def weight(self) -> np.ndarray:
        """(C, P) inverse squared standard error of the mean loss; 0 in a hole."""
        return self.count / self.variance


def position_matrices(frame: pd.DataFrame) -> list[PositionMatrix]:
    """Pivot a `positions` frame into one matrix per run and split, sorted by step. Raises InputError as tables.read does."""
    table = tables.Frame(Path("positions table"), frame)
    return _matrices(tables.stream(tables.POSITIONS, table, mixed_vocabularies=True))


def read_matrices(paths: str | Path | Iterable[str | Path]) -> list[PositionMatrix]:
    """position_matrices of `positions` tables that are read a piece at a time, without ever being one frame.

    Of a row its three sums stay: 24 bytes. Raises InputError as tables.read does.
    """
    return _matrices(tables.stream(tables.POSITIONS, paths))


@dataclass(frozen=True)
class _Part:
    """The rows of one checkpoint and split in a piece of a table."""

    key: tuple  # of KEY
    position: np.ndarray  # (n,)
    sums: np.ndarray  # (3, n), float


def _matrices(chunks: Iterable[pd.DataFrame]) -> list[PositionMatrix]:
    parts: dict[tuple[str, str], list[_Part]] = {}
    last = np.empty(0)
    for chunk in chunks:
        # Arrays, not frames: a piece has a group a split, and a frame of each would take most of the time.
        positions, sums = chunk["position"].to_numpy(), np.stack([chunk[name].to_numpy(float) for name in SUMS])
        params, tokens = chunk["params"].to_numpy(), chunk["tokens"].to_numpy()
        for (run, split, step), rows in chunk.groupby(["run", "split", "step"], sort=False).indices.items():
            position = positions[rows]
            last = last if np.array_equal(last, position) else position  # every checkpoint has the same: held once
            key = run, params[rows[0]], step, tokens[rows[0]], split
            parts.setdefault((run, split), []).append(_Part(key, last, sums[:, rows]))
    return [_matrix(parts.pop(key)) for key in sorted(parts)]


def observed_rows(matrix: PositionMatrix, keep: np.ndarray | slice) -> PositionMatrix:
    """The checkpoints of `matrix` where `keep` (C,) is True, or of a slice."""
    return PositionMatrix(
        matrix.keys[keep].reset_index(drop=True),
        matrix.position,
        matrix.count[keep],
        matrix.loss[keep],
        matrix.variance[keep],
        matrix.mean_loss[keep],
        matrix.share,
        matrix.composition,
    )


def _matrix(parts: list[_Part]) -> PositionMatrix:
    keys = (
        pd.DataFrame([part.key for part in parts], columns=KEY)
        .drop_duplicates()
        .sort_values(["step"], ignore_index=True)
    )
    position = np.unique(np.concatenate([part.position for part in parts]))
    cells, rows = len(keys) * len(position), sum(len(part.position) for part in parts)
    if cells > max(SPARSE[0] * rows, SPARSE[1]):
        raise InputError(
            f"positions table: run {keys['run'][0]!r}, split {keys['split'][0]!r} has {len(keys):,} steps and "
            f"{len(position):,} positions, but only {rows:,} rows; give each checkpoint the same positions"
        )
    sums = np.zeros((3, len(keys), len(position)))
    for part in parts:
        row, column = np.searchsorted(keys["step"], part.key[2]), np.searchsorted(position, part.position)
        for total, values in zip(sums, part.sums):
            np.add.at(total[row], column, values)
    count, total, squares = sums
    tokens = count.sum(1)
    if np.any(tokens == 0):
        bad = keys.iloc[int(np.argmax(tokens == 0))]
        where = f"run {bad['run']!r}, split {bad['split']!r}, step {bad['step']}"
        raise InputError(f"positions table: {where} counts no token; drop it")
    loss = total / np.maximum(count, 1)
    raw = np.maximum(squares / np.maximum(count, 1) - loss**2, 0)
    variance = _smooth(raw, count, position)
    common, note = _composition(count, position)
    if common is None:
        share, mean = count.sum(0) / count.sum(), total.sum(1) / tokens
    else:
        share, mean = common, loss @ common
    return PositionMatrix(keys, position.astype(float), count, loss, variance, mean, share, note)


def _composition(count: np.ndarray, position: np.ndarray) -> tuple[np.ndarray | None, str | None]:
    """Share of the tokens at each position (P,) that all checkpoints count, where they differ in it by more than SAME, so that
    the mean loss does not move with the positions, else None; and a note where those are not all positions."""
    share = count.sum(0) / count.sum()
    common = (count > 0).all(0)
    if np.abs(count / count.sum(1, keepdims=True) - share).sum(1).max() / 2 <= SAME:
        return None, None
    if common.all():
        return share, None
    says = "the checkpoints do not count the same positions"
    if not common.any():
        return (
            None,
            f"{says}, and none in common: their mean losses are of different positions, and a law across them is of none",
        )
    share = np.where(common, share, 0.0)
    at = position[common]
    which = f"the {len(at)} that all count ({at[0]} to {at[-1]})"
    return share / share.sum(), f"{says}: the mean loss and its forecast are of {which}"


def _smooth(variance: np.ndarray, count: np.ndarray, position: np.ndarray) -> np.ndarray:
    """Average variances in bins of log position, (C, P); never zero."""
    bin_of = position_bins(position, 16)
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
