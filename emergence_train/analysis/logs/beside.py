"""What other columns of a log say of its loss and its steps: a perplexity, a counter of micro-batches, the planned end."""

import math
import re

import numpy as np
import pandas as pd

from emergence_train.analysis.logs.log import Log, LogOptions
from emergence_train.analysis.logs.names import VALIDATES, is_another_loss, plain
from emergence_train.analysis.logs.numbers import numbers_of

PERPLEXITY = "ppl train_ppl perplexity train_perplexity"  # beside a loss
LN_OF = {"nats": 1.0, "bits": math.log(2)}
FITS, FITS_NOT = 0.005, 0.01  # share by which a loss and the logarithm of a perplexity differ in half of the rows
RESUMED = 0.25  # share of steps that come again at once, up to which a run went on from its checkpoints
LOSS = re.compile(r"(?:^|_)(?:loss|nll|ce|xent|entropy)(?:_|$)")
MEANS = frozenset(["avg", "average", "mean", "epoch", "total", "sum"])  # of several steps, or of several losses
ITERATION = re.compile(r"(?:train_)?(?:iter|iters|iteration|iterations)")
MICRO = re.compile(
    rf"{ITERATION.pattern}|(?:train_)?(?:micro_?(?:step|batch|iter)|batch)(?:es|s)?(?:_(?:idx|index|num))?"
)
STEPS = re.compile(r"(?:\w+_)?(?:steps?|updates?)")
# What the planned last number is called, of either counter
_END = (
    r"(?:(?:train|training|trainer|config|args|hparams)_)?(?:total|max|planned)_(?:train(?:ing)?_|optimizer_|global_)?"
)
_ENDS = (
    (ITERATION, re.compile(rf"{_END}iter(?:ation)?s?|(?:config_|args_)?(?:train_iters|num_iter(?:ation)?s)")),
    (STEPS, re.compile(rf"{_END}(?:steps?|updates?)|(?:config_|args_)?(?:num|n)_train(?:ing)?_steps|steps_total")),
)


def loss_of_perplexity(log: Log, column: str, options: LogOptions) -> str | None:
    """Another column of a loss, whose perplexity stands beside it, where that is none of `column`: fairseq smooths its loss."""
    ppl = next((c for c in log.rows.columns if plain(c) in PERPLEXITY.split()), None)
    if "loss" in options.columns or ppl in (None, column):
        return None
    logarithm = np.log(numbers_of(log.rows[ppl], "perplexity").where(lambda numbers: numbers > 1))
    # One that scatters about it evenly is the step's own, and the perplexity is of a mean
    if not all(abs(share.median()) > FITS_NOT for share in _misfits(log.rows[column], logarithm, None)):
        return None
    others = [c for c in log.rows.columns if c not in (column, ppl) and _may_be_loss(c)]
    misfits = {
        c: min(
            (share.abs().median() for share in _misfits(log.rows[c], logarithm, options.loss_unit)), default=math.nan
        )
        for c in others
    }
    fitting = {c: misfit for c, misfit in misfits.items() if misfit < FITS}
    return min(fitting, key=lambda c: fitting[c], default=None)


def _may_be_loss(column: object) -> bool:
    words = plain(column).split("_")
    other = any(map(VALIDATES.fullmatch, words)) or is_another_loss(column) or bool(MEANS & {*words})
    return LOSS.search(plain(column)) is not None and not other


def _misfits(cells: pd.Series, logarithm: pd.Series, unit: str | None) -> list[pd.Series]:
    """The shares by which losses differ from a perplexity's logarithm, in `unit` or in each; NaN without rows."""
    loss = numbers_of(cells)
    rows = np.isfinite(loss) & np.isfinite(logarithm)
    factors = [factor for name, factor in LN_OF.items() if unit in (None, name)]
    return [loss[rows] * factor / logarithm[rows] - 1 for factor in factors]


def mean_of_micro_batches(log: Log, rows: pd.DataFrame, step: str | None) -> tuple[pd.DataFrame, list[str]]:
    """-> (rows, one for the neighbours of one step through which a counter of micro-batches rises; what to say of it)."""
    anew = (rows["step"].diff() != 0).cumsum()
    again = anew.diff() == 0
    if step is None or anew[again].nunique() <= RESUMED * anew.nunique() or ITERATION.fullmatch(plain(step)):
        return rows, []
    for column in log.rows.columns:
        if column == step or not MICRO.fullmatch(plain(column)):
            continue
        if _counts_through(numbers_of(log.rows.loc[rows.index, column], "count"), again):
            note = f"{column!r} rises through rows of one step, as of micro-batches: their mean is the step's loss"
            means = rows["loss"].groupby(anew).transform("mean")
            return rows.assign(loss=means)[~anew.duplicated(keep="last")], [note]
    return rows, []


def _counts_through(counter: pd.Series, again: pd.Series) -> bool:
    """Whether it rises through each step, and goes on or begins anew in the next: `batch` may be a batch size of several runs."""
    change = counter.diff()
    goes_on = (change[~again].dropna() > 0).mean() > 0.5  # not at an epoch's begin
    return bool((change[again] > 0).all() and (goes_on or counter[~again].isin((0, 1)).all()))


def planned_end(log: Log, step: str | None, last: int) -> tuple[int, str] | None:
    """The planned last step by a column that always says the same, at least `last`, and its name: LLaMA-Factory's total_steps."""
    forms = [end for counter, end in _ENDS if step and counter.fullmatch(plain(step))]
    ends: dict[float, str] = {}
    for column in (c for c in log.rows.columns if c != step and any(form.fullmatch(plain(c)) for form in forms)):
        for end in numbers_of(log.rows[column], "count").dropna().unique():
            ends.setdefault(float(end), column)
    if len(ends) != 1:
        return None
    ((end, name),) = ends.items()
    return (int(end), name) if math.isfinite(end) and end >= last and end == round(end) else None
