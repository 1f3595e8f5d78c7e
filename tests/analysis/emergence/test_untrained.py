"""Untrained checkpoints in tables without unigram_loss: which rows go, and that no verdict and no threshold follows them."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from emergence_train.analysis.emergence import simulate
from emergence_train.analysis.emergence import table as emergence_table
from emergence_train.analysis.emergence.analyze import find
from emergence_train.analysis.emergence.untrained import trained
from support import study


def curve(losses, tokens=None, run="a") -> pd.DataFrame:
    tokens = 10.0 ** np.arange(len(losses)) if tokens is None else np.asarray(tokens, float)
    return pd.DataFrame({"run": run, "params": 1, "step": tokens, "tokens": tokens, "loss": losses})


def kept(frame: pd.DataFrame, unigram: float | None = None) -> list[float]:
    return trained(frame, unigram, [])["loss"].tolist()


TRAINED = [3.6, 3.3, 3.1, 2.9, 2.8, 2.7, 2.6, 2.5]


def test_untrained_rows_by_hand():
    for untrained in (10.8, 7.6, 6.0, 5.0):  # above every unigram model, and far above the others
        assert kept(curve([untrained, *TRAINED])) == TRAINED
    assert kept(curve([10.9, 10.8, *TRAINED])) == TRAINED
    assert (
        kept(curve([3.9, *TRAINED], tokens=[0, *range(1, 9)])) == TRAINED
    )  # before the first token, whatever its loss
    assert kept(curve([8.0, 7.0, 5.0, 4.0]), unigram=6.5) == [5.0, 4.0]


def test_rows_that_are_trained_are_kept():
    assert kept(curve([4.0, *TRAINED])) == [4.0, *TRAINED]  # no further from the next than that from its own
    ratios = [5.0, 4.2, 3.7, 3.4, 3.2, 3.05, 2.95, 2.9]  # checkpoints at even ratios of tokens
    assert kept(curve(ratios)) == ratios
    small = pd.concat(
        [curve([5.5, 5.4, 5.3], [1e9, 2e9, 4e9], "small"), curve(TRAINED, np.arange(1, 9) * 1e9, "large")]
    )
    assert len(kept(small)) == 11  # a small model far above the others, and well trained
    assert kept(curve([9.0, 8.5, 8.0])) == [9.0, 8.5, 8.0]  # too few would remain


def with_untrained(frame: pd.DataFrame, loss: float, step: int) -> pd.DataFrame:
    """The table with one untrained checkpoint of its smallest run, at chance."""
    first = frame.sort_values(["params", "step"]).iloc[[0]]
    share = float(first["chance"].iloc[0])
    tokens = int(step * first["tokens"].iloc[0] / first["step"].iloc[0])
    return pd.concat([frame, first.assign(step=step, tokens=tokens, loss=loss, value=share)], ignore_index=True)


def judged(frame: pd.DataFrame, tmp_path: Path):
    path = tmp_path / "table.csv"
    frame.to_csv(path, index=False)
    finding = find(emergence_table.load(path)[0][0])
    onset = finding.verdict.onset
    return finding.verdict.name, None if onset is None else [finding.task.loss_at(share) for share in onset]


@pytest.mark.parametrize("kind", simulate.KINDS)
def test_an_untrained_checkpoint_turns_no_verdict(kind, tmp_path):
    """Ten simulated tables a kind, losses of 5.6 to 11.5 nats at step 0 or a few steps later."""
    for seed in range(10):
        rng = np.random.default_rng([seed, 3])
        frame, _ = simulate.table(kind, rng)
        loss, step = rng.uniform(7.6, 11.5), int(rng.choice([0, 1, 20]))
        if seed % 2:
            loss, step = rng.uniform(5.6, 11.5), 0
        name, eta = judged(frame, tmp_path)
        same, moved = judged(with_untrained(frame, loss, step), tmp_path)
        assert same == name, (seed, loss, step)
        assert eta is None or abs(moved[0] - eta[0]) < 1e-9


def test_untrained_checkpoints_of_every_run_turn_no_verdict(tmp_path):
    script = study("emergence_items")
    for seed in range(6):
        rng = np.random.default_rng([seed, 4])
        frame, _ = script.table(rng, items=1000, rows="sparse")
        first = frame.sort_values("step").groupby("run").head(1)
        chance = frame["chance"].iloc[0]
        untrained = first.assign(step=0, tokens=0, loss=rng.uniform(9, 11, len(first)), value=chance)
        assert judged(frame, tmp_path)[0] == judged(pd.concat([frame, untrained]), tmp_path)[0]
