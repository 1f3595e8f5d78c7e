"""The runs of a log file apart: those of several columns, of a column that names them, and of models of several sizes."""

import re
from dataclasses import replace

import numpy as np

from emergence_train.analysis.logs.log import Log, LogOptions
from emergence_train.analysis.logs.names import NAMES, ONE_RUN, SHOWN, find, plain
from emergence_train.analysis.logs.numbers import are_sizes, numbers_of, scales_of
from emergence_train.analysis.logs.resumption import JOBS, resumed
from emergence_train.analysis.logs.validation import training_rows
from emergence_train.errors import InputError, listed
from emergence_train.formatting import short


def runs_of(logs: list[Log], options: LogOptions) -> list[tuple[Log, LogOptions]]:
    """Each run of a file as a log of its own, with the options that hold for it. Raises InputError where --run names none."""
    logs = [_once(_with_named(log, options), options) for log in logs]
    columns = [part for log in logs for part in _by_column(log, options, len(logs) > 1)]
    runs = [part for log, own in columns for part in _by_run(log, own, several=len(columns) > 1)]
    runs = [part for log, own in runs for part in _by_size(log, own)]
    if options.run is None or len(runs) == 1:
        return runs
    taken = [(log, own) for log, own in runs if log.name == options.run]
    if not taken:
        names = listed([log.name for log, _ in runs], SHOWN)
        raise InputError(
            f"{logs[0].path}: has no run {options.run!r} (it has {names}); give --run one of these, or none"
        )
    return taken


def _with_named(log: Log, options: LogOptions) -> Log:
    """A log with the fields of its lines that `--column` names; with all of them, for the refusal, where one is not there."""
    named = {name for name in options.columns.values() if name != ONE_RUN and "*" not in name}
    if log.others is None or named <= {*log.rows}:
        return replace(log, others=None)  # which hold the lines of the file
    others = log.others().reindex(log.rows.index)
    names = [name for name in others if name not in log.rows]
    if named <= {*log.rows, *names}:
        names = [name for name in names if name in named]
    return replace(log, rows=log.rows.join(others[names]), others=None)


def _once(log: Log, options: LogOptions) -> Log:
    """A log without the rows that stand again later, equal in every column but pandas' own, as exports and joins have them."""
    # Who looks for the others refuses them
    named = {ours: name for ours, name in options.columns.items() if name in log.rows}
    columns = find(log, replace(options, columns=named))
    along = columns.get("step") or columns.get("tokens")
    if along is None:
        return log
    counted = log.rows[log.rows[along].notna()]
    again = counted[counted[along].duplicated(keep=False)]
    names = [name for name in again if not str(name).startswith("Unnamed: ")]
    copies = again[names].astype(str).duplicated(keep="last")
    if not copies.any():
        return log
    note = f"{int(copies.sum())} rows stand again later, equal in every column that is read: they count once"
    return replace(log, rows=log.rows.drop(index=copies[copies].index), notes=(*log.notes, note))


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
