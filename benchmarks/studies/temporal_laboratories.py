"""Do forecasts hold on laboratories, optimizers and schedules that the prior has not seen?

    python benchmarks/studies/temporal_laboratories.py CURVES_DIR [--earlier curves.parquet]

CURVES_DIR holds one table of `curves` a run, SOURCE__RUN__KIND.csv, with curves_meta.csv beside the folder (source, lab,
run, kind, optimizer, schedule); `--earlier` is the table of temporal_data.py. The curves are not kept in this repository.

Every run is observed up to 10, 20 and 40% and scored on the rest; runs with a cooldown also up to its first step.
The prior is that of temporal_prior.py without the laboratory: nothing that is scored was fitted. The speedruns are scored
a second time with only their own source left out. Then logs are disturbed (without their row at step 0, thinned,
validation instead of training) and the forecasts compared. What the law would leave if it were fitted to the whole run
is the least error that is to be had (`oracle`). Writes benchmarks/results/temporal_laboratories.json.
`--every N` takes one in N of the earlier runs.
"""

import argparse
import io
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from commands import write_result
from temporal_calibration import calibrated_ratio, conformal, held, oracle
from temporal_prior import LABORATORY

from emergence_train.analysis.planned_schedule import PlannedSchedule
from emergence_train.analysis.temporal import priors
from emergence_train.analysis.temporal.forecast import Forecast, forecast
from emergence_train.analysis.temporal.mean_law import CLASSICAL
from emergence_train.errors import InputError

FRACTIONS = (0.1, 0.2, 0.4)
BLOCKS = 100  # the held-out part is compared in means over at most so many blocks of rows
RESULTS = Path(__file__).parents[1] / "results"
TARGET = RESULTS / "temporal_laboratories.json"
EARLIER = ("multi-power", "scheduling")
YOUNG = 2000  # observed steps


@dataclass(frozen=True)
class Log:
    """One run's log, with what the tables are sorted by. Arrays (n,): steps, learning rate, nats."""

    source: str
    run: str
    kind: str
    params: float
    optimizer: str
    schedule: str
    step: np.ndarray
    tokens: np.ndarray
    lr: np.ndarray
    loss: np.ndarray

    @property
    def plan(self) -> PlannedSchedule:
        return PlannedSchedule(self.step, self.lr, self.tokens[-1] / self.step[-1])

    def thinned(self, every: int) -> "Log":
        """Every so many rows of it, the last one kept."""
        keep = np.zeros(len(self.step), bool)
        keep[::-1][::every] = True
        return self.rows(keep)

    def rows(self, keep: np.ndarray) -> "Log":
        return replace(self, **{name: getattr(self, name)[keep] for name in ("step", "tokens", "lr", "loss")})


def read_folder(folder: Path) -> list[Log]:
    """All tables of a folder."""
    meta = pd.read_csv(folder.parent / "curves_meta.csv").set_index("file")
    logs = []
    for file in sorted(folder.glob("*.csv")):
        about, table = meta.loc[file.name], pd.read_csv(file)
        columns = [table[name].to_numpy(float) for name in ("step", "tokens", "lr", "loss")]
        about = (
            [str(about[name]) for name in ("source", "run", "kind")],
            str(about["optimizer"]),
            str(about["schedule"]),
        )
        logs.append(Log(*about[0], float(table["params"].iloc[0]), about[1], about[2], *columns))
    return logs


def read_earlier(file: Path) -> list[Log]:
    """All runs of temporal_data.py's table; their optimizer is AdamW."""
    logs = []
    for run, table in pd.read_parquet(file).groupby("run"):
        table, first = table.sort_values("step"), table.iloc[0]
        schedule = "cosine" if "cos" in first["schedule"] else str(first["schedule"])
        columns = [table[name].to_numpy(float) for name in ("step", "tokens", "lr", "loss")]
        logs.append(Log(str(first["source"]), str(run), "val", float(first["params"]), "AdamW", schedule, *columns))
    return logs


def ahead_of(log: Log, until: float, prior: priors.Prior | None) -> tuple[Forecast, np.ndarray, np.ndarray] | None:
    """The forecast of everything after step `until`, and those steps and losses; None where it cannot be made."""
    kept = log.rows(log.step > 0)
    seen = kept.step <= until
    if seen.sum() < 2 or seen.all():
        return None
    future, actual = kept.step[~seen], kept.loss[~seen]
    try:
        return forecast(kept.step[seen], kept.loss[seen], future, log.plan, prior), future, actual
    except InputError:
        return None


def block_means(values: np.ndarray) -> np.ndarray:
    return np.array([part.mean() for part in np.array_split(values, min(BLOCKS, len(values)))])


def score(log: Log, until: float, prior: priors.Prior | None) -> dict | None:
    """Errors over the held-out part and at its end."""
    record = ahead_of(log, until, prior)
    if record is None:
        return None
    ahead, future, actual = record
    truth = block_means(actual)
    mse = float(np.mean((block_means(ahead.mean) - truth) ** 2))
    classical = [float(np.mean((block_means(ahead.fits[n].predict(future)[0]) - truth) ** 2)) for n in CLASSICAL]
    last = len(np.array_split(actual, min(BLOCKS, len(actual)))[-1])
    end = float(actual[-last:].mean())
    low, high = ahead.interval(95, noisy=False)
    best = block_means(oracle(log.step, log.loss, 0.8 * until, future, log.plan))
    return {
        "source": log.source,
        "laboratory": LABORATORY.get(log.source, log.source),
        "run": log.run,
        "kind": log.kind,
        "optimizer": log.optimizer,
        "schedule": log.schedule,
        "age": "young" if until < YOUNG else "older",
        "steps": float(log.step[-1]),
        "params": log.params,
        "tokens": float(log.tokens[-1]),
        "end": end,
        "mse": mse,
        "oracle": float(np.mean((best - truth) ** 2)),
        "classical": min(classical),
        "quotient": mse / min(classical),
        "quotient to power": mse / classical[0],
        "end error": float(ahead.mean[-last:].mean() - end),
        "half-width": float(high[-1] - low[-1]) / 2,
    } | held(ahead, actual, end)


def summary(rows: pd.DataFrame) -> dict:
    """What the tables state of a group of forecasts."""
    error = rows["end error"]
    return {
        "forecasts": len(rows),
        "median rmse": float(np.sqrt(rows["mse"].median())),
        "median quotient": float(rows["quotient"].median()),
        "better": float((rows["quotient"] < 1).mean()),
        "better than power": float((rows["quotient to power"] < 1).mean()),
        "median end bias": float(error.median()),
        "median abs end error": float(error.abs().median()),
        "too low": float((error < 0).mean()),
        **{
            f"{what}s inside {n}" if what == "end" else f"{what} inside {n}": float(rows[f"{what} {n}"].mean())
            for what in ("rows", "end")
            for n in (50, 80, 95)
        },
        "median half-width": float(rows["half-width"].median()),
        "half-width over error": float(rows["half-width"].median() / error.abs().median()),
        "the same if calibrated": calibrated_ratio(rows["half-width"]),
        "median of half-width over error": float(1 / (error.abs() / rows["half-width"]).median()),
        "oracle rmse": float(np.sqrt(rows["oracle"].median())),
        "oracle quotient": float((rows["oracle"] / rows["classical"]).median()),
    }


def cooldown_start(log: Log) -> float | None:
    """The last step at the peak of a run that stays there for a third of its length or more; None otherwise."""
    high = np.flatnonzero(log.lr >= 0.999 * log.lr.max())
    constant = log.step[high[-1]] - log.step[high[0]] >= log.step[-1] / 3
    return float(log.step[high[-1]]) if constant and log.lr[-1] < 0.5 * log.lr.max() else None


def disturbed(log: Log, partner: Log | None) -> dict[str, Log]:
    """The same run as another log would have it."""
    others = {f"thinned {every}": log.thinned(every) for every in (2, 4)}
    if log.step[0] == 0:
        others["without step 0"] = log.rows(log.step > 0)
    if partner is not None:
        others["validation"] = partner
    return others


def moved(logs: list[Log], prior_of) -> pd.DataFrame:
    """By how much of its half-width a forecast of the end moves when the log is disturbed."""
    by_run = {(log.source, log.run, log.kind): log for log in logs}
    rows = []
    for log in logs:
        partner = by_run.get((log.source, log.run, "val")) if log.kind == "train" else None
        for fraction in FRACTIONS:
            until = fraction * log.step[-1]
            plain = ahead_of(log, until, prior_of(log))
            if plain is None:
                continue
            half = np.diff(plain[0].interval(95, noisy=False), axis=0)[0, -1] / 2
            for name, other in disturbed(log, partner).items():
                record = ahead_of(other, until, prior_of(log))
                if record is not None:
                    shift = float(np.interp(plain[1][-1], record[1], record[0].mean) - plain[0].mean[-1])
                    own = np.diff(record[0].interval(95, noisy=False), axis=0)[0, -1] / 2
                    rows.append(
                        {"source": log.source, "run": log.run, "kind": log.kind, "fraction": fraction, "change": name}
                        | {"shift": shift, "share": abs(shift) / half, "share of wider": abs(shift) / max(half, own)}
                    )
    return pd.DataFrame(rows)


def tables(rows: pd.DataFrame) -> dict:
    """Summaries of all forecasts of a fraction and of its groups."""
    result = {}
    for fraction, part in rows.groupby("fraction"):
        result[str(fraction)] = {"all": summary(part)} | {
            by: {str(key): summary(group) for key, group in part.groupby(by)}
            for by in ("source", "optimizer", "schedule", "age")
        }
    return result


def cooldowns(rows: pd.DataFrame) -> dict:
    """Bias at the end of cooldowns, and how it grows with the length: nats per factor e of steps."""
    if not len(rows):
        return {}
    slope = float(np.polyfit(np.log(rows["steps"]), rows["end error"], 1)[0]) if len(rows) > 2 else None
    return summary(rows) | {"trend with length": slope}


def draw(result: dict, target: Path) -> None:
    """Errors of the end over the half-width of their 95% interval, by source and fraction, a dot a forecast."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams["svg.hashsalt"] = "emergence-train"  # the same numbers give the same file
    sources = ["gemstones", "llmc", "modded1", "romero", "multi-power", "scheduling"]
    rows = pd.DataFrame(result["rows"])
    figure, axes = plt.subplots(1, len(FRACTIONS), figsize=(10, 3.2), sharey=True, layout="constrained")
    for axis, fraction in zip(axes, FRACTIONS, strict=True):
        for place, source in enumerate(sources):
            part = rows[(rows["source"] == source) & (rows["fraction"] == fraction)]
            share = (part["end error"] / part["half-width"]).clip(-1.9, 1.9)
            axis.plot(place + np.linspace(-0.3, 0.3, len(share)), share, ".", color="#1f5fa8", mew=0, markersize=5)
        axis.axhspan(-1, 1, color="black", alpha=0.06, linewidth=0)
        axis.axhline(0, color="black", linewidth=0.8)
        axis.set_xticks(range(len(sources)), sources, fontsize=7, rotation=25)
        axis.set_title(f"{fraction:.0%} observed", fontsize=9)
    axes[0].set_ylabel("error of the end / half-width", fontsize=9)
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    # tenths of a point are enough for dots
    target.write_text(re.sub(r' ([xy]="-?\d+\.\d)\d+"', r' \1"', text.getvalue()))


def forecasts(logs: list[Log], prior_of: Callable[[Log], priors.Prior]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """One row a forecast from FRACTIONS of each run, and one a cooldown."""
    rows, ends = [], []
    for log in logs:
        for fraction in FRACTIONS:
            row = score(log, fraction * log.step[-1], prior_of(log))
            if row is not None:
                rows.append(row | {"fraction": fraction})
        start = cooldown_start(log)
        row = score(log, start, prior_of(log)) if start else None
        if row is not None:
            ends.append(row)
    return pd.DataFrame(rows), pd.DataFrame(ends)


def evaluate(logs: list[Log], held_out: dict[str, priors.Prior]) -> dict:
    """All tables; `held_out` are the priors without a laboratory or a source, by its name."""

    def without_laboratory(log: Log) -> priors.Prior:
        return held_out[LABORATORY.get(log.source, log.source)]

    scored, ended = forecasts(logs, without_laboratory)
    speedruns = [log for log in logs if log.source in LABORATORY]
    by_source, _ = (
        forecasts(speedruns, lambda log: held_out[log.source]) if LABORATORY.keys() <= held_out.keys() else ([], [])
    )
    new = scored["source"].isin(EARLIER).map({True: "earlier", False: "folder"})
    shifts = moved([log for log in logs if LABORATORY.get(log.source) == "124M speedruns"], without_laboratory)
    kept = [
        "source",
        "laboratory",
        "run",
        "kind",
        "optimizer",
        "schedule",
        "age",
        "params",
        "tokens",
        "fraction",
        "end",
    ]
    kept += [
        "end error",
        "half-width",
        "mse",
        "classical",
        "quotient",
        "quotient to power",
        "oracle",
        "end 95",
        "rows 95",
    ]
    return {
        "forecasts": {name: tables(scored[new == name]) for name in new.unique()},
        "speedruns, their source left out": tables(by_source) if len(by_source) else {},
        "cooldowns": {str(source): cooldowns(part) for source, part in ended.groupby("source")},
        "moved by less than half its half-width": {
            f"{change} at {fraction}": {
                "share": float((part["share"] < 0.5).mean()),
                "of the wider": float((part["share of wider"] < 0.5).mean()),
                "pairs": len(part),
            }
            for (change, fraction), part in shifts.groupby(["change", "fraction"])
        },
        "conformal": conformal(scored),
        "rows": scored[kept].round(6).to_dict("list"),
    }


def show(result: dict) -> None:
    for name, part in result["forecasts"].items():
        for fraction, group in part.items():
            for by in ("all", "source", "optimizer", "schedule", "age"):
                for key, line in {"": group["all"]}.items() if by == "all" else group[by].items():
                    print(name, fraction, by, key, *(f"{k} {v:.3g}" for k, v in line.items()), sep=" | ")
    print(pd.DataFrame(result["cooldowns"]).round(3).to_string())
    print(pd.DataFrame(result["moved by less than half its half-width"]).T.round(3).to_string())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("curves", type=Path)
    parser.add_argument("--earlier", type=Path)
    parser.add_argument("--every", type=int, default=1)
    arguments = parser.parse_args()
    logs = read_folder(arguments.curves)
    logs += read_earlier(arguments.earlier)[:: arguments.every] if arguments.earlier else []
    fitted = json.loads((RESULTS / "temporal_prior.json").read_text())
    result = evaluate(logs, {name: priors.from_json(prior) for name, prior in fitted["without"].items()})
    earlier = f" --earlier EARLIER --every {arguments.every}" if arguments.earlier else ""
    command = f"python benchmarks/studies/temporal_laboratories.py CURVES{earlier}"
    write_result(TARGET, command, result)
    draw(result, Path(__file__).parents[2] / "docs" / "images" / "truth-forecasts.svg")
    show(result)


if __name__ == "__main__":
    main()
