"""Which lines and rows of a log are of a validation, whatever the loss in them is called: they are none of the training.

    [valid] step: 500 loss: 3.9         eval: step=500, loss=3.9        Evaluation at step 500 loss 3.9
    {"split": "val", "step": 500, "loss": 3.9}                          {"is_eval": true, "step": 500, "loss": 3.9}

A field that a validation names as its own ("val_loss: 3.9", "eval time: 2.1s") makes none of its line.
"""

import re
from collections.abc import Mapping
from dataclasses import replace

import pandas as pd

from emergence_train.analysis.logs.log import TRAINING, VALIDATION, Log
from emergence_train.analysis.logs.names import NAMES, RUNS, SHOWN, VALIDATES, plain
from emergence_train.analysis.logs.names import VALIDATION as VALIDATION_NAMES
from emergence_train.errors import listed

LEAST_STAGE = 3  # rows; fewer at the end are of a last validation
# Columns that say what a row is of, beside those of which every cell does
NAMED = "split subset data_split mode phase stage kind type event set partition context"
FLAG = re.compile(r"(?:(?:is|in|on|do|during)_)?(?:(train|training)|(\w+?))(?:_(?:mode|phase|step|flag|row))?")
FLAGS = {"true": True, "false": False, "1": True, "0": False, "1.0": True, "0.0": False, "yes": True, "no": False}

# A word of a line; dev and test may also be parts of a machine's or a script's name
_WORD = (
    r"(?<![\w./-])(?:(?:val|valid(?!\s+tok)(?:at\w*+)?|eval(?:s|uat\w*+)?|held[-_ ]?out|holdout)(?![^\W\d_])(?:[\w/-]*+)"
    r"|(?:dev|test)(?:ing)?(?:[ _]?set)?(?![\w/-]))(?!\.\w)"
)
# What comes, or came: "next eval step 500", "until eval"; and names that are given: "exp=eval-heavy"
ELSEWHEN = re.compile(
    rf"\b(?:next|last|until|before|since|best)\s+{_WORD}|\b(?:exp\w*|name|run|model|job)\s*[=:]\s*\S+", re.IGNORECASE
)
_STEPS = r"(?:global_)?(?:steps?|iter\w*|epochs?|batch|updates?|it)\b"
# Its own field: "val loss 3.9", "eval_interval=500", "valid: 3.9", but not "eval step: 500"
OWN = re.compile(
    rf"{_WORD}(?<!step)(?<!steps)(?<!iter)(?<!iteration)(?<!epoch)(?:\s+(?!{_STEPS}|in\s+\d)[A-Za-z][\w/()]*+)*+['\"]?"
    rf"(?:\s*[:=]\s*['\"]?(?:[-+]?[\d.]+(?!\d*[:/%])|nan|inf|false|off|no\b|none|n/a)|\s+[-+]?\d*\.\d|\s+\d+/\d"
    r"|(?<=_tokens)\s+\d|\s+in\s+\d)[\w.+-]*",
    re.IGNORECASE,
)
WORD = re.compile(_WORD, re.IGNORECASE)
OF_STEP = re.compile(rf"{_WORD}[\s/]+{_STEPS}", re.IGNORECASE)
# Behind the loss too: "loss: 3.9 (val)", "loss: 3.9 split: val"
SAID = re.compile(
    rf"[\[(<]\s*{_WORD}\s*[\])>]|\b(?:on|{NAMED.replace(' ', '|')})\b\W{{1,4}}(?:the\s+)?{_WORD}", re.IGNORECASE
)
TRAINS = re.compile(r"\btrain(?:ing)?\b(?!\s+(?:steps?|iter))", re.IGNORECASE)
LOSS = re.compile(r"loss|perplexity|\bppl\b|\bnll\b", re.IGNORECASE)


def without_validation(line: str) -> str:
    """A line of text without the fields that are a validation's own."""
    return OWN.sub("", ELSEWHEN.sub("", line))


def split_of(line: str) -> str:
    """Whether a line of text is of the training or of a validation: by the last such word before its loss."""
    if WORD.search(line) is None:
        return TRAINING
    rest = without_validation(line)
    loss = LOSS.search(rest)
    before = rest[: loss.start()] if loss else rest
    validates = WORD.search(TRAINS.split(before)[-1]) or OF_STEP.search(before) or SAID.search(rest)
    return VALIDATION if validates else TRAINING


def training_rows(log: Log, columns: Mapping[str, str], named: bool) -> Log:
    """A log without its validation's rows, where a column says which they are; with them where it has no others.

    `columns` are ours as the log calls them; `named`: the user named that of the loss, else the training may call its own
    otherwise. Rows of a column that names the runs are all kept: it parts them. So are a run that has such rows alone, rows
    that have a validation's loss beside another, and several that begin after all others: a stage of the training.
    """
    if "loss" not in columns:
        return log
    losses = [columns["loss"], *(c for c in log.rows.columns if not named and plain(c) in NAMES["loss"].split())]
    with_loss = log.rows[losses].notna().any(axis=1)
    for column in log.rows.columns:
        if column in columns.values() or plain(column) in RUNS.split():
            continue
        validates = _validates(column, log.rows.loc[with_loss, column])
        if validates is None:
            continue
        validates &= ~_has_both(log.rows.loc[validates.index], columns["loss"])
        if not validates.all() and (run := columns.get("run")) is not None:
            validates &= ~validates.groupby(log.rows.loc[validates.index, run].astype(str), dropna=False).transform(
                "all"
            )
        if not validates.any() or _is_stage(validates, log.rows, columns):
            continue
        names = sorted({str(cell) for cell in log.rows.loc[validates[validates].index, column]})
        if validates.all():
            note = f"no rows of the training: those of {column!r} {listed(names, SHOWN)} count as the curve"
            return replace(log, notes=(*log.notes, note))
        note = (
            f"left out: {int(validates.sum())} rows of a validation ({column!r} {listed(names, SHOWN)}); --column "
            f"run={column} makes them a run of their own"
        )
        return replace(log, rows=log.rows.drop(index=validates[validates].index), notes=(*log.notes, note))
    return log


def _has_both(rows: pd.DataFrame, loss: str) -> pd.Series:
    """(rows,) whether a row has a validation's loss under its own name, and another one."""
    beside = [column for column in rows.columns if column != loss and plain(column) in VALIDATION_NAMES.split()]
    return (rows[beside].notna() & rows[beside].ne(rows[loss], axis=0)).any(axis=1) & rows[loss].notna()


def _is_stage(validates: pd.Series, rows: pd.DataFrame, columns: Mapping[str, str]) -> bool:
    if "step" not in columns or validates.all() or validates.sum() < LEAST_STAGE:
        return False
    step = pd.to_numeric(rows.loc[validates.index, columns["step"]], errors="coerce")
    return bool(step[validates].min() > step[~validates].max())


def _validates(column: str, cells: pd.Series) -> pd.Series | None:
    """(rows,) which cells of a column say that their row is of a validation; None: the column does not say."""
    words = cells.map(lambda cell: plain(cell) if isinstance(cell, str) else cell)
    known = words[words.notna() & words.ne("")]
    if known.empty:
        return None
    flags = known.map(lambda cell: FLAGS.get(str(cell).lower().replace("_", ".")))
    if flags.notna().all():
        match = FLAG.fullmatch(plain(column))
        if match is None or not (match[1] or VALIDATES.fullmatch(match[2])):
            return None
        return (flags.eq(match[1] is None)).reindex(cells.index, fill_value=False)
    if not known.map(lambda cell: isinstance(cell, str)).all():
        return None
    # "val_iid", "in_eval"; not "small_val_mix"
    validates = known.map(
        lambda cell: any(map(VALIDATES.fullmatch, (cell, *cell.split("_")[:: max(cell.count("_"), 1)])))
    )
    trains = known.map(lambda cell: "train" in cell)
    if plain(column) not in NAMED.split() and not (trains.any() and (validates | trains).all()):
        return None
    return validates.reindex(cells.index, fill_value=False)
