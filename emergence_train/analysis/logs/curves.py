"""The curves of a log: each of its runs with loss, tokens and learning rate as numbers, a row a step."""

import re
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd

from emergence_train.analysis.logs import units
from emergence_train.analysis.logs.beside import PERPLEXITY, loss_of_perplexity, mean_of_micro_batches, planned_end
from emergence_train.analysis.logs.log import Log, LogOptions
from emergence_train.analysis.logs.names import (
    EPOCHS,
    ONE_RUN,
    SAMPLES,
    SHOWN,
    VALIDATION,
    column_named,
    find,
    is_another_loss,
    plain,
    samples_of,
    unknown_units,
)
from emergence_train.analysis.logs.numbers import ROLES, Role, is_ambiguous, numbers_of, scales_of
from emergence_train.analysis.logs.progress import (
    OWN_COUNTER,
    along_calls,
    check_tokens,
    count_on,
    counts_calls,
    steps_of_tokens,
    tokens_of_a_step,
)
from emergence_train.analysis.logs.ranks import rows_of_lowest
from emergence_train.analysis.logs.resumption import check_order, check_runs, logged_again
from emergence_train.analysis.logs.runs_apart import runs_of
from emergence_train.errors import InputError, listed

MOST_STEPS = 1e8  # that a run has
# In the name of a loss, what it was logged by: DeepSpeed's Train/Samples/train_loss, Megatron's "lm loss vs samples"
AXIS = re.compile(r"\btrain/(samples)/|(?<![a-z])vs[\W_]*(samples|tokens)(?![a-z])", re.IGNORECASE)
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
    parted = runs_of(logs, options)
    return [_curve(rows_of_lowest(log, find(log, own)), own) for log, own in parted]  # ranks are of one run


def _curve(log: Log, options: LogOptions) -> Curve:
    columns = find(log, options)
    per_step = (
        options.tokens_per_step or log.tokens_per_step or ("tokens" not in columns and tokens_of_a_step(log)) or None
    )
    calls = columns.pop("step") if "step" not in options.columns and counts_calls(log, columns) else None
    _check_columns(log, columns)
    _check_axis(log, columns, options)
    log, columns = _by_perplexity(log, columns, options)
    values, unit = _values(log, columns, options)
    notes = [_reading(columns, options, per_step), *_notes(log, columns, options, unit)]
    if calls is not None:
        values["tokens"] = along_calls(numbers_of(log.rows[calls], "count"), values["tokens"])
        notes.append(
            f"{calls!r} counts the logger's calls, or the batch changes: their tokens are not even; --column step={calls} takes "
            "it as it is"
        )
    if "step" not in columns:
        values["step"] = steps_of_tokens(log, values, per_step, notes)
    else:
        if options.tokens_per_step is not None:
            values = values.drop(columns="tokens", errors="ignore")
        count_on(values, column_named(log, EPOCHS, "count"), notes)
    rows = _with_loss(log, values, columns, options, notes)
    step = rows["step"].to_numpy(float)
    frame = pd.DataFrame({"step": rows["step"].round().astype(int)})
    frame["tokens"] = _tokens(values, step, options, per_step)
    if not frame["tokens"].any() and frame["step"].iloc[-1] > MOST_STEPS:
        notes.append(
            f"{columns['step']!r} ends at {frame['step'].iloc[-1]:,}: if it counts tokens, give --tokens-per-step 1"
        )
    log = _with_planned_end(log, columns.get("step"), int(frame["step"].iloc[-1]), notes)
    if options.tokens_per_step is not None or {"step", "tokens"} & {*options.columns}:
        log = replace(log, course=None)
    if "tokens" in columns and options.tokens_per_step is None:
        check_tokens(log, values["tokens"], columns, frame)
    frame["lr"] = _along(values, "lr", step) if "lr" in values else np.nan
    frame["loss"] = rows["loss"].to_numpy(float)
    return Curve(log, options.run or log.name, _params(values, options), frame.reset_index(drop=True), notes)


def _with_planned_end(log: Log, step: str | None, last: int, notes: list[str]) -> Log:
    """A log with the end that a column plans, where its file says none otherwise; one beyond the last row is noted."""
    end = planned_end(log, step, last) if log.end_step is None else None
    if end is None or end[0] > MOST_STEPS:  # where none is set it is 2 ** 63 - 1 or the like
        return log
    if end[0] > last:
        notes.append(f"planned end: step {end[0]:,} from {end[1]!r}")
    return replace(log, end_step=end[0])


def _check_columns(log: Log, columns: dict[str, str]) -> None:
    """Raises InputError where no column has the steps (or the tokens instead) or the loss, with what may be given for each."""
    progress = {"step", "tokens"} & {*columns}
    missing = [name for name, known in (("step", progress), ("loss", "loss" in columns)) if not known]
    if not missing:
        return
    samples = samples_of(log) if "step" in missing else None
    remedy = " ".join(f"--column {name}={samples if samples and name == 'step' else 'NAME'}" for name in missing)
    if samples is not None:
        remedy += " --tokens-per-step N with the tokens of what it counts, a sample or a batch"
    if "loss" in missing:
        remedy += ", or --column loss='*' where each is a run" if len(log.rows.columns) > 2 else ""
        if others := [column for column in log.rows.columns if is_another_loss(column)]:
            remedy += f"; {listed(others, SHOWN)} {'are' if others[1:] else 'is'} no step's own loss by name"
    if "step" in missing and samples is None:
        remedy += "; where none counts steps, add a column step that does"
    raise InputError(
        f"{log.path}: no column was recognised as {' or '.join(missing)} (it has {listed(log.rows, SHOWN)}); give {remedy}"
    )


def _by_perplexity(log: Log, columns: dict[str, str], options: LogOptions) -> tuple[Log, dict[str, str]]:
    """A log and its columns, the loss the one whose perplexity stands beside it, with a note where that is another."""
    other = loss_of_perplexity(log, columns["loss"], options)
    if other is None:
        return log, columns
    first = columns["loss"]
    note = f"{other!r} is the loss of the perplexity beside it, not {first!r}; --column loss={first} takes that"
    return replace(log, notes=(*log.notes, note)), columns | {"loss": other}


def _values(log: Log, columns: dict[str, str], options: LogOptions) -> tuple[pd.DataFrame, str]:
    """The columns as numbers, counts in full and the loss in nats; and the unit that it had."""
    roles = {**ROLES, "loss": _role_of_loss(log, columns["loss"], options)}
    values = pd.DataFrame({n: numbers_of(log.rows[columns[n]], roles[n]) for n in columns if n != "run"})
    for name in {"step", "tokens", "params"} & set(values):
        values[name] *= scales_of(log.rows[columns[name]], columns[name])
    perplexity = column_named(log, PERPLEXITY, "perplexity")
    beside = units.unit_beside_perplexity(values["loss"], perplexity)
    unit = options.loss_unit or beside or units.unit_of(columns["loss"])
    if unit not in units.UNITS:
        raise InputError(f"loss unit {unit!r}: unknown; choose nats, bits or perplexity")
    values["loss"] = units.to_nats(values["loss"], unit)
    return values, unit


def _notes(log: Log, columns: dict[str, str], options: LogOptions, unit: str) -> list[str]:
    """What a user should know of how the columns were understood."""
    notes = [*log.notes, *unknown_units(log, columns)]
    notes += [] if options.loss_unit == "nats" else units.notes(columns["loss"], unit)
    if SAMPLES.search(plain(columns.get("step", ""))):
        notes.append(f"{columns['step']!r} counts samples: the steps here are those, and more than the optimizer's")
    if "run" in columns and log.rows[columns["run"]].nunique() > 1:
        run = columns["run"]
        notes.append(f"{run!r} changes while the steps go on: read as one run; --column run={run} parts it")
    if plain(columns["loss"]) in VALIDATION.split() and "loss" not in options.columns:
        notes.append(f"no training loss: {columns['loss']!r} counts as the curve; --column loss=NAME takes another")
    return notes


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
    if len(rows) > 1 and not rows["loss"].any():
        raise InputError(
            f"{log.path}: {columns['loss']!r} is 0 in each of its {len(rows)} rows, as where nobody filled it in; name a loss "
            f"with --column loss=NAME"
        )
    rows, of_steps = mean_of_micro_batches(log, rows, columns.get("step"))
    notes += of_steps
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


def _tokens(values: pd.DataFrame, step: np.ndarray, options: LogOptions, per_step: int | None) -> np.ndarray:
    if "tokens" in values and options.tokens_per_step is None:
        return np.nan_to_num(np.round(_along(values, "tokens", step))).astype(int)
    return np.round(step * (per_step or 0)).astype(int)


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
