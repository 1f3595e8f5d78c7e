"""Read evaluations as tasks: families of runs with comparable losses, the noise and the direction of each metric.

Missing columns are replaced by assumptions, each of which becomes a note of its task.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from emergence_train.analysis.emergence import metric_names
from emergence_train.analysis.emergence.families import families, with_data
from emergence_train.analysis.emergence.result import FamilyResult
from emergence_train.analysis.emergence.shapes import Rows
from emergence_train.analysis.emergence.untrained import check_losses, check_unigram, trained
from emergence_train.analysis.scores import ScoreOptions, with_scores
from emergence_train.analysis.scores.complete import fill_chance
from emergence_train.analysis.scores.percents import ROUNDING
from emergence_train.errors import InputError, listed
from emergence_train.recorder import tables
from emergence_train.recorder.naming import is_run, names_of
from emergence_train.recorder.schemas import TASK_DIGEST

SMALLEST = 0.02  # smallest relevant change of a share
BETRAYED = 4.0  # standard errors below 1/2 at which a score is that of a constant answer
FEW, FAR = (
    0.1,
    10,
)  # share of a run's values up to which those above 1 are slips; factor between shares and percent in a run
SCALE = 10.0  # the highest score of scales that are no percent: ratings are from 1 to 5 or 10


@dataclass
class TaskMetric:
    """One metric of one task over runs with comparable losses. `frame` has the rows of the loss range, `x` in [0, 1]."""

    task: str
    metric: str
    family: str
    frame: pd.DataFrame  # run, params, step, tokens, loss, y (higher is better), items, ...
    rows: Rows
    loss_from: float
    loss_to: float
    chance: float  # in the units of y; NaN: unknown
    best: float
    smallest: float
    scale: float
    sign: int  # value = zero + sign * y: 1, -1 where lower is better, 100 and -100 for percent
    zero: float  # 0; the value of a share of wrong items at y = 0, where all are wrong
    items: float  # median; NaN: unknown
    majority: float = np.nan  # of always giving the commonest answer, in the units of y; NaN: unknown
    notes: list[str] = field(default_factory=list)

    @property
    def sizes(self) -> list[int]:
        return sorted(int(p) for p in self.frame["params"].unique())

    def value_of(self, y: float | np.ndarray) -> Any:
        """Performance in the metric's own direction and unit."""
        return self.zero + self.sign * y

    def loss_at(self, x: float) -> float:
        """The loss at share `x` of the range."""
        return float(self.loss_from + x * (self.loss_to - self.loss_from))


def load(
    paths: str | Path | Iterable[str | Path],
    names: Mapping[Path, str] | None = None,
    options: ScoreOptions | None = None,
) -> tuple[list[TaskMetric], tuple[FamilyResult, ...], list[str]]:
    """Every (family, task, metric) of the evaluations in `paths`, its families, and notes on the whole table.

    `options`: what is known of results that other programs wrote.
    """
    paths = [paths] if isinstance(paths, (str, Path)) else list(paths)
    names = names_of(paths) if names is None else names
    known, notes = with_scores(paths, options or ScoreOptions())
    frame = tables.read(tables.EVALUATIONS, known, mixed_vocabularies=True, names=names)
    notes += [f"column {name!r} is missing" for name in frame.attrs["missing"]]
    fill_chance(frame, notes)
    decided = families(with_data(frame, paths, names))
    notes += decided.notes
    members = decided.results(frame)
    frame["family"] = decided.names
    where, own_runs = listed([str(path) for path in paths], 1), any(map(_of_run, paths))
    if not own_runs:
        check_losses(frame, where)
    part_by_items(frame, notes)
    tasks = []
    for (family, task, metric), rows in frame.groupby(["family", "task", "metric"], sort=True):
        tasks.append(task_metric(str(family), str(task), str(metric), rows))
    if not own_runs:
        check_unigram(((of.family, of.loss_from, of.loss_to, of.frame.attrs["unigram"]) for of in tasks), where)
    _brier_chance(tasks)
    return tasks, members, notes


def _of_run(path: str | Path) -> bool:
    """Whether a path is a run directory, or a table in one."""
    return any(map(is_run, (Path(path), *Path(path).absolute().parents[:2])))


def part_by_items(frame: pd.DataFrame, notes: list[str]) -> None:
    """Name a task that was scored on several sets of items in one family by their digests too, with a note: its scores are no one
    curve. An empty digest separates nothing where there is one other."""
    if TASK_DIGEST not in frame:
        return
    digests = frame[TASK_DIGEST].fillna("").astype(str)
    groups = [frame["family"], frame["task"]]
    several = digests.where(digests != "").groupby(groups).transform("nunique") > 1
    shown = _shortest(digests[several])
    parted: dict[str, list[str]] = {}  # tasks by where they were scored on what: those of a tag alike
    for (_, task), rows in frame[several].groupby([group[several] for group in groups], sort=True):
        runs = {digest: sorted(set(of["run"])) for digest, of in rows.groupby(shown[rows.index])}
        where = "; ".join(f"{digest} {listed(of, 3)}" for digest, of in runs.items())
        parted.setdefault(where, []).append(repr(task))
    for where, tasks in parted.items():
        which, it = ("task {} was", "it") if len(tasks) == 1 else ("tasks {} were", "them")
        were = which.format(listed(tasks, 3))
        notes.append(
            f"{were} scored on different items under one name, each of which is analysed apart ({where}); "
            f"score {it} on the same in all runs, or give {it} several names"
        )
    named = frame["task"] + ":" + shown
    frame["task"] = frame["task"].where(~several, named)


def _shortest(digests: pd.Series) -> pd.Series:
    """The first 8 characters of each, or as many as tell them apart; "unknown" for an empty one."""
    known, length = digests.unique(), 8
    while len({digest[:length] for digest in known}) < len(known):
        length += 1
    return digests.str[:length].replace("", "unknown")


# ------------------------------------------------------------------------------------------------------------- tasks


def task_metric(family: str, task: str, metric: str, frame: pd.DataFrame) -> TaskMetric:
    notes: list[str] = []
    sign, zero = _direction(metric, frame, notes), 0.0
    share = _is_share(metric, frame, sign, notes)
    if share:
        frame, unit = _as_shares(frame, task, metric, sign, notes)
        zero, sign = (unit if sign < 0 else 0.0), sign * unit
    chance = _median(frame["chance"])
    if chance is None:
        notes.append("chance is missing: the plateau's level alone is estimated, and what it is worth is not known")
    elif frame["chance"].nunique(dropna=True) > 1:
        notes.append(f"chance differs between rows; its median {chance:g} is used")
    frame = frame.assign(y=(frame["value"] - zero) / sign)
    if share:
        frame = frame.assign(y=frame["y"].clip(0, 1))
    if zero and "majority" in frame:
        frame = frame.assign(majority=1 - frame["majority"])
    level = np.nan if chance is None else float(np.sign(sign)) * chance + bool(zero)
    if level >= 1:
        notes.append(f"chance {chance:g} leaves no room above it; taken as unknown")
    chance = level if level < 1 else None
    unigram = _median(frame["unigram_loss"]) if "unigram_loss" in frame else None
    frame = trained(frame, unigram, notes)
    frame.attrs["unigram"] = unigram
    loss_from, loss_to = float(frame["loss"].max()), float(frame["loss"].min())
    x = (loss_from - frame["loss"].to_numpy(float)) / max(loss_from - loss_to, 1e-12)
    variance, items = _noise(frame, share, metric, x, notes)
    y = frame["y"].to_numpy(float)
    if share:
        best, smallest = 1.0, SMALLEST
        scale = 0.3 * (1 - (chance or 0.0))
    else:
        brier = "brier" in metric.lower()
        best = 0.0 if brier else np.nan
        spread = float(np.ptp(np.quantile(y, [0.05, 0.95]))) if len(y) > 1 else 1.0
        smallest = SMALLEST if brier else max(SMALLEST * abs(float(np.median(y))), 1e-6)
        scale = 0.3 if brier else max(spread, 10 * smallest)
    items_out = float(np.median(items)) if items is not None else np.nan
    rows = Rows(
        x,
        y,
        variance,
        pd.factorize(frame["run"])[0],
        frame["step"].to_numpy(float),
        items if share and items is not None and _binomial(y, items, metric) else None,
    )
    return TaskMetric(
        task,
        metric,
        family,
        frame.assign(x=x),
        rows,
        loss_from,
        loss_to,
        np.nan if chance is None else chance,
        best,
        smallest,
        scale,
        sign,
        zero,
        items_out,
        _majority(frame, rows, chance, notes) if share else np.nan,
        notes,
    )


def _majority(frame: pd.DataFrame, rows: Rows, chance: float | None, notes: list[str]) -> float:
    """What always giving the commonest answer scores: as the table has it; of two answers also where a checkpoint betrays it.

    A model that cannot tell gives one answer more and more. Where that is the rarer one, the score is far below 1/2.
    """
    known = _median(frame["majority"]) if "majority" in frame else None
    if known is not None:
        return known
    if rows.items is None or chance != 0.5:
        return np.nan
    lowest = int(rows.y.argmin())
    value = float(rows.y[lowest])
    if value > 0.5 - BETRAYED * 0.5 / np.sqrt(float(rows.items[lowest])):
        return np.nan
    notes.append(f"always giving the commoner answer scores about {1 - value:.3g}: a checkpoint scored {value:.3g}")
    return 1 - value


def _direction(metric: str, frame: pd.DataFrame, notes: list[str]) -> int:
    """1 where higher is better, -1 where lower is."""
    known = frame["higher_is_better"].dropna()
    if len(known):
        return 1 if bool(known.iloc[0]) else -1
    lower = metric_names.lower_is_better(metric)
    notes.append(f"higher_is_better is missing: by its name, {'lower' if lower else 'higher'} {metric} is better")
    return -1 if lower else 1


def _median(column: pd.Series) -> float | None:
    known = pd.to_numeric(column, errors="coerce").dropna()
    return float(known.median()) if len(known) else None


def _binomial(value: np.ndarray, items: np.ndarray, metric: str) -> bool:
    """Whether the values are shares of right items, whose variance follows from their mean."""
    count = value * items
    whole = np.abs(count - np.round(count)) < np.maximum(0.02, 1e-4 * count)
    return metric_names.is_right(metric) or bool(np.mean(whole) > 0.95)


def _is_share(metric: str, frame: pd.DataFrame, sign: int, notes: list[str]) -> bool:
    """Whether the values are shares or percent, by name, chance and range; the same in either unit, but for what is noted."""
    low, high, chance = float(frame["value"].min()), float(frame["value"].max()), _median(frame["chance"])
    named = metric_names.is_share(metric)
    outside = low < -ROUNDING * max(high, 1.0) or high > 100 * (1 + ROUNDING)
    if named is False or outside or (chance or 0.0) < 0:
        return False
    share = high <= 1 + ROUNDING
    if named or chance is not None and (0 < chance < 1 and share or 1 < chance < 100):
        return True
    if sign > 0 and not share and high <= SCALE:
        notes.append(
            f"values up to {high:g} are taken as a scale without a highest score: neither {metric!r} nor chance says "
            "percent; if they are, divide them by 100"
        )
    return sign > 0 and (share or high > SCALE)


def _as_shares(frame: pd.DataFrame, task: str, metric: str, sign: int, notes: list[str]) -> tuple[pd.DataFrame, int]:
    """-> (the rows with chance and standard errors as shares; 100 where all values are percent, and stay so, else 1).

    The unit is a run's: tables of several sources may mix percent and shares. A run with a value above 1 is in percent. One whose
    values are all below 1 beside such a run is in the unit that brings them nearer to theirs at its losses (small models score
    0.4 percent where larger ones reach 40), unless its chance decides: it is below 1 and not theirs.
    Raises InputError for values above 1 of a run whose chance and other values are shares, and for wrong items in percent whose
    chance is a share: guessing is wrong in more than 1 percent.
    """
    value = frame["value"].to_numpy(float)
    if value.max() <= 1 + ROUNDING:
        return frame, 1
    runs = frame.groupby("run", sort=True)
    highest, chance = runs["value"].max(), runs["chance"].max()
    below = (highest > 1 + ROUNDING) & (chance > 0) & (chance <= 1)
    wrong = below & (runs["value"].agg(_mixes_units) | (sign < 0))
    if wrong.any():
        run = wrong.idxmax()
        raise InputError(
            f"{run!r}: {task}, {metric} has a value of {highest[run]:g} beside shares (chance {chance[run]:g}); correct it, or "
            f"write values and chance as shares"
        )
    if below.any():
        notes.append(f"chance {chance[below].iloc[0]:g} beside values above 1 is taken as percent too")
    percent = set(highest.index[(highest > 1 + ROUNDING) | (chance > 1)])
    theirs = frame[frame["run"].isin(percent)].sort_values("loss")
    known = chance[list(percent)].to_list()
    for run in highest.index.difference(list(percent)):
        if 0 < chance[run] <= 1 and chance[run] not in known:
            continue
        own = frame[frame["run"] == run]
        unit = max(float(own["value"].mean()), 1e-6)
        level = max(float(np.interp(own["loss"], theirs["loss"], theirs["value"]).mean()) / 100, 1e-4)
        if abs(np.log(unit / 100 / level)) < abs(np.log(unit / level)):
            percent.add(run)
    if len(percent) == len(highest):
        notes.append("values above 1 are taken as percent; changes and size effects are given as shares")
    else:
        shares = ", ".join(map(str, highest.index.difference(list(percent))[:3]))
        notes.append(
            f"percent and shares are mixed: taken as shares were the values of {shares}; all are given as shares"
        )
    scale = np.where(frame["run"].isin(percent), 100.0, 1.0)
    names = ["chance", "stderr", *(["majority"] if "majority" in frame else [])]
    names += [] if len(percent) == len(highest) else ["value"]
    columns = {name: frame[name].to_numpy(float) / scale for name in names}
    return frame.assign(**columns), 100 if len(percent) == len(highest) else 1


def _mixes_units(value: pd.Series) -> bool:
    """Whether a run's values are mostly shares, and those above 1 are few, or far from them as their hundredfold is."""
    above, below = value[value > 1 + ROUNDING], value[value <= 1 + ROUNDING]
    few = len(above) <= max(FEW * len(value), 1)
    return bool(value.median() <= 1 and (few or above.min() > FAR * below.max()))


def _noise(
    frame: pd.DataFrame, share: bool, metric: str, x: np.ndarray, notes: list[str]
) -> tuple[np.ndarray, np.ndarray | None]:
    """Sampling variance of each row (n,), and its items where they are known or follow from the standard error.

    Of shares of items that of the items, or of a larger standard error: items that are answered alike tell less than as many.
    """
    y = frame["y"].to_numpy(float)
    value = np.abs(y)
    stderr = frame["stderr"].to_numpy(float)
    items = frame["items"].to_numpy(float)
    items = np.where(items > 0, items, np.nan)
    good = np.isfinite(stderr) & (stderr > 0)
    if np.isnan(items).any() and share and good.any():
        implied = value * (1 - value) / np.where(good, stderr, np.nan) ** 2
        implied = implied[np.isfinite(implied) & (implied > 1)]
        if np.isnan(items).all() and len(implied):
            items = np.full(len(value), float(np.median(implied)))
            notes.append(f"items are missing: {items[0]:.0f} by the standard errors, if items are independent")
    if np.isfinite(items).any():
        if np.isnan(items).any():
            notes.append("items are missing in some rows: the median of the others is used")
            items = np.where(np.isfinite(items), items, np.nanmedian(items))
        if share:
            smooth = (value * items + 0.5) / (items + 1)
            by_items = smooth * (1 - smooth) / items
            if _binomial(value, items, metric) or not good.any():
                return np.where(good, np.maximum(stderr**2, by_items), by_items), items
            return np.where(good, np.maximum(stderr, 1e-9) ** 2, by_items), items
    known = items if np.isfinite(items).all() else None
    if good.any():
        if not good.all():
            notes.append("stderr is missing in some rows: the median of the others is used")
        typical = float(np.median(stderr[good]))
        return np.maximum(np.where(good, stderr, typical), 0.2 * typical) ** 2, known
    notes.append("neither items nor stderr: noise is judged by the scatter of neighbouring checkpoints alone")
    order = np.argsort(x, kind="stable")
    steps = np.diff(y[order])
    variance = float(np.median(np.abs(steps)) / 0.6745) ** 2 / 2 if len(steps) else 0.0
    return np.full(len(y), max(variance, 1e-12 + 1e-8 * float(np.var(y)))), known


def _brier_chance(tasks: list[TaskMetric]) -> None:
    """Where a task's Brier score has no chance level, that of its accuracy gives it: 1 - 1 / options (sum convention)."""
    choice = {(t.family, t.task): t.chance for t in tasks if t.metric.startswith("acc") and np.isfinite(t.chance)}
    for task in tasks:
        if "brier" in task.metric.lower() and not np.isfinite(task.chance) and (task.family, task.task) in choice:
            task.chance = -(1 - choice[task.family, task.task])
            task.notes = [note for note in task.notes if not note.startswith("chance is missing")]
            task.notes.append(
                f"chance {-task.chance:g} is 1 - chance of the accuracy: uniform guesses, sum over options"
            )


def part(task: TaskMetric, keep: np.ndarray) -> TaskMetric:
    """The task with only the rows where `keep` (n,) is True, on its own loss range."""
    frame = task.frame[keep].reset_index(drop=True)
    frame.attrs = dict(task.frame.attrs)
    loss = frame["loss"].to_numpy(float)
    loss_from, loss_to = float(loss.max()), float(loss.min())
    x = (loss_from - loss) / max(loss_from - loss_to, 1e-12)
    old = task.rows
    items = None if old.items is None else old.items[keep]
    rows = Rows(x, old.y[keep], old.variance[keep], pd.factorize(frame["run"])[0], old.order[keep], items)
    return replace(task, frame=frame.assign(x=x), rows=rows, loss_from=loss_from, loss_to=loss_to)
