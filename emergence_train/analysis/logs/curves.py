"""A log's columns understood: which is the step, the loss, the tokens, the learning rate, by the names that frameworks use."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from emergence_train.analysis.logs import units
from emergence_train.analysis.logs.log import Log, LogOptions
from emergence_train.errors import InputError

# The names by which frameworks log each quantity, the likeliest first, as `_plain` writes them. A counter that the logger
# itself made (W&B's _step counts its own calls) comes after the trainer's.
NAMES = {
    "step": "step train_step train_global_step trainer_global_step global_step optimizer_step training_step "
    "steps training_steps num_steps iteration iterations iter train_iter iters num_updates updates update _step",
    "loss": "loss train_loss lm_loss train_lm_loss loss_train training_loss train_loss_step train_ce_loss "
    "train_crossentropyloss train_cross_entropy_loss optim_ce_loss nll_loss",
    "lr": "lr learning_rate train_lr train_learning_rate optim_lr optim_learning_rate lr_adamw lr_adam lr_muon",
    "tokens": "tokens consumed_tokens tokens_seen total_tokens train_tokens num_tokens n_tokens tokens_consumed "
    "num_input_tokens_seen train_num_input_tokens_seen throughput_total_tokens train_total_tokens",
    "params": "params non_embedding_params",
    "run": "run",
}
# Where a log has no training loss: validation losses, then what units.py converts
VALIDATION = (
    "val_loss eval_loss valid_loss validation_loss dev_loss test_loss loss_val loss_eval loss_valid loss_validation "
    "val_iid_loss"
)
OTHER_UNITS = [
    f"{split}{name}"
    for split in ("", "train_", "val_", "eval_")
    for name in ("loss_bits", "ppl", "perplexity", "bpb", "bits_per_byte")
]
QUANTITIES = tuple(NAMES)
MOST_BAD = 0.1  # share of rows whose loss is no finite number, beyond which a log is refused
RISES = 4  # a log whose step rises so many times as often as it falls is in the order of time
SHOWN = 12  # columns named in a message


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
    runs = [part for log in logs for part in _by_run(log, options)]
    if options.run is not None and len(runs) > 1:
        names = [log.name for log in runs]
        runs = [log for log in runs if log.name == options.run]
        if not runs:
            raise InputError(
                f"{logs[0].path}: has no run {options.run!r} (it has {_listed(names)}); give --run one of these, or none"
            )
    return [_curve(log, options) for log in runs]


def _by_run(log: Log, options: LogOptions) -> list[Log]:
    column = _find(log, options).get("run")
    if column is None:
        return [log]
    known = log.rows[log.rows[column].notna()]
    return [
        Log(str(name), log.path, rows, log.tokens_per_step, log.end_step)
        for name, rows in known.groupby(known[column].astype(str), sort=True)
    ]


def _plain(name: str) -> str:
    """A column's name with words joined by underscores: train/loss, train.loss and "Train loss" are one."""
    plain = re.sub(r"[^a-z0-9]+", "_", str(name).lower())
    return plain.rstrip("_") if str(name).startswith("_") else plain.strip("_")


def _find(log: Log, options: LogOptions) -> dict[str, str]:
    """Our columns as the log calls them."""
    plain: dict[str, str] = {}
    for column in log.rows.columns:
        if log.rows[column].notna().any():
            plain.setdefault(_plain(column), column)
    columns = {}
    for quantity, names in NAMES.items():
        if quantity in options.columns:
            if (column := options.columns[quantity]) not in log.rows:
                raise InputError(
                    f"{log.path}: has no column {column!r} (it has {_listed(log.rows)}); correct "
                    f"--column {quantity}={column}"
                )
            columns[quantity] = column
        elif column := next((plain[name] for name in _known(quantity, names) if name in plain), None):
            columns[quantity] = column
    return columns


def _known(quantity: str, names: str) -> list[str]:
    return names.split() + ([*VALIDATION.split(), *OTHER_UNITS] if quantity == "loss" else [])


def _listed(names: Iterable[object]) -> str:
    words = [str(name) for name in names]
    return ", ".join(words[:SHOWN]) + (f" and {len(words) - SHOWN} more" if len(words) > SHOWN else "")


def _curve(log: Log, options: LogOptions) -> Curve:
    columns = _find(log, options)
    per_step = options.tokens_per_step or log.tokens_per_step
    steps_from_tokens = "step" not in columns and "tokens" in columns
    missing = [name for name in ("step", "loss") if name not in columns and not (name == "step" and steps_from_tokens)]
    if missing:
        flags = " ".join(f"--column {name}=NAME" for name in missing)
        raise InputError(
            f"{log.path}: no column was recognised as {' or '.join(missing)} (it has {_listed(log.rows)}); give {flags}"
        )
    values = pd.DataFrame({name: _numbers(log, columns[name]) for name in columns if name != "run"})
    column, name = columns["loss"], _plain(columns["loss"])
    unit = options.loss_unit or units.unit_of(name)
    if unit not in units.UNITS:
        raise InputError(f"loss unit {unit!r}: unknown; choose nats, bits or perplexity")
    values["loss"] = units.to_nats(values["loss"], unit)
    notes = [_reading(columns, options, per_step), *units.notes(name, column, unit)]
    if name in VALIDATION.split() and "loss" not in options.columns:
        notes.append(f"no training loss: {column!r} counts as the curve; --column loss=NAME takes another")
    if steps_from_tokens:
        values["step"] = _steps_of(values["tokens"], per_step)
        if not per_step:
            notes.append("no steps: its rows are counted as steps, by their tokens; --tokens-per-step gives them")
    rows = _with_loss(log, values, columns, notes)
    frame = pd.DataFrame({"step": rows["step"].round().astype(int)})
    frame["tokens"] = _tokens(values, rows, options, per_step)
    frame["lr"] = _along(values, "lr", rows["step"].to_numpy(float)) if "lr" in values else np.nan
    frame["loss"] = rows["loss"].to_numpy(float)
    return Curve(log, options.run or log.name, _params(values, options), frame.reset_index(drop=True), notes)


def _steps_of(tokens: pd.Series, per_step: int | None) -> pd.Series:
    """Steps of a log without: by the tokens of one, else the rank of a row's tokens, counted from 1."""
    if per_step:
        return pd.Series(np.round(tokens / per_step), tokens.index)
    return tokens.where(np.isfinite(tokens)).rank(method="dense")


def _numbers(log: Log, column: str) -> pd.Series:
    """A column as float64: NaN where a row lacks it, infinite where what stands there is no finite number."""
    raw = log.rows[column]
    absent = raw.isna() & raw.map(lambda value: not isinstance(value, float)) | raw.eq("")
    text = raw.map(lambda value: value.replace(",", "") if isinstance(value, str) else value)
    numbers = pd.to_numeric(text, errors="coerce").astype(float)
    return numbers.where(numbers.notna() & np.isfinite(numbers), np.inf).mask(absent, np.nan)


def _with_loss(log: Log, values: pd.DataFrame, columns: dict[str, str], notes: list[str]) -> pd.DataFrame:
    """The rows that have a step and a finite loss, one a step; what is left out is counted in `notes`."""
    rows = values[values["loss"].notna() & values["step"].notna()]
    if rows.empty:
        raise InputError(
            f"{log.path}: no row has both {columns.get('step', 'a step')!r} and {columns['loss']!r}; "
            f"name others with --column step=NAME --column loss=NAME"
        )
    bad = ~np.isfinite(rows["loss"]) | ~np.isfinite(rows["step"])
    if bad.any():
        count, first = int(bad.sum()), bad.index[int(np.argmax(bad.to_numpy()))]
        what = f"{count} of {len(rows)} rows have no finite step and loss, the first is row {first}"
        if bad.mean() > MOST_BAD:
            raise InputError(f"{log.path}: {what}; correct the file, or name other columns with --column")
        notes.append(f"left out: {what}")
        rows = rows[~bad]
    again = _logged_again(rows["step"].to_numpy(float))
    if again.any():
        notes.append(
            f"{int(again.sum())} rows are of steps that were logged again later (a resumed run?); the last counts"
        )
        rows = rows[~again]
    return rows.sort_values("step", kind="stable")


def _logged_again(step: np.ndarray) -> np.ndarray:
    """(n,) rows of steps that come again, and those of a run that was taken back to before them."""
    again = pd.Series(step).duplicated(keep="last").to_numpy(copy=True)
    change = np.diff(step)
    if np.sum(change > 0) >= RISES * np.sum(change < 0):
        later = np.minimum.accumulate(step[::-1])[::-1]  # the lowest step from each row on
        again[:-1] |= step[:-1] >= later[1:]
    return again


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
