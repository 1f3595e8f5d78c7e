"""Curves of a log: its runs apart, each a row a step with loss, tokens and learning rate as numbers."""

import re
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd

from emergence_train.analysis.logs import units
from emergence_train.analysis.logs.counters import RISES, counted_on, through_epochs
from emergence_train.analysis.logs.log import Log, LogOptions
from emergence_train.analysis.logs.names import (
    EPOCHS,
    NAMES,
    ONE_RUN,
    SAMPLES,
    SHOWN,
    VALIDATION,
    find,
    is_another_loss,
    plain,
    samples_of,
    unknown_units,
)
from emergence_train.analysis.logs.numbers import ROLES, Role, are_sizes, is_ambiguous, numbers_of, scales_of
from emergence_train.analysis.logs.ranks import rows_of_lowest
from emergence_train.analysis.logs.resumption import JOBS, check_order, check_runs, logged_again, resumed
from emergence_train.analysis.logs.validation import training_rows
from emergence_train.errors import InputError, listed
from emergence_train.formatting import short

OF_A_STEP = "tokens_per_step num_tokens_per_step"
MOST_STEPS = 1e8  # that a run has
PERPLEXITY = "ppl train_ppl perplexity train_perplexity"  # beside a loss
WHOLE = 1e6  # tokens below which a count is of single ones; means over processes or rows may have parts of larger ones
OWN_COUNTER = "_step"  # W&B's, of its own calls where the trainer gives it no step
# In the name of a loss, what it was logged by: DeepSpeed's Train/Samples/train_loss, Megatron's "lm loss vs samples"
AXIS = re.compile(r"\btrain/(samples)/|(?<![a-z])vs[\W_]*(samples|tokens)(?![a-z])", re.IGNORECASE)
UNEVEN = 1.1  # by so much the mean tokens of a step differ from their median where rows are not of as many steps each
MOST_BAD = 0.1  # share of rows whose loss is no finite number, beyond which a log is refused


@dataclass(frozen=True)
class Curve:
    """One run of a log: frame with step, tokens, lr, loss, ascending by step; tokens 0 and lr NaN where unknown."""

    log: Log
    run: str
    params: int
    frame: pd.DataFrame
    notes: list[str] = field(default_factory=list)


def curves_of(logs: list[Log], options: LogOptions) -> list[Curve]:
    """The runs of a file, those of a column `run` apart. Raises InputError naming all that is missing at once."""
    columns = [part for log in logs for part in _by_column(log, options, len(logs) > 1)]
    runs = [part for log, own in columns for part in _by_run(log, own, several=len(columns) > 1)]
    runs = [part for log, own in runs for part in _by_size(log, own)]
    if options.run is not None and len(runs) > 1:
        names = [log.name for log, _ in runs]
        runs = [(log, own) for log, own in runs if log.name == options.run]
        if not runs:
            raise InputError(
                f"{logs[0].path}: has no run {options.run!r} (it has {listed(names, SHOWN)}); give --run one of these, or none"
            )
    return [_curve(rows_of_lowest(log, find(log, own)), own) for log, own in runs]  # ranks are of one run


def _by_column(log: Log, options: LogOptions, several: bool) -> list[tuple[Log, LogOptions]]:
    """A run for each column that --column loss=PATTERN matches, named by what its * stand for; else the log as it is.

    `several`: the file has other runs, so that the log's own name comes first.
    """
    pattern = options.columns.get("loss", "")
    if "*" not in pattern or pattern in log.rows:
        return [(log, options)]
    others = {ours: name for ours, name in options.columns.items() if ours != "loss"}
    known = {column for ours, column in find(log, replace(options, columns=others)).items() if ours != "loss"}
    form = re.compile("(.*)".join(map(re.escape, pattern.split("*"))))
    parts = []
    for column in log.rows.columns:
        match = None if column in known else form.fullmatch(str(column))
        if match and np.isfinite(numbers_of(log.rows[column])).any():
            words = [log.name, *filter(None, match.groups())] if several else match.groups()
            own = replace(options, columns=others | {"loss": column})
            parts.append((replace(log, name="-".join(words) or log.name), own))
    if not parts:
        raise InputError(
            f"{log.path}: no column is like {pattern!r} (it has {listed(log.rows, SHOWN)}); correct --column"
        )
    return parts


def _by_run(log: Log, options: LogOptions, several: bool) -> list[tuple[Log, LogOptions]]:
    """A run for each value of the column that names them. `several`: there are other logs, so that the log's own name stays."""
    columns = find(log, options)
    log = training_rows(log, columns, "loss" in options.columns)
    columns = find(log, options)
    column = columns.get("run")
    if column is None:
        return [(log, options)]
    known = log.rows[log.rows[column].notna()]
    parts = [(str(name), rows) for name, rows in known.groupby(known[column].astype(str), sort=True)]
    guessed = "run" not in options.columns and plain(column) not in NAMES["run"].split()
    whole = resumed(log, columns, [rows for _, rows in parts]) if guessed else None
    if whole is not None:
        return [(replace(log, rows=whole), options)]
    if JOBS.search(plain(column)) and guessed and len(parts) > 1:
        log = replace(
            log, notes=(*log.notes, f"a run for each {column!r}; --column run={ONE_RUN} reads all rows as one")
        )
    if guessed and (lonely := [name for name, rows in parts if len(rows) == 1]):
        notes = (*log.notes, f"left out: {column!r} {listed(lonely, SHOWN)}, one row each")
        log, parts = replace(log, notes=notes), [(name, rows) for name, rows in parts if len(rows) > 1]
    return [(replace(log, name=f"{log.name}-{name}" if several else name, rows=rows), options) for name, rows in parts]


def _by_size(log: Log, options: LogOptions) -> list[tuple[Log, LogOptions]]:
    """A run for each size of model, where a column says several at the same steps: a model that grew is one run."""
    columns = find(log, options)
    column, along = columns.get("params"), columns.get("step") or columns.get("tokens")
    if column is None or options.columns.get("run") == ONE_RUN:
        return [(log, options)]
    sizes = (numbers_of(log.rows[column], "count") * scales_of(log.rows[column], column)).ffill().bfill()
    if not are_sizes(sizes):
        return [(log, options)]
    if along is not None:
        of_size = numbers_of(log.rows[along], "count").groupby(sizes).agg(["min", "max"]).sort_values("min")
        if (of_size["min"].iloc[1:].to_numpy() > of_size["max"].cummax().iloc[:-1].to_numpy()).all():
            return [(log, options)]
    known = [float(size) for size in sorted(sizes.unique())]
    names = [short(size) for size in known]
    names = [f"{size:.0f}" if names.count(name) > 1 else name for name, size in zip(names, known)]
    notes = (*log.notes, f"a run for each size of {column!r}; --column run={ONE_RUN} reads all rows as one")
    own = replace(options, params=None)  # which is one size's
    return [
        (replace(log, name=f"{log.name}-{name}", rows=log.rows[sizes == size], notes=notes), own)
        for name, size in zip(names, known)
    ]


def _curve(log: Log, options: LogOptions) -> Curve:
    columns = find(log, options)
    per_step = (
        options.tokens_per_step or log.tokens_per_step or ("tokens" not in columns and _tokens_of_a_step(log)) or None
    )
    calls = columns.pop("step") if "step" not in options.columns and _counts_calls(log, columns) else None
    steps_from_tokens = "step" not in columns and "tokens" in columns
    missing = [name for name in ("step", "loss") if name not in columns and not (name == "step" and steps_from_tokens)]
    if missing:
        samples = samples_of(log) if "step" in missing else None
        flags = " ".join(f"--column {name}={samples if samples and name == 'step' else 'NAME'}" for name in missing)
        several = (
            ", or --column loss='*' where each is a run" if "loss" in missing and len(log.rows.columns) > 2 else ""
        )
        others = [column for column in log.rows.columns if is_another_loss(column)] if "loss" in missing else []
        several += (
            f"; {listed(others, SHOWN)} {'are' if others[1:] else 'is'} no step's own loss by name" if others else ""
        )
        if samples is not None:
            flags += " --tokens-per-step N with the tokens of what it counts, a sample or a batch"
        elif "step" in missing:
            several += "; where none counts steps, add a column step that does"
        raise InputError(
            f"{log.path}: no column was recognised as {' or '.join(missing)} (it has {listed(log.rows, SHOWN)}); give "
            f"{flags}{several}"
        )
    _check_axis(log, columns, options)
    roles = {**ROLES, "loss": _role_of_loss(log, columns["loss"], options)}
    values = pd.DataFrame({n: numbers_of(log.rows[columns[n]], roles[n]) for n in columns if n != "run"})
    for name in {"step", "tokens", "params"} & set(values):
        values[name] *= scales_of(log.rows[columns[name]], columns[name])
    column, name = columns["loss"], plain(columns["loss"])
    perplexity = _column(log, PERPLEXITY, "perplexity")
    unit = options.loss_unit or units.unit_beside_perplexity(values["loss"], perplexity) or units.unit_of(column)
    if unit not in units.UNITS:
        raise InputError(f"loss unit {unit!r}: unknown; choose nats, bits or perplexity")
    values["loss"] = units.to_nats(values["loss"], unit)
    notes = [_reading(columns, options, per_step), *log.notes, *unknown_units(log, columns)]
    notes += [] if options.loss_unit == "nats" else units.notes(column, unit)
    if SAMPLES.search(plain(columns.get("step", ""))):
        notes.append(f"{columns['step']!r} counts samples: the steps here are those, and more than the optimizer's")
    if "run" in columns and log.rows[columns["run"]].nunique() > 1:
        run = columns["run"]
        notes.append(f"{run!r} changes while the steps go on: read as one run; --column run={run} parts it")
    if name in VALIDATION.split() and "loss" not in options.columns:
        notes.append(f"no training loss: {column!r} counts as the curve; --column loss=NAME takes another")
    if calls is not None:
        values["tokens"] = _along_calls(numbers_of(log.rows[calls], "count"), values["tokens"])
        notes.append(
            f"{calls!r} counts the logger's calls, or the batch changes: their tokens are not even; --column step={calls} takes "
            "it as it is"
        )
    if steps_from_tokens:
        of_one = per_step or _interval(values["tokens"][values["loss"].notna()])
        values["step"] = np.round(values["tokens"] / of_one) if per_step else _steps_by_tokens(values, of_one)
        if not per_step:
            notes.append(
                f"no steps: {of_one:,.0f} tokens, as between its rows, count as a step; --tokens-per-step N gives them"
            )
    else:
        if options.tokens_per_step is not None:
            values = values.drop(columns="tokens", errors="ignore")
        _count_on(values, _column(log, EPOCHS, "count"), notes)
    rows = _with_loss(log, values, columns, options, notes)
    frame = pd.DataFrame({"step": rows["step"].round().astype(int)})
    frame["tokens"] = _tokens(values, rows, options, per_step)
    if not frame["tokens"].any() and frame["step"].iloc[-1] > MOST_STEPS:
        notes.append(
            f"{columns['step']!r} ends at {frame['step'].iloc[-1]:,}: if it counts tokens, give --tokens-per-step 1"
        )
    if options.tokens_per_step is not None or {"step", "tokens"} & {*options.columns}:
        log = replace(log, course=None)
    if "tokens" in columns and options.tokens_per_step is None:
        _check_tokens(log, values["tokens"], columns, frame)
    frame["lr"] = _along(values, "lr", rows["step"].to_numpy(float)) if "lr" in values else np.nan
    frame["loss"] = rows["loss"].to_numpy(float)
    return Curve(log, options.run or log.name, _params(values, options), frame.reset_index(drop=True), notes)


def _check_axis(log: Log, columns: dict[str, str], options: LogOptions) -> None:
    """Raises InputError where a logger's step counts what the loss's name says it is logged by, as DeepSpeed's monitor does."""
    step, axis = columns.get("step", ""), AXIS.search(columns["loss"])
    if axis and plain(step) in ("step", OWN_COUNTER) and "step" not in options.columns:
        counted = (axis[1] or axis[2]).lower()
        each = "1" if counted == "tokens" else "N, the tokens of a sample"
        raise InputError(
            f"{log.path}: {columns['loss']!r} is logged by {counted}, and {step!r} counts them; give --column step={step} "
            f"--tokens-per-step {each}"
        )


def _role_of_loss(log: Log, column: str, options: LogOptions) -> Role:
    """Small, or a perplexity, whose "5,500" may be either. Raises InputError where all its cells are so."""
    unit = options.loss_unit or units.unit_of(column)
    role: Role = "perplexity" if unit == "perplexity" else "small"
    if is_ambiguous(log.rows[column], role):
        example = log.rows[column].dropna().iloc[0]
        raise InputError(
            f"{log.path}: {column!r} may have decimal commas or thousands ({example!r}); write its decimals with points"
        )
    return role


def _column(log: Log, names: str, role: Role) -> pd.Series | None:
    """The numbers of the first column that has one of these names."""
    column = next((column for column in log.rows.columns if plain(column) in names.split()), None)
    return None if column is None else numbers_of(log.rows[column], role)


def _tokens_of_a_step(log: Log) -> int:
    """The mean of a column that has them; 0 where none does, or they change along the run."""
    counts = _column(log, OF_A_STEP, "count")
    known = np.empty(0) if counts is None else counts[np.isfinite(counts) & (counts > 0)].to_numpy(float)
    if len(known) < 2:
        return 0
    early, late = (float(half.mean()) for half in np.array_split(known, 2))
    return round(float(known.mean())) if 1 / UNEVEN < late / early < UNEVEN else 0


def _counts_calls(log: Log, columns: dict[str, str]) -> bool:
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


def _along_calls(calls: pd.Series, tokens: pd.Series) -> np.ndarray:
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


def _interval(tokens: pd.Series) -> float:
    """Tokens that count as a step of a log without steps: the least between two rows, but not by a slip of the counter."""
    rises = np.diff(np.unique(tokens[np.isfinite(tokens)]))
    return max(rises.min(), np.quantile(rises, 0.1) / 10) if len(rises) else 1.0


def _count_on(values: pd.DataFrame, epoch: pd.Series | None, notes: list[str]) -> None:
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


def _with_loss(
    log: Log, values: pd.DataFrame, columns: dict[str, str], options: LogOptions, notes: list[str]
) -> pd.DataFrame:
    """The rows that have a step and a finite loss, one a step; what is left out is counted in `notes`."""
    rows = values[values["loss"].notna() & values["step"].notna()]
    if rows.empty:
        beside = log.rows.loc[values["loss"].notna()].dropna(axis=1, how="all")
        raise InputError(
            f"{log.path}: no row has both {columns.get('step', 'a step')!r} and {columns['loss']!r}, whose rows have "
            f"{listed(beside, SHOWN)}; name others with --column step=NAME --column loss=NAME"
        )
    bad = ~np.isfinite(rows["loss"]) | ~np.isfinite(rows["step"])
    if bad.any():
        count, first = int(bad.sum()), bad.index[int(np.argmax(bad.to_numpy()))]
        what = f"{count} of {len(rows)} rows have no finite step and loss, the first is row {first}"
        if bad.mean() > MOST_BAD:
            raise InputError(f"{log.path}: {what}; correct the file, or name other columns with --column")
        notes.append(f"left out: {what}")
        rows = rows[~bad]
    if (rows["loss"] < 0).mean() > MOST_BAD:
        raise InputError(
            f"{log.path}: {columns['loss']!r} is negative, as a log-likelihood is; name a loss with --column loss=NAME, or write "
            f"its negative"
        )
    again = logged_again(rows["step"].to_numpy(float))
    if options.columns.get("run") != ONE_RUN:
        if again.any():
            check_runs(log, rows["step"], columns)
        check_order(log, rows["step"])
    if again.any():
        anew = ((rows["step"].diff() < 0) & (rows["step"] <= rows["step"].iloc[0])).any()
        stages = (
            "; if these are stages of one run, give it a column of all its steps with --column step=NAME"
            if anew
            else ""
        )
        notes.append(
            f"{int(again.sum())} rows are of steps that were logged again later (a resumed run?); the last counts{stages}"
        )
        rows = rows[~again]
    return rows.sort_values("step", kind="stable")


def _along(values: pd.DataFrame, name: str, step: np.ndarray) -> np.ndarray:
    """A quantity at `step`, straight between the rows that have it: logs often write it in rows of their own."""
    known = values[np.isfinite(values["step"]) & np.isfinite(values[name])].drop_duplicates("step", keep="last")
    if known.empty:
        return np.full(len(step), np.nan)
    known = known.sort_values("step")
    return np.interp(step, known["step"].to_numpy(float), known[name].to_numpy(float))


def _tokens(values: pd.DataFrame, rows: pd.DataFrame, options: LogOptions, per_step: int | None) -> np.ndarray:
    step = rows["step"].to_numpy(float)
    if "tokens" in values and options.tokens_per_step is None:
        return np.nan_to_num(np.round(_along(values, "tokens", step))).astype(int)
    return np.round(step * (per_step or 0)).astype(int)


def _check_tokens(log: Log, tokens: pd.Series, columns: dict[str, str], frame: pd.DataFrame) -> None:
    """Raises InputError where the unit of the tokens was lost: they are fewer than the steps, or below WHOLE and broken."""
    known = tokens[np.isfinite(tokens)]
    if known.is_monotonic_decreasing:
        return  # of a batch, always the same: the steps count
    broken = (known - known.round()).abs() > 1e-6 * known.abs().clip(lower=1.0)
    step, last = int(frame["step"].iloc[-1]), int(frame["tokens"].iloc[-1])
    if 0 < last < step and "step" in columns or broken.mean() > MOST_BAD and known.max() < WHOLE:
        column = columns["tokens"]
        count = ", or give --tokens-per-step N" if "step" in columns else ""
        raise InputError(
            f"{log.path}: {column!r} ends at {float(known.iloc[-1]):g}, which is no count of the tokens of {step:,} steps; "
            f"write their unit into the name, as 'tokens (M)'{count}"
        )


def _params(values: pd.DataFrame, options: LogOptions) -> int:
    if options.params is not None:
        return options.params
    known = values["params"].to_numpy(float) if "params" in values else np.empty(0)
    known = known[np.isfinite(known)]
    return int(known[0]) if len(known) else 0


def _reading(columns: dict[str, str], options: LogOptions, per_step: int | None) -> str:
    """How the log was read, for its notes."""
    parts = [f"{name} from {columns[name]!r}" for name in ("step", "loss", "lr") if name in columns]
    if "tokens" in columns and options.tokens_per_step is None:
        parts.append(f"tokens from {columns['tokens']!r}")
    elif per_step:
        parts.append(f"tokens {per_step:,} a step")
    return f"read: {', '.join(parts)}"
