"""What the study of memorised pieces makes of its table: tables whose shares, trend and differences were put there."""

import json
import math
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from support import assert_same

STUDIES = str(Path(__file__).parents[2] / "benchmarks" / "studies")
sys.path.insert(0, STUDIES)
import memorisation_results as results  # noqa: E402

sys.path.remove(STUDIES)

T_2 = 0.95 * math.sqrt(2 / (1 - 0.95**2))  # 97.5% of Student's t with 2 degrees of freedom


def rows(params: int, seed: int, times: int, written: int, of: int = 100, passes: int = 6, **keys) -> pd.DataFrame:
    """A run's pieces of one level: of `of` trained ones the first `written` come exactly, of as many controls none."""
    seen = np.r_[np.full(of, float(times * passes)), np.zeros(of)]
    extracted = np.r_[np.arange(of) < written, np.zeros(of, bool)].astype(int)
    about = {"size": f"{params}p", "params": params, "seed": seed, "step": 10 * passes, "passes": passes}
    frame = pd.DataFrame({"item": np.arange(2 * of), "times": times, "seen": seen, "extracted": extracted})
    return frame.assign(**about, **({"loss": 3.0 - (seen > 0)} | keys))


def test_share_is_the_mean_of_seeds_with_their_spread():
    """Seeds of very unlike sizes count alike: 10 of 100, 2 of 10 and 12 of 40 are 0.1, 0.2, 0.3."""
    table = pd.concat([rows(1000, 1, 8, 10), rows(1000, 2, 8, 2, of=10), rows(1000, 3, 8, 12, of=40)])
    (share,) = results.shares(table)
    reach = T_2 * 0.1 / math.sqrt(3)
    assert share["extracted"] == {"value": 0.2, "low95": 0.0, "high95": pytest.approx(0.2 + reach, abs=1e-4)}
    assert (share["items"], share["controls"], share["seen"], share["of_controls"]) == (150, 150, 48.0, 0.0)
    assert (share["loss"], share["loss_of_controls"]) == (2.0, 3.0)


def test_level_without_controls_has_no_share_of_them():
    """A level whose every piece was trained on: nothing to say of controls, and nothing that JSON cannot hold."""
    table = rows(1000, 1, 8, 10)
    (share,) = results.shares(table[table["seen"] > 0])
    assert (share["of_controls"], share["loss_of_controls"], share["controls"]) == (None, None, 0)
    json.dumps(share, allow_nan=False)


def test_controls_that_come_back_are_taken_off():
    table = rows(1000, 1, 8, 70).assign(extracted=lambda t: np.where(t["seen"] > 0, t["extracted"], t["item"] < 130))
    assert results.of_100(table).loc[1000, 1] == pytest.approx(70 - 30)


def planted_trend(slopes: dict[int, float]) -> pd.DataFrame:
    """Of 100 by size and seed: 20 at 1,000 parameters, and a line in log10(parameters) of a slope for each seed."""
    sizes = [10**3, 10**4, 10**5]
    return pd.DataFrame({seed: [20 + slope * k for k in range(3)] for seed, slope in slopes.items()}, index=sizes)


def test_trend_is_the_slope_that_was_planted():
    """Slopes 10, 20, 30: t = 20 sqrt(3) / 10, and with 2 degrees of freedom p = 1 - t / sqrt(t^2 + 2)."""
    got = results.trend(planted_trend({1: 10.0, 2: 20.0, 3: 30.0}))
    reach, t = T_2 * 10 / math.sqrt(3), 20 * math.sqrt(3) / 10
    assert (got["value"], got["by_seed"]) == (20.0, [10.0, 20.0, 30.0])
    assert (got["low95"], got["high95"]) == pytest.approx((20 - reach, 20 + reach), abs=1e-4)
    assert got["p"] == pytest.approx(1 - t / math.sqrt(t**2 + 2), abs=1e-9)


@pytest.mark.parametrize("slopes", [{1: 20.0}, {1: 0.0, 2: 0.0, 3: 0.0}, {1: 20.0, 2: 20.0}])
def test_trend_without_spread_has_no_p(slopes):
    got = results.trend(planted_trend(slopes))
    assert (got["low95"], got["high95"], got["p"]) == (None, None, None)
    json.dumps(got, allow_nan=False)


def test_interval_of_a_trend_holds_the_truth():
    """Of draws of three seeds around a slope of 18 by a skewed law, some 95% of intervals hold it."""
    rng, held = np.random.default_rng(5), []
    for _ in range(120):
        slopes = 18 + 10 * (rng.gamma(4.0, 0.5, 3) - 2.0)
        got = results.trend(planted_trend(dict(enumerate(slopes))))
        held.append(got["low95"] <= 18 <= got["high95"])
    assert 0.90 <= np.mean(held) <= 0.99


def levels(seed: int, written: dict[int, int], passes: int = 6) -> pd.DataFrame:
    return pd.concat([rows(1000, seed, times, count, passes=passes) for times, count in written.items()])


def test_half_is_where_the_share_crosses_it():
    """0.2 at 12 times, 0.8 at 48: half on the straight line in the logarithm, at 24."""
    table = pd.concat([levels(seed, {2: 20, 8: 80}) for seed in (1, 2, 3)])
    assert results.half(table) == {"1000": {"value": 24.0, "low95": None, "high95": None}}


def test_half_at_once_seen_is_one():
    """The logarithm of 1 is 0, which is a crossing like any other."""
    table = pd.concat([levels(seed, {1: 50, 2: 60}, passes=1) for seed in (1, 2)])
    below = pd.concat([rows(1000, seed, 1, 20, passes=1, loss=2.0).assign(times=0) for seed in (1, 2)])
    below["seen"] = below["seen"] / 2
    assert results.half(pd.concat([table, below]))["1000"]["value"] == 1.0


@pytest.mark.parametrize("odd", [{2: 60, 8: 80}, {2: 20, 8: 40}], ids=["every level", "no level"])
def test_half_needs_every_seed(odd):
    table = pd.concat([levels(1, {2: 20, 8: 80}), levels(2, odd)])
    assert results.half(table) == {"1000": None}


def by_halves(gain: float, pieces: int = 60) -> pd.DataFrame:
    """Three sizes, four seeds, two levels: each piece is in the data of half of the seeds, and costs `gain` nats less there.

    Pieces differ in difficulty and runs in level, far more than by the gain; a larger run has a lower level, which is no gain.
    """
    rng = np.random.default_rng(7)
    hard, parts = rng.gamma(2.0, 1.0, pieces), []
    members = np.stack([rng.permutation([True, True, False, False]) for _ in range(pieces)], 1)
    for number, params in enumerate((1000, 10_000, 100_000)):
        for seed in range(4):
            trained = members[seed]
            loss = 5 + hard - 0.5 * number + 0.02 * rng.standard_normal() - gain * trained
            table = pd.DataFrame({"item": np.arange(pieces), "times": np.where(np.arange(pieces) < 30, 4, 16)})
            table["seen"] = np.where(trained, 6.0 * table["times"], 0.0)
            table["extracted"] = (trained & (np.arange(pieces) % 10 <= number + seed % 2)).astype(int)
            about = {"size": f"{params}p", "params": params, "seed": seed + 1, "step": 60, "passes": 6}
            parts.append(table.assign(loss=loss, **about))
    return pd.concat(parts)


@pytest.fixture(scope="module")
def planted():
    """A gain of 0.7 nats: the table, and what is measured on it."""
    table = by_halves(0.7)
    return table, results.measured(table)


def test_counterfactual_is_the_gain_that_was_planted(planted):
    result = planted[1]
    overall = [row for row in result["counterfactual"] if row["seen"] == "all"]
    assert [row["params"] for row in overall] == [1000, 10_000, 100_000]
    for row in result["counterfactual"]:
        assert row["nats"]["value"] == pytest.approx(0.7, abs=0.05), row
        assert row["nats"]["low95"] <= 0.7 <= row["nats"]["high95"]
    assert [row["items"] for row in overall] == [60, 60, 60]


def test_counterfactual_is_none_where_nothing_was_learnt():
    """Half of the pieces are trained on and nothing comes of it: the level of a run is not taken for a gain."""
    for row in results.measured(by_halves(0.0))["counterfactual"]:
        assert abs(row["nats"]["value"]) < 0.05 and row["nats"]["low95"] <= 0 <= row["nats"]["high95"]


def test_measured_is_the_last_pass_and_counts_controls_of_all(planted):
    """An earlier pass of which everything is written changes the shares of that pass alone."""
    last, alone = planted
    early = last.assign(passes=1, step=10, extracted=(last["seen"] > 0).astype(int), seen=last["seen"] / 6)
    both = results.measured(pd.concat([early, last]))
    assert both["of_100"] == alone["of_100"] and both["counterfactual"] == alone["counterfactual"]
    assert both["controls"] == 2 * alone["controls"] and both["controls_extracted"] == 0
    assert {row["passes"]: row["extracted"]["value"] for row in both["shares"] if row["times"] == 4}[1] == 1.0
    json.dumps(both, allow_nan=False)


def test_ten_times_the_size_is_the_difference_that_was_planted():
    """One digit of item numbers more is written for each tenfold size: 10 of 100, up to the halves that a seed was given."""
    table = pd.concat([rows(10**k, seed, 8, 10 * (k - 2) + seed) for k in (3, 4, 5) for seed in (1, 2, 3)])
    result = results.measured(table)
    assert [row["value"] for row in result["of_100"]] == [12.0, 22.0, 32.0]
    assert result["trend_of_100"]["by_seed"] == [10.0, 10.0, 10.0] and result["trend_of_100"]["p"] is None
    assert result["largest_less_smallest"] == {"value": 20.0, "low95": None, "high95": None}
    assert result["trend_by_times"]["8"]["value"] == 10.0


def test_committed_result_is_what_its_table_says():
    stored = json.loads(results.RESULT.read_text())
    again = json.loads(json.dumps(results.measured(pd.read_csv(results.TABLE)), allow_nan=False))
    assert_same(again, {name: stored[name] for name in again})
