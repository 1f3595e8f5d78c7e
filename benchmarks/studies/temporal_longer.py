"""Does a finished run say where a longer one would end? Public runs of one model that were trained for several lengths.

    python benchmarks/studies/temporal_longer.py --curves curves.parquet

curves.parquet is what temporal_data.py gathers. Every finished run is forecast to the end of every longer run of its model,
data and peak rate, at that run's own learning rates, by the public entry point. Constants of the laws come from the same public
runs (temporal_prior.py), so this shows what the plan does, not how the laws do elsewhere. Writes
benchmarks/results/temporal_longer.json.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from commands import write_result

from emergence_train.analysis.temporal import analyze_temporal
from emergence_train.errors import InputError

TARGET = Path(__file__).parents[1] / "results" / "temporal_longer.json"
LONGER = 1.15  # times as long, at least
LAST = 5  # rows of the longer run whose mean is its end
KINDS = {"cos": "cosine"}


def kind_of(run: pd.DataFrame) -> str:
    """The schedule, and the share of the peak rate at its end."""
    return f"{KINDS.get(run.schedule.iloc[0], run.schedule.iloc[0])} to {run.lr.iloc[-1] / run.lr.max():.1f}"


def forecast(folder: Path, run: pd.DataFrame, longer: pd.DataFrame) -> dict | None:
    """Of the longer run's end, from all rows of `run`."""
    path = folder / "run.csv"
    run[["step", "tokens", "lr", "loss"]].to_csv(path, index=False)
    planned = longer[["tokens", "lr"]].to_numpy(float)
    try:
        (result,) = analyze_temporal(path, planned_lr=planned).runs
    except InputError:
        return None
    final, truth = result.final, float(longer.loss.iloc[-LAST:].mean())
    return {"forecast": final.loss, "low95": final.curve_low95, "high95": final.curve_high95, "truth": truth}


def rows(curves: pd.DataFrame) -> list[dict]:
    pairs = []
    with tempfile.TemporaryDirectory() as folder:
        for group, frame in curves.groupby("group"):
            runs = {name: run.sort_values("step") for name, run in frame.groupby("run")}
            for name, run in runs.items():
                for other, longer in runs.items():
                    if longer.step.iloc[-1] < LONGER * run.step.iloc[-1]:
                        continue
                    if (row := forecast(Path(folder), run, longer)) is not None:
                        pairs.append(
                            {"group": group, "run": name, "longer": other, "from": kind_of(run), "to": kind_of(longer)}
                            | row
                        )
    return pairs


def summary(pairs: list[dict]) -> list[dict]:
    frame = pd.DataFrame(pairs)
    frame["error"] = frame.forecast - frame.truth
    frame["held"] = (frame.low95 <= frame.truth) & (frame.truth <= frame.high95)
    frame["from"], frame["to"] = (frame[side].str.split(" to ").str[0] for side in ("from", "to"))
    parts = [(("all", "all"), frame), *frame.groupby(["from", "to"])]
    return [
        {
            "from": names[0],
            "to": names[1],
            "pairs": len(part),
            "held": float(part.held.mean()),
            "mean_error": float(part.error.mean()),
            "rms_error": float(np.sqrt((part.error**2).mean())),
        }
        for names, part in parts
    ]


def _short(value: str | float, names: list[str]) -> str | float | int:
    """A run by its number, a loss by four decimals."""
    return round(value, 4) if isinstance(value, float) else names.index(value) if value in names else value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--curves", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=TARGET)
    arguments = parser.parse_args()
    pairs = rows(pd.read_parquet(arguments.curves))
    names = sorted({row[side] for row in pairs for side in ("run", "longer")})
    columns = [*pairs[0]]
    table = [[_short(row[column], names) for column in columns] for row in pairs]
    result = {"summary": summary(pairs), "runs": names, "columns": columns, "pairs": table}
    write_result(arguments.out, "python benchmarks/studies/temporal_longer.py --curves curves.parquet", result)
    print(pd.DataFrame(summary(pairs)).round(4).to_string(index=False))


if __name__ == "__main__":
    main()
