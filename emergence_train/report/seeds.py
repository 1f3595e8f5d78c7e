"""Runs that differ by their seed alone, taken together: mean and spread along training, and how sure their means are."""

import html
from collections.abc import Sequence

import numpy as np
import pandas as pd

from emergence_train.analysis.figures import Figure, Trace
from emergence_train.analysis.intervals import mean_reach95, welch_p
from emergence_train.analysis.temporal.figures import EVERY_STEP
from emergence_train.formatting import short
from emergence_train.report.collect import ReportData, Run
from emergence_train.report.parts import grid, smoothed, table
from emergence_train.run_differences import begun_from, differences, seed_groups, telling

ALIKE = 1e-9  # nats: losses that do not differ
LEAST_FREEDOM = 2  # of the SD that a lead is held against: with one it would have to be 18 of them
SIZE = ""  # stands among the keys of settings for the number of parameters


def sections(data: ReportData) -> list[tuple[str, str, str]]:
    """(anchor, title, body); nothing where no two runs differ by their seed alone."""
    groups = grouped(data.runs)
    if not any(len(runs) > 1 for runs in groups.values()):
        return []
    text = (
        "<p>Runs that differ by nothing but seeds are one group: their configurations, data and what they began from are the "
        "same. A repeat of a seed is no other one. Lines are the mean over its seeds at the steps "
        "that all of them have; bands reach from the lowest to the highest seed.</p>"
    )
    figures = [_figure("Training", "train", groups), *(_figure(f"Validation, {s}", s, groups) for s in ("iid", "ood"))]
    return [("seeds", "Mean and spread over seeds", text + _table(groups) + grid(figures))]


def grouped(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """The groups under names of what differs between them, seeds apart; in the order of the runs."""
    directories = [run.directory for run in runs]
    groups = seed_groups(directories)
    values = differences([directories[numbers[0]] for numbers in groups])
    values = [
        {SIZE: str(runs[numbers[0]].params)}
        | {key: str(value) for key, value in settings.items() if key.rpartition(".")[2] != "seed"}
        for numbers, settings in zip(groups, values)
    ]
    parents = begun_from(directories)
    for numbers, settings in zip(groups, values):
        if "from" in settings and len({parents[number] for number in numbers}) > 1:  # a parent a seed, at the same step
            settings["from"] = f"step {settings['from'].rpartition('@')[2]}"
    keys = telling(values)
    named: dict[str, list[Run]] = {}
    for numbers, settings in zip(groups, values):
        members = [runs[number] for number in numbers]
        words = [f"{short(members[0].params)} parameters"] if SIZE in keys else []
        words += [f"{key} = {settings[key]}" for key in keys if key != SIZE]
        name = ", ".join(words) or ("all runs" if len(groups) == 1 else members[0].name)
        named[f"{name} ({members[0].name})" if name in named else name] = members
    return named


def over_seeds(curves: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """tokens, mean, lowest and highest loss at the tokens that every curve (tokens, loss) has."""
    rows = pd.concat([curve.dropna(subset=["loss"]).groupby("tokens")["loss"].mean() for curve in curves], axis=1)
    rows = rows.dropna()
    return pd.DataFrame(
        {"tokens": rows.index, "mean": rows.mean(1).array, "low": rows.min(1).array, "high": rows.max(1).array}
    )


def _figure(title: str, split: str, groups: dict[str, list[Run]]) -> Figure:
    traces = []
    for number, (name, runs) in enumerate(groups.items()):
        rows = over_seeds([_curve(run, split) for run in runs])
        tokens, mean, low, high = (rows[column].to_numpy(float) for column in ("tokens", "mean", "low", "high"))
        band = {"low": low, "high": high} if len(runs) > 1 else {}
        label = f"{name}, {len(runs)} seeds" if len(runs) > 1 else name
        traces.append(Trace(tokens, mean, label, number, points=split != "train", **band))
    reduced = f"means over seeds of bins of steps; {EVERY_STEP}" if split == "train" else ""
    return Figure(title, "tokens", "loss (nats)", tuple(traces), x_log=True, reduced=reduced)


def _curve(run: Run, split: str) -> pd.DataFrame:
    """tokens and loss of a split, or of training, in bins, as `smoothed` has them."""
    curve = smoothed(run.curve) if split == "train" else run.means[run.means["split"] == split]
    return curve[["tokens", "loss"]].astype(float)


def best(runs: Sequence[Run]) -> str:
    """Which group has the lowest mean loss on iid, and how far its seeds spread; "" where there are no seeds."""
    groups = {name: members for name, members in grouped(runs).items() if len(members) > 1}
    losses = {name: _last(members, "iid") for name, members in groups.items()}
    losses = {name: values for name, values in losses.items() if len(values) > 1}
    if not losses:
        return ""
    name = min(losses, key=lambda name: float(losses[name].mean()))
    mean, deviation = spread(losses[name])
    lead = "The lowest mean over seeds has" if len(losses) > 1 else "Over its seeds,"
    text = f"{lead} <b>{html.escape(name)}</b>: {mean} on iid; its {len(losses[name])} seeds have an SD of {deviation}"
    return f"<p>{text}{_beside_next(name, losses)}.</p>"


def _beside_next(name: str, losses: dict[str, np.ndarray]) -> str:
    """Whether the group with the lowest mean is apart from the next one."""
    others = [other for other in losses if other != name]
    if not others:
        return ""
    following = min(others, key=lambda other: float(losses[other].mean()))
    # Copies: there is no spread to go by
    if max(float(np.ptp(losses[name])), float(np.ptp(losses[following]))) < ALIKE:
        return ""
    p = welch_p(losses[name], losses[following])
    verdict = "apart by more than seeds explain" if p < 0.05 else "which of the two is lower is open"
    return (
        f"; the next, {html.escape(following)}, has {spread(losses[following])[0]}: {verdict} (Welch's t, p = {p:.2g})"
    )


def deviation(runs: Sequence[Run]) -> tuple[float, int] | None:
    """(standard deviation of the last loss on iid between seeds, pooled over the groups; its degrees of freedom).

    None with fewer than LEAST_FREEDOM of them, or where the seeds are copies."""
    losses = [values for members in grouped(runs).values() if len(values := _last(members, "iid")) > 1]
    freedom = sum(len(values) - 1 for values in losses)
    if freedom < LEAST_FREEDOM:
        return None
    pooled = float(np.sqrt(sum(((values - values.mean()) ** 2).sum() for values in losses) / freedom))
    return (pooled, freedom) if pooled > ALIKE else None


def _last(runs: Sequence[Run], split: str) -> np.ndarray:
    """(n,) loss of the last checkpoint of the runs that have it at the most tokens."""
    last = [row for run in runs if (row := run.last(run.means, split)) is not None]
    end = max((row["tokens"] for row in last), default=0)
    return np.array([float(row["loss"]) for row in last if row["tokens"] == end])


def _table(groups: dict[str, list[Run]]) -> str:
    rows = []
    for name, runs in groups.items():
        cells = [html.escape(name), str(len(runs))]
        for split in ("iid", "ood"):
            cells += spread(_last(runs, split))
        rows.append(cells)
    head = ["group", "seeds"]
    for split in ("iid", "ood"):
        head += [f"{split} loss", f"SD of {split}"]
    about = (
        "<p>Last checkpoints, of the seeds that are farthest: the mean with its 95% interval (Student's t over seeds), and "
        "the standard deviation between seeds. Groups whose intervals lie apart differ by more than their seeds explain.</p>"
    )
    return table(head, rows, "Mean and spread over seeds") + about


def spread(losses: np.ndarray) -> list[str]:
    """Mean with its 95% interval, and standard deviation, of losses (n,); of fewer than two, the loss alone."""
    if not len(losses):
        return ["–", "–"]
    mean = float(losses.mean())
    if len(losses) < 2:
        return [f"{mean:.3f}", "–"]
    reach = mean_reach95(losses)
    return [f"{mean:.3f} [{mean - reach:.3f}, {mean + reach:.3f}]", f"{losses.std(ddof=1):.4f}"]
