"""Which runs several files are of, where their rows name none: one run, or a run each, which a single `--run` must not merge."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from emergence_train.analysis.logs.encoded import stem_of
from emergence_train.analysis.logs.names import plain
from emergence_train.analysis.scores.options import ScoreOptions, Scores, place_of
from emergence_train.analysis.scores.parts import OTHER, is_of_task
from emergence_train.errors import InputError, listed
from emergence_train.recorder.naming import display_names

AGAIN = 0.25  # share of the scores that other files hold with another value, beyond which the files are of several runs
RESUMED = 0.5  # that share where each begins and ends later than the one before, as a run resumed from a checkpoint
ROUNDED = 2e-3  # of the metric's largest value: a copy with three decimals, or of another precision, is no other value
SCORE = ("task", "metric")
SHOWN = 6


def named_by_files(scores: Sequence[Scores], options: ScoreOptions) -> tuple[list[Scores], list[str]]:
    """The scores with the name of its file as the run of each whose rows name none, and what to say of it.

    Only where those files cannot be of one run: they have scores of the same tasks at the same or at alternating checkpoints.
    """
    nameless = [part for part in scores if "run" not in part.rows or part.rows["run"].isna().all()]
    if options.run is not None or len({part.path for part in nameless}) < 2 or not _of_several_runs(nameless):
        return list(scores), []
    paths = list(dict.fromkeys(part.path for part in nameless))
    names = dict(zip(paths, display_names([(stem_of(path), path.with_name(stem_of(path))) for path in paths])))
    named = {id(part): _named(part, names[part.path]) for part in nameless}
    return [named.get(id(part), part) for part in scores], [
        f"a run a file, which have scores of the same tasks: {listed(list(names.values()), SHOWN)}"
    ]


def check_one_run(frame: pd.DataFrame, scores: Sequence[Scores], run: str) -> None:
    """Raise InputError where `--run` makes one run of files that hold other values for the same scores.

    frame: the rows of `scores` in their order, by its index some of them, with run, step, task and metric complete.
    """
    file = np.repeat(np.arange(len(scores)), [len(part.rows) for part in scores])
    own = np.concatenate([_own_runs(part) for part in scores])
    rows = frame[["run", "step", *SCORE, "value"]].assign(file=file[frame.index], own=own[frame.index])
    if not _differ(rows, ["run", "step", *SCORE]):
        return
    paths = list(dict.fromkeys(str(scores[k].path) for k in rows["file"].unique()))
    if len(paths) > 1:
        raise InputError(
            f"--run {run}: {listed(paths, 2)} have other values for the same checkpoints and tasks, as several runs have; leave "
            "--run out, or keep the file of one"
        )


def _named(part: Scores, name: str) -> Scores:
    sizes = (place_of(word)["params"] for word in reversed(name.split("/")))
    known = {"run": name, "params": next((size for size in sizes if size is not None), None)}
    return replace(
        part, rows=part.rows.assign(**{ours: known[ours] for ours in known if _lacks(part.rows, ours, known)})
    )


def _lacks(rows: pd.DataFrame, ours: str, known: dict) -> bool:
    return known[ours] is not None and (ours not in rows or bool(rows[ours].isna().all()))


def _of_several_runs(parts: Sequence[Scores]) -> bool:
    """Whether files hold other values for the same scores, or their checkpoints alternate; those of one run follow."""
    rows = pd.concat([part.rows.assign(file=str(part.path), own=np.nan) for part in parts], ignore_index=True)
    others = [str(name) for name in rows if str(name).startswith(OTHER)]
    apart = [name for name in others if is_of_task(plain(name.removeprefix(OTHER)), rows[name])]
    columns = ["step", "tokens", "params", *SCORE, *apart, "value", "file", "own"]
    rows = rows.reindex(columns=columns).assign(value=pd.to_numeric(rows["value"], errors="coerce"))
    rows["step"] = rows["step"].fillna(rows["tokens"])
    key = ["step", "params", *SCORE, *apart]
    if _differ(rows, key):
        return True
    rows = rows[~rows.duplicated(key) | (_again(rows, key) & (not _follow(rows)))]  # a copy is no other run
    scores = [*SCORE, *apart]
    spans = rows.groupby([*scores, "file"], dropna=False)["step"].agg(["min", "max"]).reset_index()
    spans = spans.sort_values([*scores, "min", "max"])
    before = spans.groupby(scores, dropna=False)["max"].transform(lambda last: last.cummax().shift())
    return bool((spans["min"] < before).any())


def _own_runs(part: Scores) -> np.ndarray:
    named = part.rows["run"] if "run" in part.rows else pd.Series(np.nan, part.rows.index)
    return named.astype(object).to_numpy()


def _differ(rows: pd.DataFrame, key: list[str]) -> bool:
    """Whether many scores are in several files with different values."""
    return bool(_again(rows, key).sum() > (RESUMED if _follow(rows) else AGAIN) * len(rows))


def _again(rows: pd.DataFrame, key: list[str]) -> pd.Series:
    """Which scores are in several files with different values; not where the files themselves name one run."""
    groups = rows.groupby(key, dropna=False)
    largest = rows["value"].abs().groupby([rows[name] for name in SCORE]).transform("max")
    apart = groups["value"].transform("max") - groups["value"].transform("min") > ROUNDED * largest
    same_run = (groups["own"].transform("nunique") == 1) & rows["own"].notna()
    return (groups["file"].transform("nunique") > 1) & apart & ~same_run


def _follow(rows: pd.DataFrame) -> bool:
    """Whether each file begins and ends later than the one before."""
    spans = rows.groupby("file")["step"].agg(["min", "max"]).sort_values(["min", "max"])
    return all(spans[end].is_monotonic_increasing and spans[end].is_unique for end in ("min", "max"))
