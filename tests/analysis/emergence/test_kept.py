"""What smaller models keep of an ability, against simulations: performance is a function of the loss, or of size as well."""

import numpy as np
import pandas as pd
import pytest

from emergence_train.analysis.emergence import analyze_emergence
from emergence_train.analysis.emergence.analyze import generator
from emergence_train.analysis.emergence.finding import Finding
from emergence_train.analysis.emergence.kept import shares_kept
from emergence_train.analysis.emergence.table import task_metric
from emergence_train.analysis.emergence.verdict import Verdict

CHANCE = 0.25
SIZES = (100_000, 1_000_000, 10_000_000)
TOKENS = np.geomspace(1e6, 1e9, 25).round()


def loss_of(params: int) -> np.ndarray:
    """Chinchilla's form (arXiv 2203.15556), with round numbers."""
    return 1.8 + 40 / params**0.3 + 60 / TOKENS**0.25


def ability(loss: np.ndarray) -> np.ndarray:
    """An arctangent: no shape that the analysis fits."""
    return CHANCE + (1 - CHANCE) * np.maximum(0, np.arctan(1.5 * (3.6 - loss))) / (np.pi / 2)


def table(rng: np.random.Generator, items: int, runs: int | tuple[int, ...] = 1, penalty: float = 0.0) -> pd.DataFrame:
    """Evaluations of every size, of so many runs; `penalty` lowers what a smaller size has above chance at the same loss, by a
    share a decade."""
    parts = []
    for params, number in zip(SIZES, (runs,) * len(SIZES) if isinstance(runs, int) else runs):
        loss = loss_of(params)
        share = 1 - penalty * np.log10(SIZES[-1] / params)
        expected = CHANCE + (ability(loss) - CHANCE) * share
        for run in range(number):
            parts.append(
                pd.DataFrame(
                    {
                        "run": f"{params}-{run}",
                        "params": params,
                        "step": np.arange(1, len(TOKENS) + 1),
                        "tokens": TOKENS,
                        "loss": loss,
                        "task": "t",
                        "metric": "acc",
                        "value": rng.binomial(items, expected) / items,
                        "stderr": np.nan,
                        "items": items,
                        "chance": CHANCE,
                        "higher_is_better": True,
                    }
                )
            )
    return pd.concat(parts, ignore_index=True)


def kept(frame: pd.DataFrame, verdict: str = "gradual"):
    task = task_metric("", "t", "acc", frame)
    judged = Verdict(verdict, 1.0, {}, None, None, (0.0, 0.0, 0.0), None, "")
    return shares_kept(Finding(task, judged, None), generator("t"))


def truth(params: int, penalty: float) -> tuple[float, float]:
    """(at equal tokens, at equal loss): shares by the closed form, at the last tokens and at the smallest size's last loss."""
    share = 1 - penalty * np.log10(SIZES[-1] / params)
    above = {size: ability(loss_of(size))[-1] - CHANCE for size in SIZES}
    return float(share * above[params] / above[SIZES[-1]]), share


@pytest.mark.parametrize("penalty", [0.0, 0.3], ids=["loss decides", "size too"])
@pytest.mark.parametrize("runs", [1, 3])
def test_intervals_cover_the_truth(penalty, runs):
    inside, widths = [], []
    for seed in range(60):
        result = kept(table(np.random.default_rng(seed), 600, runs, penalty))
        for size in result.sizes:
            for share, expected in zip((size.at_equal_tokens, size.at_equal_loss), truth(size.params, penalty)):
                inside.append(share.share.low95 <= expected <= share.share.high95)
                widths.append(share.share.high95 - share.share.low95)
    assert np.mean(inside) >= 0.90 and np.median(widths) < 0.6, (np.mean(inside), np.median(widths))


def covered_with_luck(runs, interval_of) -> list[bool]:
    """Whether each interval holds the truth where each run's ability is multiplied by a lognormal of 25%."""
    inside = []
    for seed in range(40):
        rng = np.random.default_rng([seed, *np.atleast_1d(runs), 9])
        frame = table(rng, 600, runs)
        for _, rows in frame.groupby("run"):
            luck = np.exp(0.25 * rng.standard_normal() - 0.25**2 / 2)
            expected = CHANCE + luck * (ability(rows["loss"].to_numpy()) - CHANCE)
            frame.loc[rows.index, "value"] = rng.binomial(600, np.clip(expected, 0, 1)) / 600
        result = kept(frame)
        if result is None:  # two runs that differ much do not say that the largest has it
            continue
        assert result.interval_of == interval_of
        for size in result.sizes:
            for share, expected in zip((size.at_equal_tokens, size.at_equal_loss), truth(size.params, 0.0)):
                inside.append(share.share.low95 <= expected <= share.share.high95)
    return inside


@pytest.mark.parametrize("runs", [(2, 1, 1), (1, 2, 1), (1, 1, 2)])
def test_a_single_size_of_two_runs_is_enough_for_wide_intervals(runs):
    """One degree of freedom: where two runs happened to be close, normal intervals of items held 80% with two of the smallest."""
    inside = covered_with_luck(runs, "items and runs of some sizes")
    assert len(inside) > 80 and np.mean(inside) >= 0.93, (len(inside), np.mean(inside))


@pytest.mark.parametrize("runs", [2, 3])
def test_intervals_cover_the_truth_where_runs_differ(runs):
    """Each run's ability times a lognormal of 25%; normal intervals of each size's own runs held 86% of truths with two."""
    inside = covered_with_luck(runs, "items and runs")
    assert len(inside) > 120 and 0.90 <= np.mean(inside) <= 0.995, (len(inside), np.mean(inside))


@pytest.mark.parametrize("share", [0.05, 0.27, 0.45])
def test_a_run_that_ended_early_is_left_out_by_name(share):
    """It took the others' places with it: what is kept at its last tokens, or nothing where there is no ability yet."""
    whole = table(np.random.default_rng(6), 2000, (2, 2, 2))
    cut = whole[whole["run"] == f"{SIZES[1]}-0"].assign(run="crashed")
    result, expected = (
        kept(pd.concat([whole, cut[cut["tokens"] <= share * TOKENS[-1]]], ignore_index=True)),
        kept(whole),
    )
    assert result.left_out == ("crashed",) and expected.left_out == ()
    assert (result.tokens, result.loss, result.sizes) == (expected.tokens, expected.loss, expected.sizes)


def test_a_run_that_ended_late_sets_the_place():
    whole = table(np.random.default_rng(6), 2000, (2, 2, 2))
    cut = whole[whole["run"] == f"{SIZES[1]}-0"].assign(run="stopped")
    result = kept(pd.concat([whole, cut[cut["tokens"] <= 0.8 * TOKENS[-1]]], ignore_index=True))
    assert result.left_out == () and TOKENS[-1] * 0.5 < result.tokens <= TOKENS[-1] * 0.8


def test_a_shorter_size_is_not_an_early_end():
    """The smallest size was trained on a third of the tokens, all its runs: equal tokens are its own."""
    whole = table(np.random.default_rng(6), 2000, (2, 2, 2))
    result = kept(whole[(whole["params"] != SIZES[0]) | (whole["tokens"] <= TOKENS[-1] / 3)])
    assert result.left_out == () and TOKENS[-1] / 5 < result.tokens <= TOKENS[-1] / 3


@pytest.mark.parametrize("seed", range(12))
def test_what_the_loss_decides_is_all_kept_or_unknown(seed):
    """Each size is saved over a part of its way alone, and scores have no noise: a first row below the place stood for it.

    The place: the highest last loss that the largest size has come from above. A size is compared where its rows enclose it."""
    rng, whole = np.random.default_rng(seed), table(np.random.default_rng(1), 1)
    whole["value"], whole["items"] = ability(whole["loss"]), 100_000
    starts = dict(zip(SIZES, rng.integers(0, 23, len(SIZES))))
    result = kept(whole[whole["step"] > whole["params"].map(starts)])
    begins, ends = (
        {size: loss_of(size)[at] for size, at in where.items()} for where in (starts, dict.fromkeys(SIZES, -1))
    )
    place = max(end for end in ends.values() if end <= begins[SIZES[-1]])
    assert [size.params for size in result.sizes] == [*SIZES[:-1]] and result.loss == pytest.approx(place)
    for size in result.sizes:
        at_tokens, at_loss = size.at_equal_tokens, size.at_equal_loss
        expected = ability(loss_of(size.params))[-1] - CHANCE, ability(loss_of(SIZES[-1]))[-1] - CHANCE
        assert at_tokens.share.value == pytest.approx(expected[0] / expected[1], abs=1e-9)
        if begins[size.params] >= place >= ends[size.params]:
            assert at_loss.share.value == pytest.approx(1, abs=0.02) and at_loss.verdict == "kept"
        else:
            assert (at_loss.share.value, at_loss.share.low95, at_loss.verdict) == (
                None,
                None,
                "open",
            ) and at_loss.reason


def test_tables_of_last_checkpoints_have_nothing_at_equal_loss():
    last = table(np.random.default_rng(1), 4000)
    sizes = kept(last[last["tokens"] == TOKENS[-1]]).sizes
    assert [size.at_equal_loss.share.value for size in sizes] == [None, None]
    assert all(size.at_equal_tokens.share.value is not None for size in sizes)


def test_a_size_first_seen_below_leaves_the_others_compared():
    """The smallest ended where the largest has no rows yet; the middle one overlaps, and is compared at its own last loss."""
    whole = table(np.random.default_rng(1), 4000)
    late = (whole["params"] == SIZES[-1]) & (whole["loss"] > loss_of(SIZES[0])[-1] - 0.1)
    smallest, middle = kept(whole[~late]).sizes
    assert smallest.at_equal_loss.share.value is None and middle.at_equal_loss.verdict == "kept"


def test_one_run_of_each_size_is_said_to_be_of_items():
    assert kept(table(np.random.default_rng(5), 600)).interval_of == "items"


def test_what_the_loss_decides_is_lost_at_equal_tokens_alone():
    result = kept(table(np.random.default_rng(1), 4000))
    smallest = result.sizes[0]
    assert smallest.params == SIZES[0] and result.largest == SIZES[-1]
    assert result.loss == pytest.approx(loss_of(SIZES[0])[-1]) and result.tokens == TOKENS[-1]
    assert smallest.at_equal_loss.verdict == "kept" and smallest.at_equal_tokens.verdict == "lost"


def test_an_ability_that_needs_size_is_lost_at_equal_loss():
    result = kept(table(np.random.default_rng(2), 4000, penalty=0.45))
    assert result.sizes[0].at_equal_loss.verdict == "lost"


def test_nothing_is_said_without_an_ability_or_sizes_or_chance():
    frame = table(np.random.default_rng(3), 400)
    assert kept(frame, "at-chance") is None
    assert kept(frame[frame["params"] == SIZES[0]]) is None
    assert kept(frame.assign(chance=np.nan)) is None
    assert kept(frame.assign(value=CHANCE)) is None


def test_result_and_table_have_it(tmp_path):
    table(np.random.default_rng(4), 2000).to_csv(tmp_path / "t.csv", index=False)
    (entry,) = analyze_emergence(tmp_path / "t.csv").survival
    assert entry.left_out == ()
    assert entry.key == ("", "t", "acc") and [size.params for size in entry.sizes] == list(SIZES[:-1])
