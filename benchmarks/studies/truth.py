"""Which properties of true forecasts and thresholds hold, on laboratories and generators that nothing was fitted to?

    python benchmarks/studies/truth.py

Scores eleven properties from the results of the studies that measure them (their docstrings name the data and the commands):
temporal_laboratories.py (laboratories left out of the prior), temporal_logs.py (a generator unlike the laws),
temporal_coverage.py (positions), emergence_thresholds.py (simulated items, two public tables). Prints one table and writes
benchmarks/results/truth.json; `losing` names what does not hold. Nothing here is fitted.
"""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from commands import write_result
from scipy.stats import binom

from emergence_train.analysis.emergence.families import families

RESULTS = Path(__file__).parents[1] / "results"
SOURCES = ("temporal_laboratories", "temporal_logs", "temporal_coverage", "emergence_thresholds")
QUOTIENTS = {0.1: 0.3, 0.2: 0.2, 0.4: 0.15}
OTHERS = "other laboratories"  # the 90 logs; the two earlier sources are left out in turn as well
KNOWN = ("AdamW",)  # optimizers of the prior without the speedruns
LADDER = ("lab-70M-0.5xC", "lab-160m-1xC", "lab-410M-1xC-rerun", "lab-1.4b-2xC", "lab-seed2-2.8B")  # one ladder's names
REACH = 1.5  # runs with sizes and tokens within this factor say what a run can reach


@dataclass(frozen=True)
class Row:
    """One property in one group: what is asked, what was measured on data that it was not fitted to."""

    number: int
    property: str
    group: str
    asked: str
    measured: float
    outcome: str
    forecasts: int


HOLDS, MISSES, OPEN = "holds", "does not hold", "cannot be told here"


def met(holds: bool) -> str:
    return HOLDS if holds else MISSES


def share(value: float, low: float, high: float, count: int) -> str:
    """Of a share of `count` cases. It cannot be told where a true share inside the limits would often give as much."""
    if low <= round(value, 4) <= high:
        return HOLDS
    cases = round(value * count)
    p = binom.cdf(cases, count, low) if value < low else binom.sf(cases - 1, count, high)
    return OPEN if p >= 0.05 else MISSES


def other_laboratories(rows: pd.DataFrame) -> Iterator[Row]:
    """Property 1, of all logs at a fraction and of each source."""
    for fraction, part in rows.groupby("fraction"):
        groups = {OTHERS: part[~part["earlier"]], "two earlier sources": part[part["earlier"]]}
        groups |= {str(source): some for source, some in part.groupby("source")}
        for name, some in groups.items():
            group, count, one_source = f"{name}, {fraction:.0%}", len(some), name not in list(groups)[:2]
            for what in ("end", "rows"):
                held = float(some[f"{what} 95"].mean())
                yield Row(1, f"95% of {what} held", group, "90 to 98%", held, share(held, 0.9, 0.98, count), count)
            limit = 1.0 if one_source else QUOTIENTS[float(fraction)]
            value = float(some["quotient"].median())
            yield Row(
                1, "squared error over best classical", group, f"at most {limit:g}", value, met(value <= limit), count
            )
            if one_source:
                continue
            low = float((some["end error"] < 0).mean())
            yield Row(1, "too low", group, "40 to 60%", low, share(low, 0.4, 0.6, count), count)
            ratio = float(some["half-width"].median() / some["end error"].abs().median())
            yield Row(1, "half-width over error (medians)", group, "at most 4", ratio, met(ratio <= 4), count)


def outside_the_prior(rows: pd.DataFrame) -> Iterator[Row]:
    """Property 2: optimizers that no run of the prior used, its laboratory left out."""
    rows = rows[~rows["optimizer"].isin(KNOWN)]
    for fraction, some in [*rows.groupby("fraction"), ("all", rows)]:
        group = f"Muon, SOAP, Shampoo, {fraction if fraction == 'all' else format(fraction, '.0%')}"
        better, bias = float((some["quotient to power"] < 1).mean()), float(some["end error"].median())
        held = float(some["end 95"].mean())
        yield Row(
            2, "better than the power law", group, "at least 75%", better, share(better, 0.75, 1, len(some)), len(some)
        )
        yield Row(2, "bias of the end, nats", group, "within 0.03", bias, met(abs(bias) <= 0.03), len(some))
        yield Row(2, "95% of ends held", group, "at least 90%", held, share(held, 0.9, 1, len(some)), len(some))


def cooldowns(held: dict) -> Iterator[Row]:
    """Property 3: observed up to the cooldown's first step."""
    for source, some in held.items():
        count, bias, inside = some["forecasts"], some["median end bias"], some["ends inside 95"]
        yield Row(3, "bias of a cooldown's end, nats", source, "within 0.03", bias, met(abs(bias) <= 0.03), count)
        yield Row(3, "95% of ends held", source, "90 to 98%", inside, share(inside, 0.9, 0.98, count), count)
        if some["trend with length"] is not None:
            slope = some["trend with length"]
            yield Row(
                3, "nats for each factor e of length", source, "within 0.03", slope, met(abs(slope) <= 0.03), count
            )


def ways_of_logging(shifts: dict, generated: dict) -> Iterator[Row]:
    """Property 4: on public runs, and on generated ones with worse logs."""
    asked = "95% by less than half"
    for change, some in shifts.items():
        yield Row(
            4,
            "moved by half its half-width",
            change,
            asked,
            some["share"],
            share(some["share"], 0.95, 1, some["pairs"]),
            some["pairs"],
        )
    for log, some in generated.items():
        if not log.startswith("plain"):
            little = some["moved by less than half"] + some["moved more, and said"]
            yield Row(
                4,
                "moved, or said",
                f"generated: {log}",
                asked,
                little,
                share(little, 0.95, 1, some["forecasts"]),
                some["forecasts"],
            )
        inside = some["ends inside 95"]
        yield Row(
            4,
            "95% of ends held",
            f"generated: {log}",
            "at least 90%",
            inside,
            share(inside, 0.9, 1, some["forecasts"]),
            some["forecasts"],
        )


def young(rows: pd.DataFrame) -> Iterator[Row]:
    """Property 5: bias, and forecasts below the lowest end of any run of a laboratory of about that size and tokens."""
    some = rows[(rows["age"] == "young") & (rows["fraction"] == 0.1)].copy()
    for name, part in [("all", some), *some.groupby("source")]:
        bias = float(part["end error"].median())
        yield Row(
            5, "bias of young runs at 10%, nats", str(name), "within 0.05", bias, met(abs(bias) <= 0.05), len(part)
        )
    below = []
    for row in some.itertuples():
        near = rows[rows["laboratory"] == row.laboratory]
        for name in ("params", "tokens"):
            near = near[near[name].between(getattr(row, name) / REACH, getattr(row, name) * REACH)]
        below.append(row.end + row.error + row.half < near["end"].min())
    lower = float(np.mean(below))
    yield Row(5, "whole interval below what size and tokens reach", "all", "none", lower, met(lower == 0), len(some))


def emergence(held: dict) -> Iterator[Row]:
    """Properties 6, 8, 9 and 10."""
    for name, some in held["untrained_checkpoint"].items():
        turned, moved = some["verdicts_turned"], some["largest_move_over_width"] or 0.0
        yield Row(6, "verdicts turned by an untrained row", name, "none", turned, met(turned == 0), some["tasks"])
        yield Row(6, "largest move over its width", name, "below 0.5", moved, met(moved < 0.5), some["tasks"])
    for name, some in held["simulated"].items():
        inside, thin = some["coverage95"], some["narrower_than_gap"]
        yield Row(
            8,
            "95% of thresholds held",
            name,
            "90 to 98%",
            inside,
            share(inside, 0.9, 0.98, some["tasks"]),
            some["tasks"],
        )
        yield Row(8, "narrower than the gap between rows", name, "none", thin, met(thin == 0), some["tasks"])
    pairs = held["two_runs_of_a_family"]
    yield Row(
        8,
        "two runs of a family overlap",
        "",
        "95%",
        pairs["overlap"],
        share(pairs["overlap"], 0.95, 1, pairs["pairs"]),
        pairs["pairs"],
    )
    for name, some in held["halves"].items():
        less = some["stated"] - some["agree"]
        yield Row(
            9,
            "halves agree less often than stated by",
            name,
            "at most 0.05",
            less,
            met(less <= 0.05),
            some["both_identified"],
        )
    for name, tasks in held["crossings_ahead"].items():
        for task, some in tasks.items():
            if isinstance(some, dict) and "coverage95" in some:
                inside = some["coverage95"]
                group = f"{task}, {name}"
                yield Row(
                    10,
                    "95% of crossings held that were ahead",
                    group,
                    "at least 90%",
                    inside,
                    share(inside, 0.9, 1, some["crossings_ahead"]),
                    some["crossings_ahead"],
                )


def one_family() -> Row:
    """Property 7: a ladder with sizes, token multipliers, seeds and reruns in its names."""
    frame = pd.DataFrame({"run": LADDER, "params": [7e7, 1.6e8, 4.1e8, 1.4e9, 2.8e9]}).astype({"params": int})
    count = families(frame).names.nunique()
    return Row(
        7,
        "families of one ladder",
        "names with size, multiplier, seed, rerun",
        "1",
        float(count),
        met(count == 1),
        len(LADDER),
    )


def score(held: dict) -> list[Row]:
    laboratories = held["temporal_laboratories"]
    rows = pd.DataFrame(laboratories["rows"])
    rows["earlier"] = rows["source"].isin(("multi-power", "scheduling"))
    named = rows.assign(error=rows["end error"], half=rows["half-width"])
    scored = [*other_laboratories(rows), *outside_the_prior(rows), *cooldowns(laboratories["cooldowns"])]
    generated = held["temporal_logs"]["logs"]
    scored += ways_of_logging(laboratories["moved by less than half its half-width"], generated)
    scored += [*young(named), one_family(), *emergence(held["emergence_thresholds"])]
    return sorted(scored, key=lambda row: row.number)


def positions(held: dict) -> dict:
    """Not among the properties: single positions and the constants of the position law, on simulated runs."""
    return {
        **{f"{name} of the position law, 95% held": part["coverage95"] for name, part in held["position_law"].items()},
        **{f"{name}, 95% held": held["forecast_as_shipped"][f"{name}95"] for name in ("end", "mean", "position")},
    }


def main() -> None:
    held = {name: json.loads((RESULTS / f"{name}.json").read_text()) for name in SOURCES}
    rows = score(held)
    commits = {name: part["commit"] for name, part in held.items()}
    result = {
        "commits of the studies": commits,
        "not scored here": "property 11, which pages state; checkpoints of abilities ahead of a run are levels of accuracy",
        "properties": {
            str(number): dict(Counter(row.outcome for row in rows if row.number == number))
            for number in sorted({row.number for row in rows})
        },
        "positions": positions(held["temporal_coverage"]),
        "rows": [asdict(row) for row in rows],
        "losing": [
            f"{row.number}: {row.property}, {row.group}: {row.measured:.3g}" for row in rows if row.outcome == MISSES
        ],
    }
    write_result(RESULTS / "truth.json", "python benchmarks/studies/truth.py", result)
    for row in rows:
        print(
            row.number, row.property, row.group, row.asked, f"{row.measured:.3f}", row.outcome, row.forecasts, sep=" | "
        )
    print(json.dumps(result["properties"]))


if __name__ == "__main__":
    main()
