"""Fit the prior of emergence_train/analysis/temporal/priors.py across public runs.

    python benchmarks/studies/temporal_prior.py curves.parquet     (the table of temporal_data.py)

Runs of one model, data set and peak rate but different schedules share one set (L0, A, alpha, B): each such group is
fitted jointly for every clock and kernel. Over groups, log B is regressed on the log of the peak rate; exponents are
averaged. Writes benchmarks/results/temporal_prior.json and the numbers into emergence_train/analysis/temporal/prior.json.
"""

import sys
from pathlib import Path

import numpy as np
import pandas as pd

from emergence_train.analysis.planned_schedule import PlannedSchedule
from emergence_train.analysis.temporal import mean_law
from emergence_train.analysis.temporal.priors import Prior, as_json
from emergence_train.files import write_json

HERE = Path(__file__).resolve().parent
FLOOR_SHAPE, FLOOR_DROP = 0.25, 0.30  # lower bounds: the runs are of few laboratories and one optimiser


def fit_groups(table: pd.DataFrame) -> pd.DataFrame:
    """One row per group, clock and kernel: peak rate, alpha, B (nats), rmse (nats) of the joint fit."""
    rows = []
    for group, runs in table.groupby("group"):
        curves = []
        for _, run in runs.groupby("run"):
            run = run.sort_values("step")
            x, lr = run["step"].to_numpy(float), run["lr"].to_numpy()
            plan = PlannedSchedule(x, lr)
            keep = np.flatnonzero(x > max(0.1 * x[-1], 1.5 * plan.warmup_end if plan.warmup_end < 0.2 * x[-1] else 0))
            keep = keep[np.unique(np.linspace(0, len(keep) - 1, 60).astype(int))]
            loss = run["loss"].rolling(101, center=True, min_periods=1).median() if len(run) > 5000 else run["loss"]
            curves.append((x[keep], loss.to_numpy()[keep], plan))
        if max(plan.decay(x[-1:], mean_law.INTRINSIC[0])[0] for x, _, plan in curves) < 0.3:
            continue  # no decay in any of them: B is not identified
        for law in (mean_law.LAWS[name] for name in mean_law.SCHEDULE_AWARE):
            reference = {clock: 20000.0 for clock in law.clocks}
            parts = [mean_law._features(law, x, plan, reference, mean_law.SHAPES[law.basis]) for x, _, plan in curves]
            features, labels = np.concatenate([part[0] for part in parts], axis=1), parts[0][1]
            y = np.concatenate([loss for _, loss, _ in curves])
            gram = features.transpose(0, 2, 1) @ features + 1e-9 * np.eye(3)
            coef = np.linalg.solve(gram, (features.transpose(0, 2, 1) @ y)[:, :, None])[:, :, 0]
            rmse = np.sqrt(((y - np.einsum("jnk,jk->jn", features, coef)) ** 2).mean(1))
            fits = pd.DataFrame(labels, columns=["clock", "kernel", "alpha"])
            fits = fits.assign(B=coef[:, 2], rmse=rmse, law=law.name)
            best = fits.loc[fits.groupby(["clock", "kernel"])["rmse"].idxmin()]
            first = runs.iloc[0]
            rows.append(
                best.assign(
                    group=group,
                    model=first["model"],
                    peak=max(c[2].peak for c in curves),
                    runs=len(curves),
                    schedules=runs["schedule"].nunique(),
                )
            )
    return pd.concat(rows, ignore_index=True)


def prior_from(groups: pd.DataFrame, source: str) -> Prior:
    """A Prior from the rows of fit_groups."""
    good = groups[(groups["B"] > 0.01) & (groups["alpha"] > 0.1) & (groups["alpha"] < 1.9)]
    drop, shape = {}, {}
    for (clock, kernel), rows in good.groupby(["clock", "kernel"]):
        x, y, w = np.log(rows["peak"] / 1e-3), np.log(rows["B"]), np.sqrt(rows["schedules"].to_numpy())
        slope, intercept = (float(value) for value in np.polyfit(x, y, 1, w=w))
        spread = float(1.4826 * np.median(np.abs(y - intercept - slope * x)))
        drop[clock, kernel] = (round(intercept, 3), round(slope, 3), round(max(spread, FLOOR_DROP), 3))
    for clock, rows in good[good["law"] == "schedule"].groupby("clock"):
        several = rows[rows["schedules"] > 1]
        rows = several if several["group"].nunique() >= 4 else rows
        logs = np.log(rows["alpha"])
        shape[clock] = (round(float(np.exp(logs.median())), 3), round(max(float(logs.std()), FLOOR_SHAPE), 3))
    runs = good.drop_duplicates("group")["runs"].sum()
    rates = (float(good["peak"].min()), float(good["peak"].max()))
    return Prior(source, int(runs), int(good["group"].nunique()), drop, shape, rates)


SOURCE = (
    "public curves of decoder language models, 25M to 400M parameters, AdamW: github.com/thu-yao-01-luo/MultiPowerLaw "
    "(arXiv 2503.12811) and github.com/fabian-sp/lr-scheduling (arXiv 2501.18965); made by benchmarks/studies/temporal_prior.py"
)


def main() -> None:
    table = pd.read_parquet(sys.argv[1])
    groups = fit_groups(table[table["source"] != "noisy"])  # kept out: an independent test for temporal_public.py
    prior = prior_from(groups, SOURCE)
    write_json(
        HERE.parent / "results" / "temporal_prior.json",
        {
            "source": prior.source,
            "runs": prior.runs,
            "groups": prior.groups,
            "drop": {" ".join(key): value for key, value in prior.drop.items()},
            "shape": prior.shape,
            "rates": prior.rates,
            "fits": groups.round(4).to_dict("records"),
        },
    )
    shipped = HERE.parents[1] / "emergence_train" / "analysis" / "temporal" / "prior.json"
    write_json(shipped, as_json(prior))
    print(shipped.read_text())


if __name__ == "__main__":
    main()
