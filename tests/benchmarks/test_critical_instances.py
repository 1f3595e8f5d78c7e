"""The studies of how much of a skill is needed: texts counted, thresholds and predictors that were put there."""

import json
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

STUDIES = str(Path(__file__).parents[2] / "benchmarks" / "studies")
sys.path.insert(0, STUDIES)
import critical_instances as study  # noqa: E402
import critical_mass  # noqa: E402

sys.path.remove(STUDIES)


@pytest.fixture(scope="module")
def lines():
    return study.lines(1)


@pytest.mark.parametrize("distinct", [1, 8, 384, 900])
def test_variety_alone_differs(lines, distinct):
    """Always 900 lines; so many distinct ones, each as often as another or once more, the first of one list."""
    counts = Counter(line for text in study.documents(distinct, 1) for line in text.splitlines())
    assert sum(counts.values()) == study.LINES and set(counts) == set(lines[0][:distinct])
    assert max(counts.values()) - min(counts.values()) <= 1


def test_controls_are_in_no_text(lines):
    trained, controls = lines
    assert len(set(trained)) == study.LINES and len(controls) == study.CONTROLS
    assert not {exercise.text() for exercise in controls} & set(trained)
    assert study.lines(2)[0] != trained


def frame(asked: int, written: int, controls: int = 100, wrong: int = 0) -> pd.DataFrame:
    """A probe: of `asked` own lines so many come exactly, at 1 nat; of controls `wrong`, at 3."""
    seen = np.r_[np.full(asked, 9.0), np.zeros(controls)]
    right = np.r_[np.arange(asked) < written, np.arange(controls) < wrong]
    return pd.DataFrame({"seen": seen, "extracted": right, "loss": np.where(seen > 0, 1.0, 3.0)})


def test_instances_memorised_are_the_share_of_all(tmp_path, monkeypatch):
    """25 of 100 asked, of 384: 96. Asked about are own lines and as many controls as there are, and the answer is kept."""
    asked = []

    def probe_run(run, probe, texts, log):
        asked.append(texts)
        return frame(100, 25, wrong=1)

    monkeypatch.setattr(study, "probe_run", probe_run)
    got = study.memorised(tmp_path, "a", 384, 1)
    assert (got["instances"], got["extracted"], got["of_controls"], got["seen"]) == (96.0, 25, 1, 9.0)
    assert (got["loss"], got["loss_of_controls"]) == (1.0, 3.0)
    assert len(asked[0]) == study.ASKED + study.CONTROLS and asked[0][:100] == study.lines(1)[0][:100]
    assert study.memorised(tmp_path, "a", 384, 1) == got and len(asked) == 1


def runs(able: dict[tuple[int, float, int], bool], **columns) -> pd.DataFrame:
    """A row a run of (parameters, share, seed): whether it has the skill."""
    rows = [
        {"size": f"{params}p", "params": params, "share": share, "seed": seed, "accuracy": 0.9 if has else 0.3}
        for (params, share, seed), has in able.items()
    ]
    return pd.DataFrame(rows).assign(**columns)


def sigmoid(x: float) -> float:
    return 1 / (1 + np.exp(-x))


def test_critical_number_is_found_with_coverage():
    """A larger model needs half as many for each tenfold size: 32 instances, then 16. Chance of the skill by a Gompertz curve
    in the logarithm, which the estimator does not contain; 5 numbers, 6 seeds. Intervals hold both in 95% of draws or more."""
    rng, held, factors = np.random.default_rng(3), [], []
    for _ in range(25):
        able = {
            (params, share, seed): rng.random() < 1 - np.exp(-np.log(2) * (share / critical) ** 2.5)
            for params, critical in ((1000, 32), (10_000, 16))
            for share in (4, 8, 16, 32, 64, 128)
            for seed in range(6)
        }
        shares, trend = study.critical(runs(able))
        for row, truth in zip(shares, (32, 16)):
            assert row["runs"] == 36
            held.append((row["low95"] or 0) <= truth <= (row["high95"] or np.inf))
        ends = trend["factor_for_ten_times"]
        factors.append((ends["low95"] or 0) <= 0.5 <= (ends["high95"] or np.inf))
    assert np.mean(held) >= 0.93 and np.mean(factors) >= 0.9


def test_skill_that_no_run_has_leaves_the_number_open():
    able = {(1000, share, seed): False for share in (4, 8, 16) for seed in (1, 2)}
    shares, trend = study.critical(runs(able))
    assert shares[0]["learnt"] == 0 and shares[0]["value"] is None
    json.dumps([shares, trend], allow_nan=False)


def test_what_decides_tells_all_pairs_and_noise_half_of_them():
    """Of 400 runs half have the skill, where `decides` is above 0; `noise` is drawn without it."""
    rng = np.random.default_rng(4)
    decides = rng.permutation(np.linspace(-1, 1, 400))
    able = {(1000, number, 1): bool(value > 0) for number, value in enumerate(decides)}
    table = runs(able, decides=decides, against=-decides, noise=rng.random(400), same=1.0)
    for name, sign in (("decides", 1), ("against", -1)):
        assert critical_mass.told_by(table, name) == {"area": 1.0, "sign": sign, "pairs": 200 * 200}
    assert critical_mass.told_by(table, "noise")["area"] == pytest.approx(0.5, abs=0.08)  # 2.8 SD
    assert critical_mass.told_by(table, "same")["area"] == 0.5


def test_area_is_that_of_a_plain_loop_over_runs():
    """Checkpoints of one run are not compared: within each run time tells all, between the runs nothing."""
    rows = pd.DataFrame({"run": np.repeat([1, 2, 3], 4), "time": np.tile(np.arange(4.0), 3)})
    rows["accuracy"] = np.where(rows["time"] + (rows["run"] == 2) >= 2, 0.9, 0.2)
    table = rows.assign(size="s", share=1, seed=rows["run"], params=9)
    right = []
    for a in table.itertuples():
        for b in table.itertuples():
            if a.run != b.run and a.accuracy >= 0.6 > b.accuracy:
                right.append(1.0 if a.time > b.time else 0.5 if a.time == b.time else 0.0)
    got = critical_mass.told_by(table, "time")
    assert got["pairs"] == len(right) and got["area"] == pytest.approx(np.mean(right), abs=1e-4) and got["area"] < 1


@pytest.mark.parametrize("has", [True, False])
def test_nothing_tells_where_all_runs_are_alike(has):
    """All have the skill or none: no pair, so no area, and no number that JSON cannot hold."""
    table = runs({(1000, 1, 1): has, (1000, 2, 1): has}, loss=[1.0, 2.0], instances=[3, 4])
    assert study.predictors(table) is None
    got = critical_mass.told_by(table, "loss")
    assert (got["area"], got["sign"], got["pairs"]) == (None, None, 0)
    json.dumps(got, allow_nan=False)


def test_rank_at_the_end_is_that_of_each_size():
    """In one size accuracy goes with the share, in the other it is the same for all, of which there is no rank."""
    able = {(1000, share, 1): False for share in (1, 2, 3, 4)} | {(2000, share, 1): False for share in (1, 2, 3, 4)}
    table = runs(able, loss=[4.0, 4.1, 4.2, 4.3] * 2)
    table["accuracy"] = [0.1, 0.2, 0.3, 0.4, 0.3, 0.3, 0.3, 0.3]
    got = critical_mass.at_equal_loss(table)
    assert got["1000p"]["spearman"] == 1.0 and got["1000p"]["loss_range"] == [4.0, 4.3]
    assert (got["2000p"]["spearman"], got["2000p"]["p"]) == (None, None)
    json.dumps(got, allow_nan=False)
