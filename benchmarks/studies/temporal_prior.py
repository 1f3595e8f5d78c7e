"""What do runs of other laboratories say of the drop with the learning rate, and of the curve still to come?

    python benchmarks/studies/temporal_prior.py CURVES_DIR earlier.parquet    (the table of temporal_data.py)

drop      Runs of one model, data set and peak rate but different schedules share one set (L0, A, alpha, B): each such
          group is fitted jointly for every clock and kernel. Over groups log B is regressed on the logs of the peak rate
          and of the tokens.
ahead     Where the rate is at its peak, the law fitted to what is before s against L(s) - L(4s): its log spread by s,
          and how it bends at one loss. Exponents there are log2 of (L(s) - L(2s)) / (L(2s) - L(4s)).

Every laboratory has the same weight in these but for the root of its runs. Peak rates outside RATES are no AdamW rates and
count as priors.NEUTRAL. The same is done without each laboratory and each source in turn: `without`.
Writes benchmarks/results/temporal_prior.json and the numbers into emergence_train/analysis/temporal/prior.json.
"""

import itertools
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from commands import write_result

from emergence_train.analysis.planned_schedule import PlannedSchedule
from emergence_train.analysis.temporal import mean_law, priors
from emergence_train.analysis.temporal.priors import Drop, FallAhead, Prior, as_json
from emergence_train.files import write_json

HERE = Path(__file__).resolve().parent
RATES = (1e-4, 4.1e-3)
# one laboratory, or several that train one recipe on one data set
LABORATORY = {"modded1": "124M speedruns", "romero": "124M speedruns", "llmc": "124M speedruns"}
EXPONENTS = (0.3, 0.8)  # alpha and B of one run trade against each other: B is compared at exponents that runs share
EXPONENT = (0.5, 0.1)  # not fitted: a half is that of stochastic gradient descent, the spread that of laboratories
LAB_SD, SLOPE_SD = 0.25, 0.3  # see regress
SPREAD = (0.2, 0.35)  # limits of a drop's spread: it comes from three to five laboratories
STARTS = np.geomspace(250, 20000, 20)  # steps up to which a run at a constant rate is observed
TENTS = tuple(itertools.product((3.8, 3.9, 4.0, 4.1, 4.2, 4.3), (0.2, 0.3, 0.4, 0.5)))  # loss and width, nats a token
LEAST = 0.05  # log spread of the fall ahead of a run however old
SPREADS = np.geomspace(0.01, 0.5, 200)  # of the fall ahead at priors.STEPS, from which the likeliest is taken
LAB_BEND = 0.1  # a laboratory's log of the fall ahead differs from the law by about so much, however many its runs


def table_of(folder: Path, earlier: Path) -> pd.DataFrame:
    """All logs with source, group and kind; `twin` marks the training log of a run that has a validation log too."""
    frames = [pd.read_parquet(earlier).assign(kind="val", optimizer="AdamW", twin=False)]
    meta = pd.read_csv(folder.parent / "curves_meta.csv").set_index("file")
    for file in sorted(folder.glob("*.csv")):
        about = meta.loc[file.name]
        twin = about["kind"] == "train" and file.name.replace("__train", "__val") in meta.index
        about = about[["source", "kind", "optimizer", "schedule"]]
        frames.append(pd.read_csv(file).assign(**about, group=file.stem, twin=twin))
    table = pd.concat(frames, ignore_index=True)
    table["log"] = table["run"] + " " + table["kind"]
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


@dataclass(frozen=True)
class Window:
    """A run at a constant rate observed up to step `start`, and what it lost later, nats."""

    laboratory: str
    source: str
    run: str
    start: float
    loss: float
    next: float  # L(s) - L(2s)
    fall: float  # L(s) - L(4s)
    curve: mean_law.ObservedPart
    plan: PlannedSchedule

    def fitted(self, prior: Prior) -> tuple[float, float]:
        """The fall to priors.REACH times the steps of the law fitted to what is behind, and its standard deviation."""
        fit = mean_law.fit(mean_law.LAWS["schedule"], self.curve, self.plan, prior)
        mean, sd = fit.predict(np.array([self.start, priors.REACH * self.start]))
        return max(float(mean[0] - mean[1]), 1e-3), float(sd[1])


def windows_of(table: pd.DataFrame) -> list[Window]:
    """Windows of all runs that stay at their peak rate for long enough; of runs that share a trunk, of one."""
    windows = []
    table = table.sort_values("step")
    tenth = table.groupby("log")["loss"].transform(lambda loss: loss.iloc[:10].iloc[-1])
    longest = table.groupby("log")["step"].transform("max").sort_values(ascending=False).index
    trunks = table.loc[longest].assign(tenth=tenth).drop_duplicates(["group", "tenth"])["log"]  # cooldowns share one
    for _, log in table[table["log"].isin(trunks)].groupby("log"):
        x, y, lr = (log[name].to_numpy(float) for name in ("step", "loss", "lr"))
        top = np.flatnonzero(lr >= 0.98 * lr.max())
        keep = (x >= max(x[top[0]] if top[0] else 0.0, 60)) & (x <= x[top[-1]])
        if keep.sum() < 8 or np.any(lr[top[0] : top[-1]] < 0.9 * lr.max()):
            continue
        log_x, plan = np.log(x[keep]), PlannedSchedule(x, lr)
        for start in STARTS[(np.exp(log_x[0]) * 1.5 <= STARTS) & (np.exp(log_x[-1]) / priors.REACH >= STARTS)]:
            curve = mean_law.observed_part(x[x <= start], y[x <= start], plan)
            here, twice, end = (_at(log_x, y[keep], np.log(r * start)) for r in (1, 2, priors.REACH))
            if len(curve.x) >= mean_law.MINIMUM and min(here - twice, twice - end) > 0.003:
                about = log[["laboratory", "source", "run"]].iloc[0]
                windows.append(Window(*about, start, here, here - twice, here - end, curve, plan))
    return windows


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


def exponents(windows: list[Window]) -> dict[str, float]:
    """The exponent of the loss in steps by laboratory: medians over their windows."""
    frame = pd.DataFrame(
        [(w.laboratory, np.log2(w.next / (w.fall - w.next))) for w in windows], columns=["name", "value"]
    )
    return frame.groupby("name")["value"].median().round(3).to_dict()


def continued(windows: list[Window]) -> pd.DataFrame:
    """One row a window: the log of its fall over that of its own law, and that law's own relative error.

    At a constant rate no number that was fitted to other runs takes part in that.
    """
    plain = replace(priors.SHIPPED, exponent=EXPONENT, ahead=FallAhead(0.0, 0.0, 4.0, 1.0, 0.0, 0.0, np.inf))
    rows = []
    for w in windows:
        fall, sd = w.fitted(plain)
        about = {"run": w.run, "source": w.source, "laboratory": w.laboratory, "steps": w.start, "loss": w.loss}
        rows.append(about | {"fall": w.fall, "fitted": fall, "error": float(np.log(w.fall / fall)), "own": sd / fall})
    return pd.DataFrame(rows)


def spread_of(rows: pd.DataFrame, left: np.ndarray) -> float:
    """The likeliest FallAhead.sd of normal errors `left` (n,) after the bend; laboratories count alike."""
    weight = pd.Series(balanced(rows, "run"), rows.index)
    weight = weight / weight.groupby(rows["laboratory"]).transform("sum")
    known = np.minimum(rows["own"], 1.0) ** 2 + LEAST**2  # the fit's own, and what is always there
    growth = (priors.STEPS / rows["steps"]) ** (2 * priors.AGE)
    variance = known.to_numpy() + SPREADS[:, None] ** 2 * growth.to_numpy()
    return float(SPREADS[np.argmin((np.log(variance) + left**2 / variance) @ weight.to_numpy())])


def ahead_law(rows: pd.DataFrame) -> FallAhead:
    """Bend at one loss, by least squares over TENTS with its height held near 0, and the spread that is left."""
    error, loss = rows["error"].to_numpy(), rows["loss"].to_numpy()
    weight = balanced(rows, "run")
    weight = weight / weight.sum() * rows["laboratory"].nunique() / LAB_BEND**2
    fits = []
    for centre, width in TENTS:
        tent = np.maximum(1 - np.abs(loss - centre) / width, 0)
        precision = (weight * tent**2).sum() + 1 / SLOPE_SD**2
        bend = min((weight * tent * error).sum() / precision, 0.0)  # a phase that ends slows the fall
        cost = (weight * (error - bend * tent) ** 2).sum() + (bend / SLOPE_SD) ** 2
        fits.append((cost, centre, width, bend, precision**-0.5, tent))
    _, centre, width, bend, bend_sd, tent = min(fits, key=lambda fit: fit[:3])
    sd = spread_of(rows, error - bend * tent)
    highest = round(float(loss.max()), 2)
    return FallAhead(round(float(bend), 3), round(float(bend_sd), 3), centre, width, LEAST, round(sd, 3), highest)


def prior_from(groups: pd.DataFrame, falls: pd.DataFrame, source: str, runs: int) -> Prior:
    """A Prior from the rows of fit_groups and of continued."""
    drop = {key: drop_law(rows) for key, rows in groups.groupby(["clock", "kernel"])}
    return Prior(source, runs, int(groups["group"].nunique()), drop, EXPONENT, ahead_law(falls), RATES)


def priors_without(groups: pd.DataFrame, falls: pd.DataFrame) -> dict[str, Prior]:
    """The prior of everybody else, for every laboratory and for every source."""
    names = {(column, name) for column in ("source", "laboratory") for name in falls[column].unique()}
    names |= {("source", name) for name in groups["source"].unique()}
    return {
        name: prior_from(groups[groups[column] != name], falls[falls[column] != name], f"without {name}", 0)
        for column, name in sorted(names)
    }


SOURCE = (
    "public curves of decoder language models, 25M to 2B parameters; AdamW, Muon, SOAP, Shampoo: "
    "github.com/thu-yao-01-luo/MultiPowerLaw (arXiv 2503.12811), github.com/fabian-sp/lr-scheduling (arXiv 2501.18965), "
    "github.com/KellerJordan/modded-nanogpt, github.com/tyler-romero/nanogpt-speedrun, llm.c, "
    "github.com/mcleish7/gemstone-scaling-laws; made by benchmarks/studies/temporal_prior.py"
)


def main() -> None:
    table = table_of(Path(sys.argv[1]), Path(sys.argv[2]))
    windows = windows_of(table)
    groups, falls = fit_groups(table[~table["twin"]]), continued(windows)
    prior = prior_from(groups, falls, SOURCE, int(table["run"].nunique()))
    held_out = {name: as_json(other) for name, other in priors_without(groups, falls).items()}
    write_result(
        HERE.parent / "results" / "temporal_prior.json",
        "python benchmarks/studies/temporal_prior.py CURVES_DIR earlier.parquet",
        as_json(prior)
        | {"exponents": exponents(windows), "without": held_out}
        | {"fits": groups.round(4).to_dict("list"), "falls": falls.round(4).to_dict("list")},
    )
    shipped = HERE.parents[1] / "emergence_train" / "analysis" / "temporal" / "prior.json"
    write_json(shipped, as_json(prior))
    print(shipped.read_text())


if __name__ == "__main__":
    main()
