"""From probed sequences to shares, with intervals."""

import numpy as np
import pandas as pd
from scipy import stats

from emergence_train.analysis.intervals import welch_reach95
from emergence_train.analysis.memorisation.counterfactual import counterfactual
from emergence_train.analysis.memorisation.items import checked
from emergence_train.analysis.memorisation.result import MemorisationResult, MemorisedShare, RunMemorisation
from emergence_train.errors import InputError

# Bins of how often a sequence was seen: from, to (exclusive)
BINS: tuple[tuple[float, float, str], ...] = (
    (0.0, 0.0, "0"),
    (0.0, 1.5, "1"),
    (1.5, 3.0, "2"),
    (3.0, 6.0, "3-5"),
    (6.0, 11.0, "6-10"),
    (11.0, 31.0, "11-30"),
    (31.0, 101.0, "31-100"),
    (101.0, np.inf, "more"),
)
NORMAL_95 = 1.959964


def analyze(items: pd.DataFrame) -> MemorisationResult:
    """Shares of extracted sequences by how often they were seen, and trained against never seen, for each run.

    Args:
        items: a row a probed sequence: run, params, step, seen (times trained on; 0: a control), extracted (bool), loss (mean of
            the continuation, nats a token), prefix, continuation (tokens); and item, equal where the text is, by which runs that
            differ in their texts are compared.

    Raises:
        InputError: the rows are not as items.py has them; a run has no trained sequence, or no control.
    """
    items = checked(items)
    shares, runs = [], []
    for _, rows in items.sort_values(["params", "run", "step"], kind="stable").groupby(["params", "run", "step"]):
        shares += _shares(rows)
        runs.append(_against_controls(rows))
    first = items.iloc[0]
    return MemorisationResult(
        prefix=int(first["prefix"]),
        continuation=int(first["continuation"]),
        shares=tuple(shares),
        runs=tuple(runs),
        counterfactual=(counterfactual(items) if "item" in items else ()) or None,
    )


def wilson(successes: int, count: int) -> tuple[float, float]:
    """Wilson's 95% interval of a share (Wilson 1927)."""
    z2 = NORMAL_95**2
    centre = (successes + z2 / 2) / (count + z2)
    reach = NORMAL_95 / (count + z2) * np.sqrt(successes * (count - successes) / count + z2 / 4)
    return max(float(centre - reach), 0.0), min(float(centre + reach), 1.0)


def difference(a: int, n: int, b: int, m: int) -> tuple[float, float]:
    """Newcombe's 95% interval of a/n - b/m, from the two intervals of Wilson (Newcombe 1998, method 10)."""
    p, q = a / n, b / m
    (p_low, p_high), (q_low, q_high) = wilson(a, n), wilson(b, m)
    return (
        float(p - q - np.hypot(p - p_low, q_high - q)),
        float(p - q + np.hypot(p_high - p, q - q_low)),
    )


def _shares(rows: pd.DataFrame) -> list[MemorisedShare]:
    shares = []
    for low, high, name in BINS:
        inside = rows["seen"] == 0 if high == 0 else (rows["seen"] > 0) & (rows["seen"] >= low) & (rows["seen"] < high)
        part = rows[inside]
        if part.empty:
            continue
        extracted, count = int(part["extracted"].sum()), len(part)
        ends = wilson(extracted, count)
        shares.append(
            MemorisedShare(
                run=str(part["run"].iloc[0]),
                params=int(part["params"].iloc[0]),
                step=int(part["step"].iloc[0]),
                seen=name,
                least=float(part["seen"].min()),
                most=float(part["seen"].max()),
                items=count,
                extracted=extracted,
                share=extracted / count,
                low95=ends[0],
                high95=ends[1],
                loss=float(part["loss"].mean()),
            )
        )
    return shares


def _against_controls(rows: pd.DataFrame) -> RunMemorisation:
    trained, controls = rows[rows["seen"] > 0], rows[rows["seen"] == 0]
    run = str(rows["run"].iloc[0])
    if len(trained) < 2 or len(controls) < 2:
        raise InputError(
            f"{run}: has {len(trained)} trained sequences and {len(controls)} controls; probe at least 2 of each"
        )
    a, n, b, m = int(trained["extracted"].sum()), len(trained), int(controls["extracted"].sum()), len(controls)
    low, high = difference(a, n, b, m)
    gain = float(controls["loss"].mean() - trained["loss"].mean())
    reach = welch_reach95(controls["loss"].to_numpy(), trained["loss"].to_numpy())
    return RunMemorisation(
        run=run,
        params=int(rows["params"].iloc[0]),
        step=int(rows["step"].iloc[0]),
        of_100=100 * (a / n - b / m),
        of_100_low95=100 * low,
        of_100_high95=100 * high,
        p=float(stats.fisher_exact([[a, n - a], [b, m - b]], alternative="greater").pvalue),
        loss_gain=gain,
        loss_gain_low95=gain - reach if np.isfinite(reach) else None,
        loss_gain_high95=gain + reach if np.isfinite(reach) else None,
    )
