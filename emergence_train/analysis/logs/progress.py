"""How far a run is at each row of its log, in steps and tokens, where its own counters begin anew, are calls or are missing."""

import re

import numpy as np
import pandas as pd

from emergence_train.analysis.logs.counters import RISES, counted_on, through_epochs
from emergence_train.analysis.logs.log import Log
from emergence_train.analysis.logs.names import SHOWN, plain
from emergence_train.analysis.logs.numbers import numbers_of, scales_of
from emergence_train.errors import InputError, listed

# Of all processes together, which `tokens_per_batch` alone may not be
OF_A_STEP = re.compile(
    r"(?:(?:train|config|args|hparams|throughput|optim|data)_)?(?:(?:global|total|effective)_)?(?:train_)?"
    r"(?:(?:num_)?tokens_per_(?:step|update)|batch_size_(?:in_)?tokens)|(?:global|total)_tokens_per_batch"
)
OWN_COUNTER = "_step"  # W&B's, of its own calls where the trainer gives it no step
UNEVEN = 1.1  # by so much the mean tokens of a step differ from their median where rows are not of as many steps each
WHOLE = 1e6  # tokens below which a count is of single ones; means over processes or rows may have parts of larger ones
MOST_BROKEN = 0.1  # share of counts below WHOLE that have a part, beyond which a log is refused


def tokens_of_a_step(log: Log) -> int:
    """The mean of the first column that has them, one of a step before those of an iteration, which may be a micro-batch.

    0 where none does, or they change along the run.
    """
    columns = [column for column in log.rows.columns if OF_A_STEP.fullmatch(plain(column))]
    for column in sorted(columns, key=lambda name: not plain(name).endswith("tokens_per_step")):
        counts = numbers_of(log.rows[column], "count") * scales_of(log.rows[column], column)
        known = counts[np.isfinite(counts) & (counts > 0)].to_numpy(float)
        if len(known) > 1:
            early, late = (float(half.mean()) for half in np.array_split(known, 2))
            return round(float(known.mean())) if 1 / UNEVEN < late / early < UNEVEN else 0
    return 0


def counts_calls(log: Log, columns: dict[str, str]) -> bool:
    """Whether the column of steps is a logger's own counter beside tokens that are not proportional to it."""
    if plain(columns.get("step", "")) != OWN_COUNTER or "tokens" not in columns:
        return False
    step, tokens = (numbers_of(log.rows[columns[name]], "count").to_numpy(float) for name in ("step", "tokens"))
    both = np.isfinite(step) & np.isfinite(tokens)
    rise, of_step = np.diff(tokens[both]), np.diff(step[both])
    if np.sum(rise > 0) < RISES * np.sum(rise < 0):
        return False  # of a batch, not of the run
    each = (rise / np.where(of_step > 0, of_step, np.nan))[(of_step > 0) & (rise > 0)]
    return len(each) > 1 and not 1 / UNEVEN < rise.sum() / of_step.sum() / np.median(each) < UNEVEN


def along_calls(calls: pd.Series, tokens: pd.Series) -> np.ndarray:
    """Tokens at each of a logger's calls, straight between those that have them; before and after, by the median of a call."""
    known = pd.Series(tokens.to_numpy(), calls.to_numpy())
    known = known[np.isfinite(known) & np.isfinite(known.index)].groupby(level=0).last()
    first, last = float(calls.min()), float(calls.max())
    of_call = float(np.median(np.diff(known) / np.diff(known.index)))
    ends = {
        first: max(known.iloc[0] - of_call * (known.index[0] - first), 0.0),
        last: known.iloc[-1] + of_call * (last - known.index[-1]),
    }
    known = pd.Series(ends | known.to_dict()).sort_index()
    return np.round(np.interp(calls, known.index, known))


def _steps_by_tokens(values: pd.DataFrame, of_one: float) -> np.ndarray:
    """Steps of `of_one` tokens; losses at different tokens are of different steps."""
    tokens = values["tokens"][values["loss"].notna() & np.isfinite(values["tokens"])]
    if tokens.empty:
        return np.full(len(values), np.nan)
    known = np.unique(tokens)
    order = np.arange(len(known))
    step = np.maximum.accumulate(np.round(known / of_one) - order) + order
    return np.interp(values["tokens"], known, step, left=np.nan, right=np.nan)


def steps_of_tokens(log: Log, values: pd.DataFrame, per_step: int | None, notes: list[str]) -> np.ndarray:
    """Steps of a log that has tokens only: of `per_step`, else of its column of a batch, else of the least between two rows.

    A batch of more than that is not one step's.
    """
    if per_step:
        return np.round(values["tokens"] / per_step).to_numpy()
    between, batch = _interval(values["tokens"][values["loss"].notna()]), tokens_of_a_step(log)
    of_one, whose = (batch, "of a batch") if 0 < batch <= UNEVEN * between else (between, "as between its rows")
    notes.append(f"no steps: {of_one:,.0f} tokens, {whose}, count as a step; --tokens-per-step N gives them")
    return _steps_by_tokens(values, of_one)


def _interval(tokens: pd.Series) -> float:
    """Tokens that count as a step of a log without steps: the least between two rows, but not by a slip of the counter."""
    rises = np.diff(np.unique(tokens[np.isfinite(tokens)]))
    return max(rises.min(), np.quantile(rises, 0.1) / 10) if len(rises) else 1.0


def count_on(values: pd.DataFrame, epoch: pd.Series | None, notes: list[str]) -> None:
    """Steps and tokens whose counters began anew, counted on in place: by one another, or steps by the epochs."""
    if "tokens" in values:
        _count_on_by(values, "step", "tokens", notes)
    if epoch is not None:
        both = np.isfinite(values["step"]) & np.isfinite(epoch)
        through = through_epochs(values.loc[both, "step"].to_numpy(), epoch[both].to_numpy())
        if through is not None:
            values.loc[both, "step"] = through[0]
            notes.append(f"steps are counted in each epoch: they are counted through, {through[1]:,.0f} an epoch")
    if "tokens" in values:
        _count_on_by(values, "tokens", "step", notes)


def _count_on_by(values: pd.DataFrame, name: str, other: str, notes: list[str]) -> None:
    rows = values[np.isfinite(values[name]) & np.isfinite(values[other])]
    counted, raised = counted_on(rows[name].to_numpy(), rows[other].to_numpy())
    if raised:
        values[name] += pd.Series(counted - rows[name], rows.index).reindex(values.index).ffill().fillna(0.0)
        at, words = [int(place) for place in rows.index[raised]], {"step": "steps", "tokens": "tokens"}
        notes.append(
            f"the {words[name]} begin anew at row {listed(at, SHOWN)} while the {words[other]} go on: they are counted on "
            f"from there"
        )


def check_tokens(log: Log, tokens: pd.Series, columns: dict[str, str], frame: pd.DataFrame) -> None:
    """Raises InputError where the unit of the tokens was lost: they are fewer than the steps, or below WHOLE and broken."""
    known = tokens[np.isfinite(tokens)]
    if known.is_monotonic_decreasing:
        return  # of a batch, always the same: the steps count
    broken = (known - known.round()).abs() > 1e-6 * known.abs().clip(lower=1.0)
    step, last = int(frame["step"].iloc[-1]), int(frame["tokens"].iloc[-1])
    if 0 < last < step and "step" in columns or broken.mean() > MOST_BROKEN and known.max() < WHOLE:
        column = columns["tokens"]
        count = ", or give --tokens-per-step N" if "step" in columns else ""
        raise InputError(
            f"{log.path}: {column!r} ends at {float(known.iloc[-1]):g}, which is no count of the tokens of {step:,} steps; "
            f"write their unit into the name, as 'tokens (M)'{count}"
        )
