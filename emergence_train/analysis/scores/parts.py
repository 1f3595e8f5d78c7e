"""What tells scores of a run, step, task and metric apart: shots, subsets and prompts are of the task, seeds and data of the run.

Readers write such columns behind OTHER, whatever they are called.
"""

import re
from collections.abc import Iterable

import pandas as pd

from emergence_train.analysis.logs.names import plain
from emergence_train.errors import InputError, listed

OTHER = "other: "  # before the name of a column that is none of ours
SHOTS, FILTER = "num_fewshot", "filter"
SHOT = re.compile(r"(?:num_?|n_?)?(?:few)?_?shots?|fewshot(?:_\w+)?|n_?fewshot")
OF_TASK = "dataset subset subtask subject category split prompt prompt_id prompt_variant prompt_template template variant format"
NAME = re.compile(r"[\w .,:/+()-]{1,40}")  # of a prompt, and not its text
OF_RUN = (
    "data data_recipe recipe corpus mix mixture data_mix training_data pretraining_data experiment exp seed random_seed "
    "trial replicate run_id"
)
OF_DATA = re.compile(r"data|corpus|recipe|mix")
# Columns that say when, where and by what a score was made, or measure
NO_PART = re.compile(
    r"date|time|hash|commit|version|unnamed|url|path|file|stderr|_se$|(^|_)(std|ci)(_|$)|batch|duration|elapsed|seconds|correct"
    r"|device|gpu|host|node"
)
FEW = 20  # values of a column that may tell apart what its name does not say
KEY = ["run", "params", "step", "task", "metric"]
DATA = "data"  # of evaluations: runs of other data are another family


def parted(frame: pd.DataFrame, where: str, notes: list[str]) -> pd.DataFrame:
    """Scores with what tells them apart in the names of their tasks, metrics and runs, and without the columns OTHER.

    Of a task is what differs in one run, and shots; of a run what differs at one step. Raises InputError for other columns.
    """
    others = {plain(str(name).removeprefix(OTHER)): name for name in frame if str(name).startswith(OTHER)}
    dropped = list(others.values())
    others |= {DATA: DATA} if DATA in frame else {}
    frame = frame.copy()
    for name, column in others.items():
        within = KEY[3:] if SHOT.fullmatch(name) else ["run", *KEY[3:]]
        if not is_of_task(name, frame[column]) or not _differs(frame, column, within):
            continue
        known = frame[column].notna() & frame.groupby("task")[column].transform("nunique").gt(1)
        if name == FILTER:
            named = known & frame[column].ne("none")
            frame.loc[named, "metric"] += "_" + frame.loc[named, column].astype(str)
        else:
            frame.loc[known, "task"] += ":" + frame.loc[known, column].map(_shown) + "shot" * bool(SHOT.fullmatch(name))
        notes.append(f"{column.removeprefix(OTHER)!r} tells {'metrics' if name == FILTER else 'tasks'} apart")
    for name in OF_RUN.split() if frame["run"].notna().all() else ():  # no run: the next check says so
        column = others.get(name)
        if (
            column is None
            or not _differs(frame, column, KEY)
            or frame["step"].nunique() > 1
            and not _lasts(frame, column)
        ):
            continue
        known, cells = frame[column].notna(), frame[column].map(_shown)
        if OF_DATA.search(name) and column != DATA:
            frame[DATA] = frame.get(DATA, pd.Series("", frame.index)).fillna("").astype(str) + cells.where(known, "")
        elif column != DATA:
            cells = cells.where(~cells.str.isdigit(), name + cells)
        frame["run"] += ("-" + cells).where(known, "")
        notes.append(f"a run for each {column.removeprefix(OTHER)!r}")
    _check(frame, others, where)
    return frame.drop(columns=dropped)


def candidates(frame: pd.DataFrame, taken: Iterable[str]) -> dict[str, pd.Series]:
    """The columns of a table, but those taken, that may tell scores apart: by their names, or by few values; behind OTHER."""
    others = frame[[name for name in frame if name not in {*taken}]]
    return {
        f"{OTHER}{name}": cells
        for name, cells in others.items()
        if is_of_task(plain(name), cells) or plain(name) in OF_RUN.split() or 1 < cells.nunique() <= FEW
    }


def is_of_task(name: str, cells: pd.Series) -> bool:
    if name.startswith("prompt") and (cells.nunique() > FEW or not all(map(NAME.fullmatch, map(str, cells.dropna())))):
        return False  # the items' texts
    return SHOT.fullmatch(name) is not None or name in (FILTER, *OF_TASK.split())


def _differs(frame: pd.DataFrame, column: str, key: list[str]) -> bool:
    """Whether rows of the same key have several values in a column."""
    return bool((frame.groupby(key, dropna=False)[column].nunique() > 1).any())


def _lasts(frame: pd.DataFrame, column: str) -> bool:
    """Whether several values are at more than one step each, unlike what is measured, or of a score that was made again."""
    return bool((frame.groupby(column)["step"].nunique() > 1).sum() > 1)


def _check(frame: pd.DataFrame, others: dict[str, str], where: str) -> None:
    """Raises InputError where a column of few values, the same at every step, tells apart what is left of one key."""
    again = frame[frame.duplicated(KEY, keep=False)]
    if again[["run", "step"]].isna().any(axis=None):
        return
    for name, column in others.items():
        values = again.groupby(KEY, dropna=False)[column].nunique()
        few = 1 < again[column].nunique() <= 2 * values.max()
        if few and _lasts(frame, column) and not NO_PART.search(name) and not again.duplicated([*KEY, column]).any():
            own, cells = column.removeprefix(OTHER), listed([*map(_shown, again[column].unique())], 4)
            raise InputError(
                f"{where}: scores of a run, step, task and metric differ by {own!r} ({cells}); give --column run={own}, or keep "
                f"the rows of one"
            )


def _shown(value: object) -> str:
    """0 of 0.0 and "0.0"."""
    return re.sub(r"(?<=\d)\.0+$", "", str(value).strip())
