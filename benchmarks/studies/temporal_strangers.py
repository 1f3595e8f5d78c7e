"""Do forecasts hold on the logs of people who have nothing to do with each other?

    python benchmarks/studies/temporal_strangers.py FOLDER

FOLDER has a table of step, loss, lr a run, and meta.csv: file, repo, tokens_per_step and more that is kept as it is. Those of
the committed result were gathered from public repositories by their names, before any forecast of them was made; their addresses
and recipes are in benchmarks/results/temporal_strangers.csv, the curves are not kept here. Nothing is fitted: the shipped prior
forecasts each from 20 to 80% and is scored on the rest. People share recipes and data (a dozen train the same GPT-2 on the same
text in the same order), so shares are means over repositories of the mean over their runs. Writes
benchmarks/results/temporal_strangers.json.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import pandas as pd

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE)]

from commands import write_result  # noqa: E402
from temporal_calibration import held  # noqa: E402
from temporal_laboratories import block_means  # noqa: E402

from emergence_train.analysis.planned_schedule import PlannedSchedule  # noqa: E402
from emergence_train.analysis.temporal.forecast import RISE, forecast  # noqa: E402
from emergence_train.analysis.temporal.mean_law import CLASSICAL  # noqa: E402
from emergence_train.errors import InputError  # noqa: E402
from emergence_train.files import write_csv  # noqa: E402

FRACTIONS = (0.2, 0.4, 0.6, 0.8)
LAST = 0.05  # share of the rows that the end is the mean of
LONG = 1e5  # steps
RESULTS = HERE.parent / "results"


def plan_of(table: pd.DataFrame, step_tokens: float) -> PlannedSchedule:
    """The rates of a run, those of rows without a loss too."""
    rates = table.dropna(subset=["lr"])
    return PlannedSchedule(rates["step"].to_numpy(float), rates["lr"].to_numpy(float), step_tokens)


def score(table: pd.DataFrame, step_tokens: float, fraction: float) -> dict | None:
    """Error of the end (observed less forecast, nats) and what intervals hold; None where too little is observed."""
    rows = table[table["step"] > 0].dropna(subset=["loss"])
    x, y = rows["step"].to_numpy(float), rows["loss"].to_numpy(float)
    seen = x <= fraction * x[-1]
    try:
        ahead = forecast(x[seen], y[seen], x[~seen], plan_of(table, step_tokens))
    except InputError:
        return None
    last = max(int(LAST * len(x)), 1)
    error = float(np.mean((y[~seen] - ahead.mean)[-last:]))
    row: dict = {"fraction": fraction, "steps": x[-1], "end": float(ahead.mean[-1]) + error, "error": error}
    row |= held(ahead, y[~seen], row["end"])
    low, high = ahead.interval(95, noisy=False)
    row["half-width 95"] = float(high[-1] - low[-1]) / 2
    truth = block_means(y[~seen])
    classical = min(np.mean((block_means(ahead.fits[n].predict(x[~seen])[0]) - truth) ** 2) for n in CLASSICAL)
    row["quotient"] = float(np.mean((block_means(ahead.mean) - truth) ** 2) / classical)
    return row | {"rises": ahead.selected == RISE}


def summary(rows: pd.DataFrame) -> dict:
    """Means over repositories of the means over their runs; the quotient to the best classical law by hindsight as medians."""
    columns = ["error", "end 80", "end 95", "rows 95", "half-width 95"]
    of_repo = rows.assign(size=rows["error"].abs()).groupby("repo")[[*columns, "size"]].mean()
    names = {"error": "mean error", "size": "mean absolute error"}
    quotient = float(rows.groupby("repo")["quotient"].median().median())
    means = of_repo.mean().rename(names).round(4).to_dict()
    return {"repositories": len(of_repo), "forecasts": len(rows)} | means | {"median quotient": round(quotient, 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    meta = pd.read_csv(folder / "meta.csv")
    rows = []
    for about in meta.to_dict("records"):
        table = pd.read_csv(folder / about["file"]).drop_duplicates("step").sort_values("step")
        step_tokens = float(about["tokens_per_step"]) if np.isfinite(float(about["tokens_per_step"])) else 0.0
        for fraction in FRACTIONS:
            row = score(table, step_tokens, fraction)
            if row is not None:
                rows.append({name: about[name] for name in ("file", "repo", "kind")} | row)
    scored = pd.DataFrame(rows)
    groups = {
        "all": scored["error"].notna(),
        "held-out": scored["kind"] == "val",
        "training": scored["kind"] == "train",
        "overfitted": scored["file"].isin(scored.loc[scored["rises"] & (scored["kind"] == "val"), "file"]),
        "long": scored["steps"] > LONG,
    }
    tables = {
        name: {str(fraction): summary(part) for fraction, part in scored[which].groupby("fraction")}
        for name, which in groups.items()
    }
    write_csv(RESULTS / "temporal_strangers.csv", meta)
    command = "python benchmarks/studies/temporal_strangers.py FOLDER"
    write_result(
        RESULTS / "temporal_strangers.json", command, {"groups": tables, "rows": scored.round(4).to_dict("list")}
    )
    for name, table in tables.items():
        print(name, pd.DataFrame(table).T.to_string(), sep="\n")


if __name__ == "__main__":
    main()
