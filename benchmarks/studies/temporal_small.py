"""How do runs of a few thousand tokens a step go on, whose forecasts were all too high?

    python benchmarks/studies/temporal_small.py                      # fit to the story's runs, score the others
    python benchmarks/studies/temporal_small.py --runs DIR NAME ...  # first put these runs into the table of the others

Fitted: the log of what the story's steady runs (benchmarks/results/story/losses.csv) lose to REACH times their steps, over what
the law fitted to what is behind says; its mean and spread over runs, every run counting once. They go to
emergence_train/analysis/temporal/small_runs.json. The exponent, its spread and what other recipes may differ by are set by hand.

Scored: forecasts from 20, 40 and 60%, with what was shipped before and, of runs that took no part in the fit, with this
(benchmarks/results/temporal_small.csv; the quickstart's sizes with other seeds, and others by their `source`).
"""

import argparse
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pandas as pd

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT), str(HERE)]

from commands import write_result  # noqa: E402

from emergence_train.analysis.planned_schedule import PlannedSchedule  # noqa: E402
from emergence_train.analysis.runs import load  # noqa: E402
from emergence_train.analysis.temporal import mean_law, priors  # noqa: E402
from emergence_train.analysis.temporal.forecast import forecast  # noqa: E402
from emergence_train.errors import InputError  # noqa: E402
from emergence_train.files import write_json  # noqa: E402

RESULTS = HERE.parent / "results"
CURVES = RESULTS / "temporal_small.csv"
SHIPPED = ROOT / "emergence_train" / "analysis" / "temporal" / "small_runs.json"
EXPONENT, EXPONENT_SD = 0.25, 0.3  # by hand: nearly a logarithm, and to a half within two standard deviations
OTHERS = 0.2  # by hand, for texts and recipes that the story has not: of the same runs iid and ood text differ by 0.25
STARTS = (128, 160, 200, 256, 320, 400)  # steps up to which a run is observed
LEAST_REACH = 2.0  # of a window: it is followed to so many times its steps at least
FRACTIONS = (0.2, 0.4, 0.6)
BEFORE = priors.Small(exponent=0.5, exponent_sd=0.4, change=0.0, change_sd=0.5, tokens=2048.0, steps=400.0)
SPLITS = ("iid", "ood")


def story() -> pd.DataFrame:
    """The steady runs of the story: run, size, split, step, loss; one batch and warm-up."""
    losses = pd.read_csv(RESULTS / "story" / "losses.csv", keep_default_na=False, na_values=[""])
    return losses[losses["schedule"] == "stable"].sort_values("step")


def with_rates(losses: pd.DataFrame) -> pd.DataFrame:
    """The story's runs in the form of curves_of."""
    rate = 1e-3 * np.minimum(losses["step"] / 50, 1)
    return losses.assign(source="story", lr=rate)[["source", "run", "split", "step", "tokens", "loss", "lr"]]


def steady(x: np.ndarray, step_tokens: float) -> PlannedSchedule:
    """A constant rate after the story's warm-up of 50 steps. What the rate is does not matter where it does not fall."""
    return PlannedSchedule(np.array([0.0, 50.0, x[-1]]), np.array([0.0, 1e-3, 1e-3]), step_tokens)


def windows(losses: pd.DataFrame) -> pd.DataFrame:
    """A row a run, split and start: the log of the fall ahead over that of the run's own law."""
    neutral = replace(priors.SHIPPED, small=replace(BEFORE, exponent=EXPONENT, exponent_sd=EXPONENT_SD))
    rows = []
    for (run, split), of in losses.groupby(["run", "split"]):
        x, y = of["step"].to_numpy(float), of["loss"].to_numpy(float)
        plan = steady(x, float((of["tokens"] / of["step"]).iloc[0]))
        for start in STARTS:
            end = min(priors.REACH * start, x[-1])
            curve = mean_law.observed_part(x[x <= start], y[x <= start], plan)
            if end < LEAST_REACH * start or len(curve.x) < mean_law.MINIMUM:
                continue
            fit = mean_law.fit(mean_law.LAWS["schedule"], curve, plan, neutral)
            here, there = fit.predict(np.array([start, end]))[0]
            fall = here - np.interp(np.log(end), np.log(x), y)
            rows.append({"run": run, "split": split, "start": start, "change": float(np.log(fall / (here - there)))})
    return pd.DataFrame(rows)


def fitted(rows: pd.DataFrame) -> priors.Small:
    """Mean over runs, every run once, and the spread of windows about it beyond that of their age, which is added to it."""
    each = rows["change"].groupby(rows["run"])
    mean = float(each.mean().mean())
    age = np.array([priors.SHIPPED.ahead.log_change(start, np.inf)[1] for start in rows["start"]])
    beyond = ((rows["change"] - mean) ** 2 - age**2).groupby(rows["run"]).mean().mean()
    spread = float(np.sqrt(max(beyond, 0) + OTHERS**2))
    return priors.Small(EXPONENT, EXPONENT_SD, round(mean, 2), round(spread, 2), 2048.0, STARTS[-1])


def curves_of(folder: Path, source: str) -> pd.DataFrame:
    """Losses of the runs in `folder` on held-out text, with the planned rate at each step."""
    parts = []
    for run in sorted(path.parent for path in folder.glob("*/config.yaml")):
        for series in load(run):
            if series.split in SPLITS:
                rate = series.plan.peak * np.interp(series.step, series.plan.x, series.plan.e)
                columns = {"step": series.step.astype(int), "tokens": series.tokens.astype(int), "loss": series.loss}
                about = {"source": source, "run": run.name, "split": series.split}
                parts.append(pd.DataFrame(about | columns | {"lr": rate}))
    return pd.concat(parts)


def scored(curves: pd.DataFrame, small: priors.Small) -> list[dict]:
    """Of each source, split and fraction: error of the end, its intervals, and the quotient to the best classical law."""
    prior = replace(priors.SHIPPED, small=small)
    rows = []
    for (source, _, split), of in curves.groupby(["source", "run", "split"]):
        x, y, rate = (of[name].to_numpy(float) for name in ("step", "loss", "lr"))
        plan = PlannedSchedule(x, rate, float((of["tokens"] / of["step"]).iloc[0]))
        for fraction in FRACTIONS:
            past = x <= fraction * x[-1]
            try:
                ahead = forecast(x[past], y[past], x[~past], plan, prior)
            except InputError:  # too few checkpoints after the warm-up
                continue
            left = y[~past] - ahead.mean
            classical = min(
                np.mean((ahead.fits[law].predict(x[~past])[0] - y[~past]) ** 2) for law in mean_law.CLASSICAL
            )
            row = {"source": source, "split": split, "fraction": fraction, "error": left[-1]}
            row |= {"quotient": np.mean(left**2) / classical}
            for level in mean_law.Z:
                low, high = (bound[-1] for bound in ahead.interval(level))
                row |= {f"within{level}": low <= y[-1] <= high, f"half{level}": (high - low) / 2}
            rows.append(row)
    return [
        dict(zip(("source", "split", "fraction"), key))
        | {"runs": len(of), "mean_error": round(of["error"].mean(), 3), "below": int((of["error"] < 0).sum())}
        | {"median_quotient": round(of["quotient"].median(), 2), "median_half95": round(of["half95"].median(), 3)}
        | {f"within{level}": round(of[f"within{level}"].mean(), 3) for level in mean_law.Z}
        for key, of in pd.DataFrame(rows).groupby(["source", "split", "fraction"])
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", nargs=2, action="append", default=[], metavar=("DIR", "NAME"))
    arguments = parser.parse_args()
    curves = [pd.read_csv(CURVES)] if CURVES.is_file() else []
    curves += [curves_of(Path(folder), name) for folder, name in arguments.runs]
    table = pd.concat(curves).drop_duplicates(["source", "run", "split", "step"], keep="last")
    table = table.sort_values(["source", "run", "split", "step"])
    table.round({"loss": 5, "lr": 8}).to_csv(CURVES, index=False)
    rows = windows(story())
    small = fitted(rows)
    write_json(SHIPPED, {"source": "benchmarks/studies/temporal_small.py", "small": asdict(small)})
    by_start = rows.groupby(["split", "start"])["change"].agg(["mean", "std"]).round(3).reset_index()
    write_result(
        RESULTS / "temporal_small.json",
        "python benchmarks/studies/temporal_small.py",
        {"runs": int(rows["run"].nunique()), "small": asdict(small), "windows": by_start.to_dict("records")}
        | {"before": scored(pd.concat([with_rates(story()), table]), BEFORE), "after": scored(table, small)},
    )


if __name__ == "__main__":
    main()
