"""The backtest of ability forecasts: only crossings that were ahead, against losses of known law."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from emergence_train.analysis.emergence import backtest
from emergence_train.analysis.emergence.forecast import OBSERVED

FLOORS = {10**7: 2.6, 3 * 10**7: 2.4, 10**8: 2.25, 3 * 10**8: 2.1}
TOTAL = 20_000


def losses(params: int, step: np.ndarray) -> np.ndarray:
    return FLOORS[params] + 1.2 * (step / 1000) ** -0.4


def written(tmp_path: Path, eta: float) -> Path:
    """Four sizes whose losses obey a power law of the steps; a task flat at chance down to `eta` nats."""
    rng = np.random.default_rng(0)
    frames = []
    for params in FLOORS:
        step = np.unique(np.round(np.geomspace(150, TOTAL, 26)).astype(int))
        loss = losses(params, step) + rng.normal(0, 0.003, len(step))
        value = rng.binomial(4000, 0.25 + 0.6 * np.maximum(eta - loss, 0)) / 4000
        frames.append(
            pd.DataFrame({"run": f"r-{params}", "params": params, "step": step, "loss": loss, "value": value})
        )
    frame = pd.concat(frames).assign(task="t", metric="acc", items=4000, chance=0.25, higher_is_better=True)
    path = tmp_path / "table.csv"
    frame.assign(tokens=frame["step"] * 1000, stderr=0.007, vocabulary="v").to_csv(path, index=False)
    return path


def end_of(eta: float) -> float:
    """Tokens at which the largest size falls to `eta`, by its law."""
    return 1000 * 1000 * ((eta - FLOORS[3 * 10**8]) / 1.2) ** (-1 / 0.4)


@pytest.mark.parametrize(("eta", "observed"), [(2.8, 0.1), (2.95, 0.1), (3.1, 0.05)])
def test_a_crossing_that_was_ahead_is_forecast(tmp_path, eta, observed):
    (row,) = backtest(written(tmp_path, eta), observed=observed)
    assert row.actual == pytest.approx(end_of(eta), rel=0.25) and row.actual > observed * TOTAL * 1000
    high = np.inf if row.predicted.high95 is None else row.predicted.high95
    assert row.predicted.low95 < end_of(eta) < high and row.inside95


@pytest.mark.parametrize("eta", [2.8, 2.95, 3.1])
def test_a_crossing_that_is_past_is_not_scored(tmp_path, eta):
    """The largest is below these losses before 40% of its tokens: there was nothing to forecast."""
    assert end_of(eta) < OBSERVED * TOTAL * 1000
    assert backtest(written(tmp_path, eta)) == []
