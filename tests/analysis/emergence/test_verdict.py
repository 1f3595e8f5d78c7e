"""Verdicts on curves of known form: what counts as shown, what levels off, what turns, and the answer that costs nothing."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm

from emergence_train.analysis.emergence import simulate
from emergence_train.analysis.emergence import table as emergence_table
from emergence_train.analysis.emergence.analyze import find


def verdicts(curve, *, chance=0.25, items=3000, seeds=4, **columns) -> set[str]:
    """Verdicts on tables whose expected performance is `curve` of the share of the loss range."""
    names = set()
    for seed in range(seeds):
        rng = np.random.default_rng([seed, 5])
        frame = simulate.ladder(rng)
        x = (frame["loss"].max() - frame["loss"]).to_numpy() / np.ptp(frame["loss"])
        value = rng.binomial(items, np.clip(curve(x), 0, 1)) / items
        frame = frame.assign(task="t", metric="acc", value=value, stderr=0.01, items=items, chance=chance, **columns)
        finding = find(emergence_table.task_metric("", "t", "acc", frame.assign(higher_is_better=True)))
        names.add(finding.verdict.name)
        assert sum(finding.verdict.probabilities.values()) == pytest.approx(1)
    return names


def late(to: float, level: float = 0.25):
    """Flat to 0.4 of the range, then rising to `to`."""
    return lambda x: level + (to - level) * np.clip((x - 0.4) / 0.6, 0, 1)


@pytest.mark.parametrize(
    ("curve", "chance", "verdict"),
    [
        (late(0.25, 0.231), 0.25, "at-chance"),  # from below chance to chance
        (late(0.275), 0.25, "at-chance"),  # (0.275 - 0.25) / 0.75 = 0.033
        (late(0.35), 0.25, "emergent"),  # 0.133
        (late(0.03, 0.0), 0.0, "at-chance"),
        (late(0.10, 0.0), 0.0, "emergent"),
        (lambda x: 0.25 + 0.03 * x, 0.25, "at-chance"),
        (lambda x: 0.25 + 0.20 * x, 0.25, "gradual"),
    ],
)
def test_an_ability_is_shown_from_five_percent_of_the_room(curve, chance, verdict):
    assert verdicts(curve, chance=chance, items=14_000) == {verdict}


def test_moving_between_constant_answers_shows_nothing():
    """Two answers, 41% of the items have the rarer: a model that gives one and then the other goes from 0.41 to 0.59."""
    moves = lambda to: lambda x: 0.41 + (to - 0.41) * np.clip((x - 0.4) / 0.2, 0, 1)  # noqa: E731
    assert verdicts(moves(0.57), chance=0.5) == {"at-chance"}
    assert verdicts(moves(0.80), chance=0.5) == {"emergent"}
    assert verdicts(late(0.60, 0.50), chance=0.5, items=14_000) == {"emergent"}
    assert verdicts(late(0.60, 0.50), chance=0.5, items=14_000, majority=0.62) == {"at-chance"}


def runs_apart(ends: list[float], items: int, level: float = 0.25, seed: int = 0):
    """The finding on runs over one range of losses, all at `level` up to the last quarter and rising to their own ends there."""
    rng, parts = np.random.default_rng([seed, 7]), []
    for run, end in enumerate(ends):
        x = np.linspace(0, 1, 20)
        value = rng.binomial(items, level + (end - level) * np.clip((x - 0.75) / 0.1, 0, 1)) / items
        parts.append({"run": f"r{run}", "params": 10**6, "step": np.arange(1, 21), "loss": 5 - x, "value": value})
    frame = pd.concat([pd.DataFrame(part) for part in parts]).assign(tokens=lambda rows: rows["step"] * 1000)
    frame = frame.assign(task="t", metric="acc", stderr=0.01, items=items, chance=0.25, higher_is_better=True)
    return find(emergence_table.task_metric("", "t", "acc", frame)).verdict


def test_what_single_runs_can_do_is_not_called_chance():
    """Two of ten runs learn it at losses at which the others do not: a common curve is flat, and says nothing of them."""
    lottery = runs_apart([0.97, 0.88] + [0.25] * 8, items=100)
    assert lottery.name == "not-identified" and lottery.reason.startswith("2 of 10 runs are far above chance")
    for seed in range(4):
        assert runs_apart([0.25] * 10, items=100, seed=seed).name == "at-chance"
        assert runs_apart([0.30] + [0.25] * 9, items=3000, seed=seed).name == "at-chance"  # sure, and little
        assert runs_apart([0.40] * 5, items=1000, level=0.40, seed=seed).name == "at-chance"  # lifted by answer length


def flat_runs(
    levels: list[float], count: int, *, checkpoints: int = 12, chance: float = 0.25, seed: int = 0, **columns
):
    """The verdict on runs that each stay at a level of their own, whatever their losses, which they share."""
    rng = np.random.default_rng([seed, 23])
    frame = pd.DataFrame({"level": np.repeat(levels, checkpoints), "run": np.repeat(range(len(levels)), checkpoints)})
    frame["step"] = np.tile(np.arange(checkpoints) + 1, len(levels))
    frame = frame.assign(loss=4.2 - 0.1 * frame["step"] + rng.normal(0, 0.02, len(frame)), tokens=frame["step"] * 1000)
    value = rng.binomial(count, frame["level"]) / count
    frame = frame.assign(task="t", metric="acc", params=10 ** (8 + frame["run"]), value=value, chance=chance)
    frame = frame.assign(
        higher_is_better=True, run=frame["run"].map("r{}".format), **{"items": count, "stderr": np.nan} | columns
    )
    return find(emergence_table.task_metric("", "t", "acc", frame)).verdict


@pytest.mark.parametrize(
    ("levels", "items", "columns"),
    [
        ([0.25, 0.37, 0.49], 2000, {}),  # by size
        ([0.26, 0.29, 0.34, 0.38, 0.43, 0.50], 2000, {}),
        ([0.25, 0.31, 0.38, 0.45], 500, {}),
        ([0.37, 0.49], 2000, {}),  # not one at chance
        ([0.42, 0.25, 0.25, 0.36], 2000, {}),  # by seed, in part
        ([0.47] * 9 + [0.25], 2000, {}),  # by data: one did not see it
        ([0.00, 0.10, 0.20], 500, {"chance": 0.0}),
        ([0.25, 0.37, 0.49], 2000, {"items": np.nan, "stderr": 0.011}),
        ([0.25] * 20 + [0.40] * 20, 2000, {"checkpoints": 1}),
        ([0.35, 0.39, 0.43, 0.47], 2000, {}),  # all above chance
    ],
)
def test_runs_that_differ_above_chance_are_not_at_chance(levels, items, columns):
    """The common curve is flat, and below what counts as saturated, but the best run is 8 to 30 standard errors above chance."""
    for seed in range(3):
        verdict = flat_runs(levels, items, seed=seed, **columns)
        assert verdict.name == "not-identified" and "far above chance" in verdict.reason


@pytest.mark.parametrize("items", [20, 200, 2000])
@pytest.mark.parametrize("chance", [0.0, 0.25, 0.5])
@pytest.mark.parametrize(("runs", "checkpoints"), [(4, 12), (10, 6), (60, 1)])
def test_runs_at_chance_stay_there(items, chance, runs, checkpoints):
    """Also where answers' lengths lift all of them to one level; a lucky run of one checkpoint is no ability."""
    names = [
        flat_runs([chance] * runs, items, checkpoints=checkpoints, chance=chance, seed=seed).name for seed in range(4)
    ]
    assert names == ["at-chance"] * 4
    lucky = flat_runs(
        [chance] * (runs - 1) + [chance + 0.1 if checkpoints == 1 else chance],
        items,
        checkpoints=checkpoints,
        chance=chance,
    )
    assert lucky.name == "at-chance"
    if chance and items > 20:
        lifted = flat_runs([chance + 0.12] * runs, items, checkpoints=checkpoints, chance=chance)
        assert lifted.name == "at-chance" and lifted.reason.startswith(f"at {chance + 0.12:.2g}"[:6]) == (items == 2000)


def test_runs_at_the_commonest_answer_are_at_chance():
    """Constant answers of two: some runs give the rarer, others the commoner."""
    assert flat_runs([0.41, 0.59, 0.41, 0.59], 3000, chance=0.5, majority=0.59).name == "at-chance"
    assert flat_runs([0.41, 0.80, 0.41, 0.80], 3000, chance=0.5, majority=0.59).name == "not-identified"


@pytest.mark.parametrize(("runs", "clusters"), [(8, 67), (40, 67)])
def test_clustered_items_count_by_their_standard_errors(runs, clusters):
    """Runs at chance whose 1,000 items are answered alike in clusters: by items alone 6 of 8 tables had able runs."""
    for seed in range(8):
        rng = np.random.default_rng([seed, 99])
        levels = rng.binomial(clusters, 0.25, runs) / clusters
        table = {"value": np.repeat(levels, 6), "stderr": (0.25 * 0.75 / clusters) ** 0.5}
        assert flat_runs([0.25] * runs, 1000, checkpoints=6, seed=seed, **table).name == "at-chance"


def test_runs_of_one_answer_each_name_the_majority():
    """Answers of shares 0.15 to 0.36: far from one another, and no ability, which the table shows with the column alone."""
    table = {"value": np.repeat([0.36, 0.15, 0.22, 0.27, 0.36, 0.15, 0.22, 0.27], 12)}
    verdict = flat_runs([0.25] * 8, 1000, **table)
    assert verdict.name == "not-identified" and "one answer throughout: a column majority tells" in verdict.reason
    assert flat_runs([0.25] * 8, 1000, majority=0.36, **table).name == "at-chance"
    able = flat_runs([0.41, 0.80, 0.41, 0.80], 3000, chance=0.5, majority=0.59)
    assert able.name == "not-identified" and "majority" not in able.reason


def by_tokens(rise, *, runs: int = 4, items: int = 1000, chance: float = 0.25, noise=0.0):
    """The finding on runs of 16 checkpoints that all score `rise` of the checkpoint, plus noise, at losses of their own."""
    step = np.tile(np.arange(16), runs)
    run = np.repeat(range(runs), 16)
    frame = pd.DataFrame({"run": [f"r{code}" for code in run], "params": 10**7 * 4**run, "step": step + 1})
    frame = frame.assign(tokens=np.round(1e9 * 100 ** (step / 15)).astype(int), loss=3 - 0.13 * run - 0.27 * step / 15)
    value = np.round(np.clip(rise(step) + noise, 0, 1) * items) / items
    frame = frame.assign(task="t", metric="acc", value=value, items=items, stderr=np.nan, chance=chance)
    return find(emergence_table.task_metric("", "t", "acc", frame.assign(higher_is_better=True)))


@pytest.mark.parametrize("runs", [3, 6])
@pytest.mark.parametrize(
    ("rise", "chance"),
    [
        (lambda step: np.where(step >= 12, 0.85, 0.25), 0.25),
        (lambda step: np.where(step >= 12, 0.60, 0.00), 0.0),
        (lambda step: np.where(step >= 12, 0.85, 0.50), 0.5),
        (lambda step: np.where(step >= 13, 0.45, 0.25), 0.25),
        (lambda step: 0.25 + 0.5 * np.maximum(step - 7, 0) / 8, 0.25),
        (lambda step: np.where(step >= 8, 0.95, 0.25), 0.25),  # the common curve is far above chance: saturated
    ],
)
def test_what_runs_gain_by_tokens_is_not_called_flat(runs, rise, chance):
    """Tokens alone decide, and losses overlap: every run is at chance first and able at last, none is above the others."""
    verdict = by_tokens(rise, runs=runs, chance=chance).verdict
    assert verdict.name == "not-identified"
    assert verdict.reason.startswith(f"{runs} of {runs} runs rise far above chance and their own first checkpoints")
    assert "that one curve explains: tokens" in verdict.reason and len(verdict.able) == runs


def test_the_reason_names_the_share_that_tokens_explain():
    finding = by_tokens(lambda step: np.where(step >= 12, 0.85, 0.25))
    tokens, loss = (float(finding.verdict.reason.rsplit(f"{name} ", 1)[1][:4]) for name in ("tokens", "loss"))
    assert tokens > 0.9 and loss < 0.3


@pytest.mark.parametrize("level", [0.25, 0.4])
def test_luck_that_wanders_along_runs_is_at_chance(level):
    """Autoregressive by 0.9 with a standard deviation of 2 points, also about a level that answers' lengths lift."""
    for seed in range(8):
        rng = np.random.default_rng([seed, 41])
        shocks = rng.normal(0, 0.02, (4, 16))
        luck = shocks.copy()
        for k in range(1, 16):
            luck[:, k] = 0.9 * luck[:, k - 1] + 0.19**0.5 * shocks[:, k]
        noise = luck.ravel() + rng.normal(0, 0.014, 64)
        assert by_tokens(lambda step: np.full(len(step), level), noise=noise).verdict.name == "at-chance"


def answered(seed: int, share, *, items: int = 150, drift: float = 0.5):
    """The verdict without a chance level on three runs that answer the same items, `share` (of the loss range) of them right.

    Each item's propensity wanders from where it began to where the loss leads every run, so that guesses drift alike.
    """
    rng = np.random.default_rng([seed, 43])
    frame = simulate.ladder(rng, sizes=3, checkpoints=14)
    x = (frame["loss"].max() - frame["loss"]).to_numpy() / np.ptp(frame["loss"])
    start, end = rng.normal(size=(2, 1, items))
    angle = drift * np.pi / 2 * x[:, None]
    own = np.cos(angle) * start + np.sin(angle) * end
    value = (norm.cdf(0.95 * own + 0.31 * rng.normal(size=(len(x), items))) < share(x)[:, None]).mean(1)
    frame = frame.assign(
        task="t", metric="acc", value=value, stderr=np.nan, items=items, chance=np.nan, unigram_loss=9.0
    )
    return find(emergence_table.task_metric("", "t", "acc", frame.assign(higher_is_better=True))).verdict.name


def test_guesses_that_drift_without_a_chance_level_are_no_rise():
    assert {answered(seed, lambda x: np.full(len(x), 0.25)) for seed in range(12)} == {"at-chance"}


@pytest.mark.parametrize(
    ("rise", "verdict"),
    [
        (late(0.60), "emergent"),
        (late(0.30, 0.0), "emergent"),
        (lambda x: 0.25 + 0.25 * x, "gradual"),
        (lambda x: 0.20 * x, "gradual"),
        (lambda x: 0.70 + 0.15 * x, "gradual"),
    ],
)
def test_a_rise_without_a_chance_level_is_kept(rise, verdict):
    assert {answered(seed, rise, items=500, drift=0) for seed in range(4)} == {verdict}


@pytest.mark.parametrize("level", [0.25, 0.5])
def test_a_rise_that_levels_off_is_gradual(level):
    assert verdicts(lambda x: 0.25 + 0.35 * np.minimum(x / level, 1)) == {"gradual"}
    assert verdicts(lambda x: 0.25 + 0.35 * -np.expm1(-4 * x / level)) == {"gradual"}
    dip = lambda x: 0.25 + 0.35 * np.minimum(x / level, 1) - 0.03 * np.maximum(x - level, 0)  # noqa: E731
    assert verdicts(dip, items=14_000) == {"gradual"}


def test_an_inverted_u_is_named():
    assert verdicts(lambda x: 0.25 + 0.25 * (1 - ((x - 0.5) / 0.5) ** 2)) == {"inverted-u"}
    assert verdicts(lambda x: 0.3 + 0.2 * np.where(x < 0.5, x / 0.5, 1.6 - 1.2 * x)) == {"inverted-u"}
    assert verdicts(lambda x: 0.45 - 0.25 * (1 - ((x - 0.5) / 0.5) ** 2)) == {"u-shaped"}


@pytest.mark.parametrize("items", [300, 3000, 14_000])
@pytest.mark.parametrize(
    "fall",
    [
        lambda u: 0.55 * (1 - u),  # all of it, straight
        lambda u: 0.55 - 0.35 * u,  # two thirds
        lambda u: 0.55 - 0.3 * np.sqrt(u),
        lambda u: 0.55 * np.exp(-3 * u),
        lambda u: 0.275 * (1 + np.cos(np.pi * u)),
    ],
)
@pytest.mark.parametrize("rise", [lambda u: u, lambda u: np.sin(np.pi * u / 2), lambda u: (1 - np.cos(np.pi * u)) / 2])
def test_a_fall_after_a_plateaus_rise_is_an_inverted_u(rise, fall, items):
    """Flat to 0.4 of the range, up to 0.8 at 0.65, and down again: more than half of the rise is lost."""

    def curve(x):
        up, down = np.clip((x - 0.4) / 0.25, 0, 1), np.clip((x - 0.65) / 0.35, 0, 1)
        return 0.25 + np.where(x < 0.65, 0.55 * rise(up), fall(down))

    assert verdicts(curve, items=items) == {"inverted-u"}


@pytest.mark.parametrize("lost", [0.0, 0.05, 0.1])
def test_a_small_dip_after_a_rise_stays_emergent(lost):
    """Below a quarter of the rise is lost again: the ability stays, and its threshold is that of the rise."""
    curve = lambda x: late(0.8)(np.minimum(x, 0.7)) - lost * 0.275 * np.clip((x - 0.7) / 0.3, 0, 1)  # noqa: E731
    assert verdicts(curve) == {"emergent"}


def test_a_bump_within_the_noise_is_no_turn():
    bump = lambda x: 0.25 + 0.015 * np.exp(-(((x - 0.6) / 0.1) ** 2))  # noqa: E731
    assert verdicts(bump, seeds=8) == {"at-chance"}


def test_more_rows_add_no_certainty_without_end():
    """Rises between straight and flat-then-straight, which no shape has: 4,000 rows are no surer than a few dozen can be."""
    rng = np.random.default_rng(0)
    loss = rng.uniform(2, 4, 4000)
    x = (4 - loss) / 2
    value = rng.binomial(14_000, 0.3 + 0.2 * np.logaddexp(0, (x - 0.35) / 0.1) * 0.1) / 14_000
    frame = pd.DataFrame({"run": "a", "params": 1, "step": range(1, 4001), "tokens": range(1, 4001), "loss": loss})
    frame = frame.assign(task="t", metric="acc", value=value, stderr=0.004, items=14_000, chance=0.25)
    finding = find(emergence_table.task_metric("", "t", "acc", frame.assign(higher_is_better=True)))
    assert finding.verdict.posterior.effective < 60


@pytest.mark.parametrize(("after", "verdict"), [(1, "not-identified"), (2, "not-identified"), (3, "emergent")])
def test_a_rise_of_fewer_than_three_rows_is_no_ability(after, verdict):
    """60 rows at chance but for those of the lowest losses: one or two may be luck."""
    for seed in range(4):
        rng = np.random.default_rng([seed, 19])
        loss = np.linspace(4, 2, 60)
        value = rng.binomial(1000, 0.25 + 0.3 * (np.arange(60) >= 60 - after)) / 1000
        frame = pd.DataFrame({"run": "a", "params": 1, "step": range(1, 61), "tokens": range(1, 61), "loss": loss})
        frame = frame.assign(task="t", metric="acc", value=value, stderr=0.014, items=1000, chance=0.25)
        named = find(emergence_table.task_metric("", "t", "acc", frame.assign(higher_is_better=True))).verdict
        assert named.name == verdict, (seed, named.reason)


def test_a_rise_by_one_lucky_row_says_so():
    """Ladders at chance but for the row of the lowest loss, which scores 0.3 more."""
    reasons = []
    for seed in range(6):
        rng = np.random.default_rng([seed, 20])
        frame = simulate.ladder(rng, sizes=4, checkpoints=16)
        value = rng.binomial(1000, 0.25, len(frame)) / 1000 + 0.3 * (frame["loss"] == frame["loss"].min())
        frame = frame.assign(task="t", metric="acc", value=value, stderr=0.014, items=1000, chance=0.25)
        named = find(emergence_table.task_metric("", "t", "acc", frame.assign(higher_is_better=True))).verdict
        assert named.name == "not-identified"
        reasons.append(named.reason)
    assert any("by one checkpoint alone" in reason for reason in reasons)
    assert any("fewer than 3 checkpoints show" in reason for reason in reasons)
