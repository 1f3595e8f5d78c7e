"""The forecasts on public loss curves, with a prior fitted without the model under test.

    python benchmarks/studies/temporal_public.py curves.parquet     (the table of temporal_data.py)

For every run, fit at 10, 20 and 40% and score on the rest: MSE and R^2 of the selected forecast and of every other
law, coverage of the intervals. The prior is refitted for every model without that model's runs, so nothing of
the tested run or of its siblings is in it. Noisy step logs are scored after a running median of 201 rows, all laws
alike. Writes benchmarks/results/temporal_public.json.
"""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import norm

sys.path.insert(0, str(Path(__file__).resolve().parent))

from temporal_coverage import provenance  # noqa: E402
from temporal_prior import fit_groups, prior_from  # noqa: E402

from emergence_train.analysis.planned_schedule import PlannedSchedule  # noqa: E402
from emergence_train.analysis.temporal.forecast import forecast  # noqa: E402
from emergence_train.analysis.temporal.mean_law import CLASSICAL, Z  # noqa: E402
from emergence_train.errors import InputError  # noqa: E402
from emergence_train.files import write_json  # noqa: E402

FRACTIONS = (0.1, 0.2, 0.4)


def score(run: pd.DataFrame, fraction: float, prior) -> dict | None:
    """Errors of all laws on the held-out part of one run; None where too little is observed for any fit."""
    x, y, lr = (run[name].to_numpy(float) for name in ("step", "loss", "lr"))
    plan = PlannedSchedule(x, lr)
    seen = x <= fraction * x[-1]
    future, actual = x[~seen], y[~seen]
    smooth = actual
    if len(x) > 5000:
        smooth = pd.Series(actual).rolling(201, center=True, min_periods=101).median().to_numpy()
        keep = np.flatnonzero(np.isfinite(smooth))[::50]
        future, actual, smooth = future[keep], actual[keep], smooth[keep]
    try:
        ahead = forecast(x[seen], y[seen], future, plan, prior)
    except InputError:
        return None
    spread = np.mean((smooth - smooth.mean()) ** 2)
    errors = {"selected": np.mean((ahead.mean - smooth) ** 2)}
    errors |= {name: np.mean((law.predict(future)[0] - smooth) ** 2) for name, law in ahead.fits.items()}
    row = {f"mse {name}": float(error) for name, error in errors.items()}
    row |= {f"r2 {name}": float(1 - error / spread) for name, error in errors.items()}
    for level in Z:
        low, high = ahead.interval(level)
        row[f"rows{level}"] = float(np.mean((low <= actual) & (actual <= high)))
        row[f"end{level}"] = float(low[-1] <= actual[-1] <= high[-1])
    row["end error"] = float(ahead.mean[-1] - smooth[-1])
    row |= {"end mean": float(ahead.mean[-1]), "end sd": float(ahead.sd[-1]), "end actual": float(smooth[-1])}
    return row


def summary(rows: pd.DataFrame) -> dict:
    """Medians, wins and coverage over runs."""
    classical = rows[[f"mse {name}" for name in CLASSICAL]].min(axis=1)
    ratio = rows["mse selected"] / classical
    laws = [column[4:] for column in rows if column.startswith("mse ")]
    return {
        "forecasts": len(rows),
        "median MSE over best classical": float(ratio.median()),
        "share better than best classical": float((ratio < 1).mean()),
        "share at most a fifth of it": float((ratio <= 0.2).mean()),
        "median RMSE of best classical": float(np.sqrt(classical).median()),
        "median RMSE": {law: float(np.sqrt(rows[f"mse {law}"]).median()) for law in laws},
        "median R2": {law: float(rows[f"r2 {law}"].median()) for law in laws},
        "coverage of rows": {str(level): float(rows[f"rows{level}"].mean()) for level in Z},
        "coverage at the end": {str(level): float(rows[f"end{level}"].mean()) for level in Z},
        "median end error": float(rows["end error"].median()),
    }


def ranking_calibration(rows: pd.DataFrame) -> list[dict]:
    """Pairs of runs on one data set at one fraction: how often the stated order was right, by stated probability."""
    stated, right = [], []
    for _, part in rows.groupby(["data", "fraction"]):
        mean, sd, actual = (part[name].to_numpy() for name in ("end mean", "end sd", "end actual"))
        i, j = np.triu_indices(len(part), 1)
        z = (mean[j] - mean[i]) / np.hypot(sd[i], sd[j])
        differ = np.abs(actual[j] - actual[i]) > 1e-3
        stated += list(norm.cdf(np.abs(z))[differ])
        right += list((np.sign(z) == np.sign(actual[j] - actual[i]))[differ])
    stated, right = np.array(stated), np.array(right)
    table = []
    for low, high in ((0.5, 0.6), (0.6, 0.7), (0.7, 0.8), (0.8, 0.9), (0.9, 0.99), (0.99, 1.01)):
        inside = (stated >= low) & (stated < high)
        table.append(
            {
                "stated": f"{low} to {min(high, 1)}",
                "pairs": int(inside.sum()),
                "mean stated": float(stated[inside].mean()),
                "share right": float(right[inside].mean()),
            }
        )
    return table


def main() -> None:
    table = pd.read_parquet(sys.argv[1])
    groups = fit_groups(table[table["source"] != "noisy"])
    priors = {model: prior_from(groups[groups["model"] != model], "") for model in table["model"].unique()}
    rows, short = [], 0
    for run, part in table.groupby("run"):
        part = part.sort_values("step")
        first = part.iloc[0]
        for fraction in FRACTIONS:
            row = score(part, fraction, priors[first["model"]])
            short += row is None
            if row is not None:
                kind = "cosine" if "cos" in first["schedule"] else first["schedule"]
                kind = "constant" if kind == "constant" else "cosine" if kind == "cosine" else "wsd and other drops"
                rows.append(
                    {
                        "run": run,
                        "source": first["source"],
                        "schedule": kind,
                        "fraction": fraction,
                        "data": first["group"].split("-")[0],
                        **row,
                    }
                )
    rows = pd.DataFrame(rows)
    result = {
        **provenance("python benchmarks/studies/temporal_public.py curves.parquet"),
        "runs": int(rows["run"].nunique()),
        "too short to fit": short,
        "all": summary(rows),
        "ranking of pairs on one data set": ranking_calibration(rows),
        **{
            by: {str(key): summary(part) for key, part in rows.groupby(by)} for by in ("fraction", "schedule", "source")
        },
    }
    write_json(Path(__file__).parents[1] / "results" / "temporal_public.json", result)
    rows.to_csv(Path(sys.argv[1]).with_suffix(".scores.csv"), index=False)
    print(pd.DataFrame(result["ranking of pairs on one data set"]).round(3).to_string())
    for name, part in (
        ("all", result["all"]),
        *((k, v) for by in ("fraction", "schedule", "source") for k, v in result[by].items()),
    ):
        print(name, {key: part[key] if not isinstance(part[key], float) else round(part[key], 3) for key in part})


if __name__ == "__main__":
    main()
