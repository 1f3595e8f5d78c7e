"""Do forecasts hold on runs that obey none of our laws, and stay put however their log looks?

    python benchmarks/studies/temporal_logs.py [--runs 20]

Runs are those of temporal_generator.py: linear regression by SGD and "Adam", five schedules. Each is logged in the ways that
people log, every log is read and forecast by the public entry point from 20 and 40%, and the forecast of its end compared with
the truth and with that of the plain log. Where it moves by more than half of the plain half-width, a note must say why.
Writes benchmarks/results/temporal_logs.json.
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from commands import write_result
from temporal_generator import KINDS, Run, draw

from emergence_train.analysis.logs import LogOptions
from emergence_train.analysis.temporal import analyze_temporal
from emergence_train.errors import InputError

FRACTIONS = (0.2, 0.4)
OPTIMIZERS = ("sgd", "adam")
TARGET = Path(__file__).parents[1] / "results" / "temporal_logs.json"
# what a note says where a log leaves out what the forecast rests on
SAID = {"rates as multipliers": "multipliers", "no rates": "learning rate unknown"}


def plain(run: Run, rng: np.random.Generator) -> pd.DataFrame:
    return pd.DataFrame({"step": run.step, "tokens": run.step * run.step_tokens, "lr": run.rate, "loss": run.loss})


def row_at_step_0(run: Run, rng: np.random.Generator) -> pd.DataFrame:
    first = pd.DataFrame({"step": [0], "tokens": [0], "lr": [0.0], "loss": [10.9]})
    return pd.concat([first, plain(run, rng)], ignore_index=True)


def thinned(run: Run, rng: np.random.Generator) -> pd.DataFrame:
    return plain(run, rng).iloc[::-1].iloc[::4].iloc[::-1]


def sparse_validation(run: Run, rng: np.random.Generator) -> pd.DataFrame:
    """One row in twelve, with a tenth of the noise."""
    loss = run.truth + 0.0012 * rng.normal(size=len(run.step))
    return plain(run, rng).assign(loss=loss).iloc[::-1].iloc[::12].iloc[::-1]


def noisy(run: Run, rng: np.random.Generator) -> pd.DataFrame:
    return plain(run, rng).assign(loss=run.truth + 0.04 * rng.normal(size=len(run.step)))


def spikes(run: Run, rng: np.random.Generator) -> pd.DataFrame:
    """Every fiftieth row or so up by a nat, gone after three rows."""
    up = np.convolve(rng.random(len(run.step)) < 0.02, [1.0, 0.4, 0.15])[: len(run.step)]
    return plain(run, rng).assign(loss=run.loss + up)


def restart(run: Run, rng: np.random.Generator) -> pd.DataFrame:
    """A run that goes up from 15% on and is taken back to 10%; its rows stay in the log, at steps of their own."""
    frame, half = plain(run, rng), max(int(run.step[0]) // 2, 1)
    share = frame["step"] / frame["step"].iloc[-1]
    before, lost, after = frame[share <= 0.1], frame[(share > 0.1) & (share <= 0.19)], frame[share > 0.1]
    up = 0.4 * np.maximum(share[lost.index] - 0.15, 0) / 0.04
    lost = lost.assign(step=lost["step"] - half, tokens=lost["tokens"] - half * run.step_tokens, loss=lost["loss"] + up)
    return pd.concat([before, lost, after], ignore_index=True)


def rates_as_multipliers(run: Run, rng: np.random.Generator) -> pd.DataFrame:
    return plain(run, rng).assign(lr=run.rate / run.rate.max())


LOGS: dict[str, Callable[[Run, np.random.Generator], pd.DataFrame]] = {
    "plain": plain,
    "row at step 0": row_at_step_0,
    "thinned to a quarter": thinned,
    "sparse validation": sparse_validation,
    "noisy": noisy,
    "spikes": spikes,
    "restart": restart,
    "newest first": lambda run, rng: plain(run, rng).iloc[::-1],
    "rates as multipliers": rates_as_multipliers,
    "no rates": lambda run, rng: plain(run, rng).drop(columns="lr"),
    "no tokens": lambda run, rng: plain(run, rng).drop(columns="tokens"),
    "tokens for steps": lambda run, rng: plain(run, rng).drop(columns="step"),
}


def forecast_end(frame: pd.DataFrame, run: Run, fraction: float) -> dict:
    """Forecast of the noiseless end (loss, low, high; nats) and the notes; or the one line of why there is none."""
    options = LogOptions(tokens_per_step=None if "step" in frame else run.step_tokens)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "log.csv"
        frame.to_csv(path, index=False)
        try:
            result = analyze_temporal(path, fit_fraction=fraction, options=options).runs[0]
        except InputError as error:
            return {"loss": np.nan, "low": np.nan, "high": np.nan, "notes": str(error)}
    final = result.final
    return {"loss": final.loss, "low": final.curve_low95, "high": final.curve_high95, "notes": " | ".join(result.notes)}


def rows_of(run: Run, optimizer: str, seed: int) -> list[dict]:
    """One row a log and fraction."""
    rows = []
    for fraction in FRACTIONS:
        base: dict = {}
        for name, log in LOGS.items():
            ahead = forecast_end(log(run, np.random.default_rng([seed, 5])), run, fraction)
            base = base or ahead
            half, truth = (base["high"] - base["low"]) / 2, float(run.truth[-1])
            rows.append(
                {"log": name, "fraction": fraction, "kind": run.kind, "optimizer": optimizer, "seed": seed}
                | {"error": ahead["loss"] - truth, "half-width": (ahead["high"] - ahead["low"]) / 2}
                | {
                    "inside": bool(ahead["low"] <= truth <= ahead["high"]),
                    "share": abs(ahead["loss"] - base["loss"]) / half,
                }
                | {"said": SAID.get(name, "no note") in ahead["notes"]}
            )
    return rows


def summary(rows: pd.DataFrame) -> dict:
    moved = ~(rows["share"] < 0.5)  # none at all counts as moved
    return {
        "forecasts": len(rows),
        "ends inside 95": float(rows["inside"].mean()),
        "median bias": float(rows["error"].median()),
        "median abs error": float(rows["error"].abs().median()),
        "median half-width": float(rows["half-width"].median()),
        "moved by less than half": float((~moved).mean()),
        "moved more, and said": float((moved & rows["said"]).mean()),
    }


def study(count: int) -> pd.DataFrame:
    runs = [(seed, KINDS[seed % len(KINDS)], OPTIMIZERS[seed // len(KINDS) % 2]) for seed in range(count)]
    return pd.DataFrame([row for seed, *about in runs for row in rows_of(draw(seed, *about), about[1], seed)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20)
    count = parser.parse_args().runs
    rows = study(count)
    of_plain = rows[rows["log"] == "plain"]
    result = {
        "logs": {
            f"{name} at {fraction}": summary(part)
            for (name, fraction), part in rows.groupby(["log", "fraction"], sort=False)
        },
        "plain by schedule": {kind: summary(part) for kind, part in of_plain.groupby("kind")},
        "plain by optimizer": {name: summary(part) for name, part in of_plain.groupby("optimizer")},
    }
    write_result(TARGET, f"python benchmarks/studies/temporal_logs.py --runs {count}", result)
    for name in ("logs", "plain by schedule", "plain by optimizer"):
        print(pd.DataFrame(result[name]).T.round(3).to_string())


if __name__ == "__main__":
    main()
