"""Which column of a log is the step, the loss, the tokens, the learning rate, by the names that frameworks use."""

import functools
import re
from collections.abc import Mapping

import numpy as np
import pandas as pd

from emergence_train.analysis.logs.log import Log, LogOptions
from emergence_train.analysis.logs.numbers import Role, is_logarithm, is_scaled, numbers_of, scale_of, without_unit
from emergence_train.analysis.logs.units import unknown_unit, without_brackets
from emergence_train.errors import InputError, listed

# The names by which frameworks log each quantity, the loss before those that stand beside it; the likeliest first, as `plain`
# writes them. A counter that the logger itself made (W&B's _step counts its own calls) comes after the trainer's.
NAMES = {
    "loss": "loss train_loss lm_loss train_lm_loss loss_train training_loss train_loss_step train_ce_loss "
    "train_crossentropyloss train_cross_entropy_loss optim_ce_loss nll_loss reduced_train_loss "
    "loss_train_total loss_out train_loss_train_total loss_metrics_global_avg_loss",
    "step": "step train_step train_global_step trainer_global_step global_step optimizer_step training_step "
    "steps training_steps num_steps iteration iterations iter train_iter iters num_updates train_num_updates updates update "
    "train_batch time_batch train_time_batch current_steps _step",
    "lr": "lr learning_rate train_lr train_learning_rate optim_lr optim_learning_rate lr_adamw lr_adam lr_muon "
    "optim_lr_group_0 optim_learning_rate_group0 lr_decoupledadamw_group0 train_lr_decoupledadamw_group0 lrm train_lrm",
    "tokens": "tokens consumed_tokens tokens_seen total_tokens tokens_total train_tokens num_tokens n_tokens tokens_consumed "
    "num_input_tokens_seen train_num_input_tokens_seen throughput_total_tokens train_total_tokens train_tokens_total "
    "time_token train_time_token train_token",
    "params": "params non_embedding_params model_size",
    "run": "run",
}
# What else may name the runs of a file, where it has more than one value and is no resumption (resumption.py)
RUNS = (
    "run_name run_id experiment experiment_name exp exp_name model model_name name trial seed job_name job_id job "
    "slurm_job_id slurm_jobid jobid wandb_run_id run_uuid"
)
ONE_RUN = "-"  # instead of a column's name: nothing names runs
# Where a log has no training loss: validation losses, then what units.py converts
VALIDATION = (
    "val_loss eval_loss valid_loss validation_loss dev_loss test_loss loss_val loss_eval loss_valid loss_validation "
    "val_iid_loss"
)
SUMS = "ce_loss total_loss"  # beside one another, or a part
# Words of a validation's name
VALIDATES = re.compile(r"val|valid(?:at\w*)?|eval(?:s|uat\w*)?|dev|test(?:ing|set)?|held|heldout|holdout")
# Words of a loss that is none of the step's own: of a part of it, of another step, or over several
ANOTHER = (
    "aux auxiliary z mtp router routing balance balancing lb load kl kld best prev previous last min max lowest ema smooth "
    "smoothed running moving"
)
OTHER_UNITS = [
    f"{split}{name}"
    for split in ("", "train_", "val_", "eval_")
    for name in ("loss_bits", "ppl", "perplexity", "bpb", "bits_per_byte")
]
EPOCHS = "epoch train_epoch trainer_epoch current_epoch epochs epoch_idx epoch_num"
WRAPPED = re.compile(r"^(?:metrics?|data|log|values|scalars|history)[/.]")  # what loggers put a row's numbers into
# A count of all so far, in whatever group a logger puts it; it must increase
TOKENS = re.compile(
    r"^(?!.*(?:val|test|per_|batch|target|max|data)).*_(?:tokens|tokens_(?:seen|consumed|trained|processed|total))$"
)
# A count of samples, in which no curve is read unless it is named as the step
SAMPLES = re.compile(r"^(?!.*(?:val|test|per_|batch|target|max)).*(?<![a-z])samples?(?:_(?:seen|consumed|processed))?$")
# Of an optimizer or group: "lr-Adam/group0", no "gpt-lr-1e-4"
RATE = re.compile(r"(^|_)(lr|learning_rate)(_(?!x?\d+e|0_0)|$)")
NO_RATE = re.compile(r"loss|max|min|peak|init|base|decay|scale|mult|ratio|warm|end|final|schedule")
QUANTITIES = tuple(NAMES)
OF_ANY_KIND = "model_size"  # a column of parameters where it counts
LEAST_PARAMS = 1e5  # that many; less is a width, or of unknown unit
OF_A_SUMMARY = 2  # rows of the loss, at most
SHOWN = 12  # columns named in a message


def plain(name: object) -> str:
    """A column's name with words joined by underscores: train/loss, train.loss and "Train loss" are one."""
    return _plain(str(name))


@functools.lru_cache(maxsize=4096)  # text logs ask for each field of each line
def _plain(name: str) -> str:
    words = re.sub(r"[^a-z0-9]+", "_", name.lower())
    return words.rstrip("_") if name.startswith("_") else words.strip("_")


def find(log: Log, options: LogOptions) -> dict[str, str]:
    """Our columns as the log calls them. Raises InputError for one that is named and not there."""
    known: dict[str, str] = {}
    for column in log.rows.columns:
        if log.rows[column].notna().any():
            known.setdefault(plain(column), column)
    for column in list(known.values()):  # "loss (nats)"
        if is_logarithm(column):
            continue
        known.setdefault(plain(without_brackets(column)), column)
        known.setdefault(plain(WRAPPED.sub("", without_unit(column))), column)
        known.setdefault(plain(WRAPPED.sub("", str(column))), column)
    columns: dict[str, str] = {}
    for quantity in NAMES:
        if quantity == "run" and options.columns.get("run") == ONE_RUN:
            continue
        if quantity in options.columns:
            if (column := options.columns[quantity]) not in log.rows:
                raise InputError(
                    f"{log.path}: has no column {column!r} (it has {listed(log.rows, SHOWN)}); correct "
                    f"--column {quantity}={column}"
                )
            columns[quantity] = column
        elif column := _likeliest(quantity, _candidates(quantity, known, log), log, columns):
            columns[quantity] = column
    if (
        "loss" not in columns
        and "value" in known
        and "step" in columns
        and ("loss" in log.name or "tag" not in log.name)
    ):
        columns["loss"] = known["value"]  # TensorBoard's download of one tag, Neptune's of one series
    if (
        "run" not in columns
        and "run" not in options.columns
        and (column := next((known[n] for n in RUNS.split() if _tells_apart(log, known.get(n))), None))
    ):
        columns["run"] = column
    return columns


def column_named(log: Log, names: str, role: Role) -> pd.Series | None:
    """The numbers of the first column that has one of these names, of any spelling; None where none has."""
    column = next((column for column in log.rows.columns if plain(column) in names.split()), None)
    return None if column is None else numbers_of(log.rows[column], role)


def _candidates(quantity: str, known: Mapping[str, str], log: Log) -> list[str]:
    """The columns that may be a quantity by their names, the likeliest first; of tokens an exact count that grows."""
    named = [known[name] for name in _all(quantity) if _is_of(quantity, known.get(name))]
    if quantity == "loss" and not named:
        others = [column for column in known.values() if is_loss(column)]
        return others if len(others) == 1 else []
    if quantity == "lr":
        rates = [c for n, c in known.items() if RATE.search(n) and not NO_RATE.search(n) and _is_of("lr", c)]
        return [*named, *rates]
    if quantity == "params":
        return [column for column in named if plain(column) != OF_ANY_KIND or _are_counts(log, column)]
    if quantity == "tokens":
        named = [column for column in named if numbers_of(log.rows[column], "count").any()]  # 0 where nobody counts
        grow = {
            c: increases(log.rows[c])
            for n, c in known.items()
            if c in named or TOKENS.search(n) and _is_of(quantity, c)
        }
        others = [column for column in grow if grow[column] and column not in named]
        order = {c: (not grow[c], c in others, is_scaled(log.rows[c], c)) for c in [*named, *others]}
        return sorted(order, key=lambda column: order[column])
    return named


def _likeliest(quantity: str, candidates: list[str], log: Log, columns: Mapping[str, str]) -> str | None:
    """The first of a quantity's columns, but none of a summary: in a row or two of the loss, where another is in more.

    Rates and tokens may have rows of their own, with a step.
    """
    rows = {"step": ("loss",), "lr": ("loss", "step"), "tokens": ("loss", "step")}.get(quantity, ())
    beside = [columns[name] for name in rows if name in columns]
    if not candidates or not beside:
        return candidates[0] if candidates else None
    counts = log.rows[[*dict.fromkeys(candidates)]].notna()[log.rows[beside].notna().any(axis=1)].sum()
    if quantity != "step" and not counts.any():
        return None
    return next(c for c in candidates if counts[c] > OF_A_SUMMARY or 2 * counts[c] >= counts.max())


def _is_of(quantity: str, column: str | None) -> bool:
    """Whether a column that is called as a quantity is it: tokens, but neither "tokens (per GPU)" nor their logarithm."""
    if column is None or quantity in ("step", "tokens", "params") and is_logarithm(column):
        return False
    return quantity == "loss" or not unknown_unit(quantity, column)


def _are_counts(log: Log, column: str) -> bool:
    """Whether a column's cells count parameters by their size, and are no widths, words or millions of an unknown unit."""
    counts = numbers_of(log.rows[column], "count").dropna() * scale_of(column)
    return bool(np.isfinite(counts).all() and counts.min() >= LEAST_PARAMS)


def unknown_units(log: Log, columns: dict[str, str]) -> list[str]:
    """Notes on columns that are called as a quantity and were left out, because the unit in their name is not known."""
    return [
        f"left out: {column!r}, whose unit is not known; --column {quantity}={str(column)!r} takes its numbers as they are"
        for quantity in ("step", "tokens", "lr", "params")
        for column in log.rows.columns
        if quantity not in columns
        and unknown_unit(quantity, column)
        and _is_called(quantity, plain(without_brackets(column)))
    ]


def _is_called(quantity: str, name: str) -> bool:
    other = {"tokens": TOKENS, "lr": RATE}.get(quantity)
    return name in NAMES[quantity].split() or (other is not None and other.search(name) is not None)


@functools.cache
def known_names() -> frozenset[str]:
    """Every name by which a quantity is found, as `plain` writes them."""
    return frozenset(name for quantity in NAMES for name in _all(quantity))


def _all(quantity: str) -> list[str]:
    return NAMES[quantity].split() + ([*VALIDATION.split(), *OTHER_UNITS, *SUMS.split()] if quantity == "loss" else [])


def is_loss(column: str) -> bool:
    """metrics/loss, but none of a validation, and no part of one."""
    words = plain(column).split("_")
    return words[-1] == "loss" and not any(map(VALIDATES.fullmatch, words)) and not is_another_loss(column)


def is_another_loss(column: object) -> bool:
    """Whether a loss is none of the step's own by its name, as aux_loss and running_loss."""
    words = plain(column).split("_")
    return words[-1] == "loss" and bool({*words} & {*ANOTHER.split()})


def increases(cells: pd.Series) -> bool:
    """Whether a column's numbers rise, but where a run was resumed."""
    numbers = numbers_of(cells, "count").to_numpy()
    numbers = numbers[np.isfinite(numbers)]
    return bool(len(numbers) > 1 and numbers[-1] > numbers[0] and (numbers[1:] >= numbers[:-1]).mean() > 0.9)


def samples_of(log: Log) -> str | None:
    """The first column that counts the samples of all so far by its name; None where none does."""
    return next((c for c in log.rows.columns if SAMPLES.search(plain(c)) and increases(log.rows[c])), None)


def _tells_apart(log: Log, column: str | None) -> bool:
    """Whether a column has several values in several rows each; some may have one alone, as of a job that crashed."""
    if column is None:
        return False
    counts: pd.Series = log.rows[column].value_counts()
    several = int((counts > 1).sum())
    return several > 1 and len(counts) <= 2 * several
