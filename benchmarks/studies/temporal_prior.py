"""What do runs of other laboratories say of the drop with the learning rate, and of the fall still to come?

    python benchmarks/studies/temporal_prior.py CURVES_DIR earlier.parquet    (the table of temporal_data.py)

drop   Runs of one model, data set and peak rate but different schedules share one set (L0, A, alpha, B): each such group
       is fitted jointly for every clock and kernel. Over groups log B is regressed on the logs of the peak rate and of
       the tokens.
fall   Where the rate is at its peak, log of L(s) - L(r s) for r of 2 and 4, on the steps, the peak rate and both.

Every laboratory has the same weight in these regressions but for the root of its runs; their spread is that of
laboratories left out. Peak rates outside RATES are no AdamW rates and count as priors.NEUTRAL. Writes
benchmarks/results/temporal_prior.json and the numbers into emergence_train/analysis/temporal/prior.json.
"""

import sys
from pathlib import Path

import numpy as np
import pandas as pd

from emergence_train.analysis.planned_schedule import PlannedSchedule
from emergence_train.analysis.temporal import mean_law, priors
from emergence_train.analysis.temporal.priors import Drop, Fall, Prior, as_json
from emergence_train.files import write_json

HERE = Path(__file__).resolve().parent
RATES = (1e-4, 4.1e-3)
# one laboratory, or several that train one recipe on one data set
LABORATORY = {"modded1": "124M speedruns", "romero": "124M speedruns", "llmc": "124M speedruns"}
EXPONENTS = (0.3, 0.8)  # alpha and B of one run trade against each other: B is compared at exponents that runs share
FLOOR_SHAPE = 0.25
LAB_SD, SLOPE_SD = 0.25, 0.3  # see regress
SPREAD = (0.2, 0.35)  # limits of a law's spread: it comes from three to five laboratories
HALF = -0.5  # the fall's exponent in steps to start from
AGES = 8  # starting steps of increments, a run


def table_of(folder: Path, earlier: Path) -> pd.DataFrame:
    """All curves with source, group and kind. A run's validation log stands for it where it has one."""
    frames = [pd.read_parquet(earlier).assign(kind="val", optimizer="AdamW")]
    meta = pd.read_csv(folder.parent / "curves_meta.csv").set_index("file")
    for file in sorted(folder.glob("*.csv")):
        about = meta.loc[file.name]
        if about["kind"] == "train" and file.name.replace("__train", "__val") in meta.index:
            continue
        frames.append(pd.read_csv(file).assign(**about[["source", "kind", "optimizer", "schedule"]], group=file.stem))
    table = pd.concat(frames, ignore_index=True)
    table["laboratory"] = table["source"].map(lambda source: LABORATORY.get(source, source))
    return table[(table["source"] != "noisy") & (table["step"] > 0)]


def late_part(run: pd.DataFrame) -> tuple[np.ndarray, np.ndarray, PlannedSchedule]:
    """At most 60 points of a run after its early part, and its plan."""
    x, loss = run["step"].to_numpy(float), run["loss"].to_numpy(float)
    plan = PlannedSchedule(x, run["lr"].to_numpy(float))
    keep = np.flatnonzero(x > max(0.1 * x[-1], 1.5 * plan.warmup_end if plan.warmup_end < 0.2 * x[-1] else 0))
    parts = np.array_split(keep, min(60, len(keep)))
    return np.array([x[part].mean() for part in parts]), np.array([loss[part].mean() for part in parts]), plan


def fit_groups(table: pd.DataFrame) -> pd.DataFrame:
    """One row per group, clock and kernel: peak rate, tokens, alpha, B (nats), rmse (nats) of the joint fit."""
    rows = []
    for group, runs in table.groupby("group"):
        curves = [late_part(run.sort_values("step")) for _, run in runs.groupby("run")]
        if max(plan.decay(x[-1:], mean_law.INTRINSIC[0])[0] for x, _, plan in curves) < 0.3:
            continue  # no decay in any of them: nothing to learn of B
        first = runs.iloc[0]
        about = {"group": group, "laboratory": first["laboratory"], "source": first["source"], "runs": len(curves)}
        about |= {"peak": max(plan.peak for _, _, plan in curves), "schedules": runs["schedule"].nunique()}
        about["tokens"] = float(runs.groupby("run")["tokens"].max().median())
        rows += [fit.assign(**about) for fit in _joint_fits(curves)]
    return pd.concat(rows, ignore_index=True)


def _joint_fits(curves: list) -> list[pd.DataFrame]:
    """The best exponent for every clock and kernel of the laws that know the schedule."""
    fitted = []
    y = np.concatenate([loss for _, loss, _ in curves])
    for law in (mean_law.LAWS[name] for name in mean_law.SCHEDULE_AWARE):
        reference = {clock: 20000.0 for clock in law.clocks}
        parts = [mean_law._features(law, x, plan, reference, mean_law.SHAPES[law.basis]) for x, _, plan in curves]
        features, labels = np.concatenate([part[0] for part in parts], axis=1), parts[0][1]
        gram = features.transpose(0, 2, 1) @ features + 1e-9 * np.eye(3)
        coef = np.linalg.solve(gram, features.transpose(0, 2, 1) @ y[:, None])[:, :, 0]
        rmse = np.sqrt(((y - (features @ coef[:, :, None])[:, :, 0]) ** 2).mean(1))
        fits = pd.DataFrame(labels, columns=["clock", "kernel", "alpha"])
        fits = fits.assign(B=coef[:, 2], rmse=rmse, law=law.name)
        fits = fits[fits["alpha"].between(*EXPONENTS)]
        fitted.append(fits.loc[fits.groupby(["clock", "kernel"])["rmse"].idxmin()])
    return fitted


def increments(table: pd.DataFrame) -> pd.DataFrame:
    """Falls at constant rate: run, laboratory, peak, steps, ratio, fall (nats)."""
    rows = []
    table = table.sort_values("step")
    tenth = table.groupby("run")["loss"].transform(lambda loss: loss.iloc[:10].iloc[-1])
    longest = table.groupby("run")["step"].transform("max").sort_values(ascending=False).index
    trunks = table.loc[longest].assign(tenth=tenth).drop_duplicates(["group", "tenth"])["run"]  # cooldowns share one
    for run, log in table[table["run"].isin(trunks)].groupby("run"):
        x, y, lr = (log[name].to_numpy(float) for name in ("step", "loss", "lr"))
        top = np.flatnonzero(lr >= 0.98 * lr.max())
        keep = (x >= max(1.5 * x[top[0]] if top[0] else 0.0, 250)) & (x <= x[top[-1]])
        if keep.sum() < 6 or np.any(lr[top[0] : top[-1]] < 0.9 * lr.max()):
            continue
        log_x, y = np.log(x[keep]), y[keep]
        for start in np.linspace(log_x[0], log_x[-1] - np.log(2), AGES):
            for ratio in (2, 4):
                if start + np.log(ratio) <= log_x[-1]:
                    fall = _at(log_x, y, start) - _at(log_x, y, start + np.log(ratio))
                    about = {"run": run, "laboratory": log["laboratory"].iloc[0], "peak": lr.max(), "ratio": ratio}
                    rows.append(about | {"steps": float(np.exp(start)), "fall": fall})
    return pd.DataFrame(rows)


def _at(log_x: np.ndarray, y: np.ndarray, at: float) -> float:
    """The loss near log step `at`, by a line through the points within 12% of it."""
    near = np.abs(log_x - at) < 0.12
    return float(np.polyfit(log_x[near] - at, y[near], 1)[1]) if near.sum() > 2 else float(np.interp(at, log_x, y))


def log_rates(peak: pd.Series) -> np.ndarray:
    known = peak.between(RATES[0] / priors.MARGIN, RATES[1] * priors.MARGIN)
    return np.log(np.where(known, peak, priors.NEUTRAL) / priors.RATE)


def balanced(rows: pd.DataFrame, unit: str) -> np.ndarray:
    """Weights: rows of a unit (run or group) share one, and a laboratory counts as the root of its units."""
    units = rows.groupby("laboratory")[unit].transform("nunique")
    return (1 / rows.groupby(["laboratory", unit])[unit].transform("count") / np.sqrt(units)).to_numpy()


def regress(design: np.ndarray, y: np.ndarray, weight: np.ndarray, laboratory: np.ndarray) -> tuple[np.ndarray, float]:
    """Least squares with slopes held near 0, and the error of laboratories left out one at a time.

    A laboratory differs from the law by about LAB_SD, however many its runs; slopes are taken from N(0, SLOPE_SD), so
    that two laboratories with one rate each do not invent one. The error is the root of the median over laboratories.
    """
    hold = np.diag(np.r_[1e-6, np.full(design.shape[1] - 1, 1 / SLOPE_SD**2)])

    def solve(keep: np.ndarray) -> np.ndarray:
        x, w = design[keep], weight[keep] * len(np.unique(laboratory[keep])) / weight[keep].sum() / LAB_SD**2
        return np.linalg.solve((x.T * w) @ x + hold, (x.T * w) @ y[keep])

    errors = []
    for name in np.unique(laboratory):
        out = laboratory == name
        if (~out).any():
            errors.append(np.average((y[out] - design[out] @ solve(~out)) ** 2, weights=weight[out]))
    return solve(np.ones(len(y), bool)), float(np.clip(np.sqrt(np.median(errors)), *SPREAD))


def drop_law(rows: pd.DataFrame) -> Drop:
    rows = rows[(rows["B"] > 0.01) & (rows["tokens"] > 0)]
    design = np.c_[np.ones(len(rows)), log_rates(rows["peak"]), np.log(rows["tokens"] / priors.TOKENS)]
    weight, laboratory = balanced(rows, "group"), rows["laboratory"].to_numpy()
    solved, spread = regress(design, np.log(rows["B"].to_numpy()), weight, laboratory)
    return Drop(*(round(float(value), 3) for value in solved), sd=round(spread, 3))


def fall_law(rows: pd.DataFrame) -> Fall:
    rows = rows[rows["fall"] > 0.003]
    steps, rate = np.log(rows["steps"].to_numpy() / priors.STEPS), log_rates(rows["peak"])
    share = (1 - rows["ratio"] ** -0.5) / (1 - priors.REACH**-0.5)  # of the fall to REACH times the steps
    design = np.stack([np.ones_like(steps), steps, rate, steps * rate], 1)
    weight, laboratory = balanced(rows, "run"), rows["laboratory"].to_numpy()
    # slopes are held near 0, that of the steps near HALF
    solved, spread = regress(design, np.log(rows["fall"] / share).to_numpy() - HALF * steps, weight, laboratory)
    solved[1] += HALF
    return Fall(*(round(float(value), 3) for value in solved), sd=round(spread, 3))


def prior_from(groups: pd.DataFrame, falls: pd.DataFrame, source: str, runs: int) -> Prior:
    """A Prior from the rows of fit_groups and of increments."""
    drop = {key: drop_law(rows) for key, rows in groups.groupby(["clock", "kernel"])}
    shape = {}
    for clock, rows in groups[groups["law"] == "schedule"].groupby("clock"):
        several = rows[rows["schedules"] > 1]
        logs = np.log((several if several["group"].nunique() >= 4 else rows)["alpha"])
        shape[clock] = (round(float(np.exp(logs.median())), 3), round(max(float(logs.std()), FLOOR_SHAPE), 3))
    return Prior(source, runs, int(groups["group"].nunique()), drop, shape, fall_law(falls), RATES)


def without(result: dict, laboratory: str) -> Prior:
    """The prior of everybody else, from what this script wrote."""
    groups, falls = (pd.DataFrame(result[name]) for name in ("fits", "falls"))
    return prior_from(groups[groups["laboratory"] != laboratory], falls[falls["laboratory"] != laboratory], "", 0)


SOURCE = (
    "public curves of decoder language models, 25M to 2B parameters; AdamW, Muon, SOAP, Shampoo: "
    "github.com/thu-yao-01-luo/MultiPowerLaw (arXiv 2503.12811), github.com/fabian-sp/lr-scheduling (arXiv 2501.18965), "
    "github.com/KellerJordan/modded-nanogpt, github.com/tyler-romero/nanogpt-speedrun, llm.c, "
    "github.com/mcleish7/gemstone-scaling-laws; made by benchmarks/studies/temporal_prior.py"
)


def main() -> None:
    table = table_of(Path(sys.argv[1]), Path(sys.argv[2]))
    groups, falls = fit_groups(table), increments(table)
    prior = prior_from(groups, falls, SOURCE, int(table["run"].nunique()))
    write_json(
        HERE.parent / "results" / "temporal_prior.json",
        as_json(prior) | {"fits": groups.round(4).to_dict("list"), "falls": falls.round(4).to_dict("list")},
    )
    shipped = HERE.parents[1] / "emergence_train" / "analysis" / "temporal" / "prior.json"
    write_json(shipped, as_json(prior))
    print(shipped.read_text())


if __name__ == "__main__":
    main()
