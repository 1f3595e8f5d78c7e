"""Scores of several files as one table of evaluations: the loss of each checkpoint, tokens, sizes, known chance levels."""

import re
from pathlib import Path

import numpy as np
import pandas as pd

from emergence_train.analysis import logs
from emergence_train.analysis.logs import Curve, LogOptions, units
from emergence_train.analysis.logs.numbers import are_sizes
from emergence_train.analysis.scores.options import NUMERIC, ScoreOptions, Scores
from emergence_train.analysis.scores.parts import parted
from emergence_train.analysis.scores.percents import ROUNDING
from emergence_train.analysis.scores.runs_of_files import check_one_run, named_by_files
from emergence_train.errors import InputError, listed
from emergence_train.formatting import short
from emergence_train.recorder import tables
from emergence_train.recorder.naming import is_run

# Chance of the accuracy of public tasks, by the number of their choices
CHANCE = {
    r"mmlu_pro": 0.1,
    r"csqa|commonsense_?qa|math_?qa": 0.2,
    r"hellaswag|swag|arc|mmlu|hendryckstest|openbook_?qa|obqa|sciq|race|medmcqa|logi_?qa|gpqa": 0.25,
    r"social_?iqa|siqa|cb|mnli|anli|xnli|pubmed_?qa": 1 / 3,
    r"piqa|winogrande|x?winograd|boolq|x?copa|wsc(273)?|wic|rte|qnli|qqp|mrpc|sst2?|cola|x?story_?cloze|blimp": 0.5,
}
MOST_FILES = 3  # of which each has a note
MOST_LOSSES = 8  # named in a message
SHOTS = re.compile(r":\d+shot")  # behind a task's name, where a run has several numbers of them
LOSS = re.compile(
    r"(?<![a-z])(loss|nll|cross_entropy|ppl|perplexity|bits|bp[bctw])(?![a-z])(?!.*stderr)", re.IGNORECASE
)
ACCURACY = re.compile(
    r"^(acc|accuracy|acc_norm|acc_raw|acc_per_char|acc_per_token|acc_uncond|len_norm|pmi_dc|exact_match|em)"
    r"(_v2)?$"
)
# Answers that models write, which may be right as rarely as one in a thousand
GENERATED = re.compile(r"exact_match|em$")
FLAGS = {
    "run": "--run NAME (or --column run=NAME)",
    "params": "--params N, or RUN=N for each run (or --column params=NAME)",
    "step": "--column step=NAME, or revisions and directories named as step1000",
    "tokens": "--tokens-per-step N (or --column tokens=NAME)",
    "loss": "--loss FILE, a log of losses by step, or --loss TASK/METRIC of the results (or --column loss=NAME)",
}


def completed(scores: list[Scores], options: ScoreOptions) -> tuple[pd.DataFrame, list[str]]:
    """One table of evaluations, and how it was read. Raises InputError naming all that is missing at once."""
    scores, named = named_by_files(scores, options)
    notes = [*_reading(scores), *named]
    frame = pd.concat([part.rows for part in scores], ignore_index=True)
    where = listed([part.path for part in scores], 1)
    if frame.empty:
        raise InputError(f"{where}: has no scores; give results that hold some")
    frame = frame.reindex(columns=[*frame, *(name for name in tables.EVALUATIONS.columns if name not in frame)])
    for name in frame.columns.intersection(NUMERIC):
        frame[name] = pd.to_numeric(frame[name], errors="coerce")
    _fill_place(frame, options, scores)
    _part_sizes(frame, notes)
    frame = parted(frame, where, notes)
    if options.loss is None or not Path(options.loss).exists():  # a log says the loss by step
        _fill_step(frame, notes)
    if options.loss is not None:
        frame = _with_loss(frame, options, notes)
    _check_complete(frame, where, options)
    frame = frame.dropna(subset=["value"])
    if frame.empty:
        raise InputError(f"{where}: none of its scores is a number; name their column")
    fill_chance(frame, notes)
    if options.run is not None:
        check_one_run(frame, scores, options.run)
    twice = frame.duplicated(list(tables.EVALUATIONS.key), keep="last")
    if twice.any():
        notes.append(
            f"{int(twice.sum())} scores are of a run, step, task and metric that come again later; the last counts"
        )
        frame = frame[~twice]
    for name in ("params", "step", "tokens"):
        frame[name] = frame[name].round().astype("int64")
    return frame.reset_index(drop=True), notes


def _check_complete(frame: pd.DataFrame, where: str, options: ScoreOptions) -> None:
    """Raises InputError naming all that is missing; of a column with some empty cells the runs that have them."""
    names, remedies = [], []
    for name, flags in FLAGS.items():
        if not (empty := frame[name].isna()).any():
            continue
        runs = [] if empty.all() else [repr(run) for run in frame.loc[empty, "run"].dropna().unique()]
        names.append(f"{name} of {listed(runs, MOST_FILES)}" if runs else name)
        filled = "numbers in its empty cells, or the table without their rows"
        remedies.append(f"{name}: {filled if name in options.columns and not empty.all() else flags}")
    if names:
        raise InputError(
            f"{where}: {', '.join(names)} {'are' if names[1:] else 'is'} not said by the results; give {'; '.join(remedies)}"
        )


def _reading(scores: list[Scores]) -> list[str]:
    """How the files were read; those of a harness in one line, where there are many of them."""
    alike = [part for part in scores if "left out" not in part.note]
    if len(alike) <= MOST_FILES:
        return [part.note for part in scores]
    places = pd.concat([part.rows.reindex(columns=["run", "step"]) for part in alike]).drop_duplicates()
    runs = ", ".join(f"{run} ({len(rows)} steps)" for run, rows in places.groupby("run", sort=True))
    first = f"{len(alike)} files{': ' if runs else ''}{runs}; the first is {alike[0].note}"
    return [first, *(part.note for part in scores if part not in alike)]


def _fill_place(frame: pd.DataFrame, options: ScoreOptions, scores: list[Scores]) -> None:
    if options.run is not None:
        frame["run"] = options.run
    frame["run"] = frame["run"].map(
        lambda name: name if isinstance(name, str) else np.nan if name != name else str(name)
    )
    if "" in options.params:
        frame["params"] = options.params[""]
    for run, params in options.params.items():
        if run and run not in options.elsewhere and run not in set(frame["run"].dropna()):
            raise InputError(
                f"--params {run}={params}: no such run; the results are of {', '.join(sorted(set(frame['run'].dropna())))}"
            )
        frame.loc[frame["run"] == run, "params"] = params
    per_step = options.tokens_per_step
    if per_step is not None:
        frame["tokens"] = frame["tokens"].where(frame["step"].isna(), frame["step"] * per_step)
        frame["step"] = frame["step"].fillna((frame["tokens"] / per_step).round())


def _fill_step(frame: pd.DataFrame, notes: list[str]) -> None:
    """Of finished runs, a checkpoint each, nobody says the step, and nothing needs it but to tell checkpoints apart."""
    known = frame["tokens"].notna().all() and frame["run"].notna().all() and frame["step"].isna().all()
    if known and frame["tokens"].max() < 2.0**63 and (frame.groupby("run")["tokens"].nunique() == 1).all():
        frame["step"] = frame["tokens"]
        notes.append("no column says the step: every run has one checkpoint, whose tokens stand for it")


def _part_sizes(frame: pd.DataFrame, notes: list[str]) -> None:
    """Models of several sizes under one name, as of a family, are a run each."""
    for run, params in frame.groupby("run", sort=False)["params"]:
        sizes = params.dropna().unique()
        if are_sizes(params):
            names = {size: f"{run}-{short(size)}" for size in sizes}
            frame.loc[params.index, "run"] = params.map(names).fillna(run)
            notes.append(f"{run!r} holds {len(sizes)} sizes, a run each: {listed(list(names.values()), 6)}")


def _with_loss(frame: pd.DataFrame, options: ScoreOptions, notes: list[str]) -> pd.DataFrame:
    """The table with the loss of each run and step, from a log or from one of the metrics, whose rows are left out then."""
    text = str(options.loss)
    if not Path(text).exists():
        own, metric = _rows_of_metric(frame, text), text.rpartition("/")[2]
        unit = units.unit_of(metric, remedy="")
        losses = units.to_nats(own.groupby(["run", "step"])["value"].last(), unit)
        notes += [f"loss from {text}", *units.notes(metric, unit, remedy=""), *units.few_nats(metric, unit, losses)]
        keys = pd.MultiIndex.from_frame(frame[["run", "step"]])
        return frame.drop(own.index).assign(
            loss=pd.Series(losses.reindex(keys).to_numpy(), frame.index).drop(own.index)
        )
    curves = _curves(Path(text))
    runs = sorted(set(frame["run"].dropna()))
    for run in runs:
        curve = curves.get(run) or (next(iter(curves.values())) if len(curves) == len(runs) == 1 else None)
        if curve is None:
            raise InputError(f"--loss {text}: has no run {run!r} (it has {', '.join(curves)}); name the runs alike")
        rows = frame["run"] == run
        frame.loc[rows, "loss"] = _at(curve, frame.loc[rows, "step"].to_numpy(float), text, run)
    notes.append(f"loss from {text}: {', '.join(curves)}")
    return frame


def _rows_of_metric(frame: pd.DataFrame, text: str) -> pd.DataFrame:
    """The scores of TASK/METRIC; of TASK:5shot/METRIC too where no other number of shots has it. Raises InputError."""
    task, slash, metric = text.rpartition("/")
    rows = frame[frame["metric"] == metric]
    if slash and task not in set(rows["task"]):
        of_shots = {name for name in rows["task"] if SHOTS.fullmatch(str(name).removeprefix(task))}
        task = of_shots.pop() if len(of_shots) == 1 else task
    own = rows[rows["task"] == task]
    if not slash or own.empty:
        known = frame[["task", "metric"]].drop_duplicates().astype(str)
        losses = [f"{name}/{of}" for name, of in known.itertuples(index=False) if LOSS.search(of)]
        few = f" (of losses they have {listed(sorted(losses), MOST_LOSSES)})" if losses else ""
        raise InputError(
            f"--loss {text}: no such file, and the results have no such metric{few}; give a log, or TASK/METRIC"
        )
    return own


def _curves(path: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """(step, loss) by run: the iid loss of a run directory, else of a log."""
    if is_run(path) or (path / "positions").is_dir():
        means = tables.mean_loss(tables.read(tables.POSITIONS, path))
        iid = means[means["split"] == "iid"].sort_values("step")
        return {
            str(run): (rows["step"].to_numpy(float), rows["loss"].to_numpy(float)) for run, rows in iid.groupby("run")
        }
    read: list[Curve] = logs.read(path, LogOptions())
    return {curve.run: (curve.frame["step"].to_numpy(float), curve.frame["loss"].to_numpy(float)) for curve in read}


def _at(curve: tuple[np.ndarray, np.ndarray], step: np.ndarray, text: str, run: str) -> np.ndarray:
    """The loss at each step, straight between those that were logged; nothing is carried beyond them."""
    known, loss = curve
    outside = (step < known[0]) | (step > known[-1])
    if outside.any():
        raise InputError(
            f"--loss {text}: is of steps {known[0]:.0f} to {known[-1]:.0f}, and {run!r} has scores of step "
            f"{step[outside][0]:.0f}; give a log that covers them"
        )
    return np.interp(step, known, loss)


def fill_chance(frame: pd.DataFrame, notes: list[str]) -> None:
    """Chance of accuracies of well-known tasks, where the results do not say it."""
    filled = set()
    unknown = frame.loc[frame["chance"].isna() & frame["metric"].map(lambda name: bool(ACCURACY.match(str(name))))]
    for task, metric in sorted(set(zip(unknown["task"], unknown["metric"]))):
        names = (level for names, level in CHANCE.items() if re.match(rf"({names})([_:\W]|$)", str(task).lower()))
        level = next(names, None)
        if level is not None:
            same = (frame["task"] == task) & (frame["metric"] == metric) & frame["chance"].isna()
            percent = _in_percent(frame[same], str(metric))
            frame.loc[same, "chance"] = percent.map({True: 100 * level, False: level})
            both = [f"{100 * level:.3g}{'' if percent.all() else ' (percent)'}"] * bool(percent.any())
            filled.add(f"{task} {' or '.join([f'{level:.3g}'] * (not percent.all()) + both)}")
    if filled:
        notes.append(f"chance by the number of choices: {', '.join(sorted(filled))}")


def _in_percent(rows: pd.DataFrame, metric: str) -> pd.Series:
    """Whether each accuracy of a task of few choices is in percent; a run's are in one unit. Raises InputError."""
    percent = rows.groupby("run")["value"].transform("max") > 1 + ROUNDING
    mixed = rows[percent & (rows["value"] > 0) & (rows["value"] <= 1)]
    if len(mixed) and not GENERATED.match(metric):
        run, task, low = mixed.iloc[0][["run", "task", "value"]]
        high = rows.loc[rows["run"] == run, "value"].max()
        raise InputError(
            f"{run!r} holds shares and percents of {task}, {metric} ({low:g} and {high:g}); write all of a run's in one unit"
        )
    return percent
