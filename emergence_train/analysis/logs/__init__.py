"""Training logs that other frameworks made, read as curves: a reader a family of formats, a line of FORMATS a format."""

import contextlib
from collections.abc import Sequence
from pathlib import Path

from emergence_train.analysis.logs.cells import HEAD
from emergence_train.analysis.logs.curves import Curve, curves_of
from emergence_train.analysis.logs.delimited import CSV
from emergence_train.analysis.logs.encoded import suffix_of, text_of
from emergence_train.analysis.logs.fields import FIELDS, TABLES
from emergence_train.analysis.logs.jsonl import JSONL
from emergence_train.analysis.logs.lightning import LIGHTNING
from emergence_train.analysis.logs.log import LogOptions
from emergence_train.analysis.logs.megatron import MEGATRON
from emergence_train.analysis.logs.mlflow import MLFLOW
from emergence_train.analysis.logs.names import QUANTITIES
from emergence_train.analysis.logs.ranks import NUMBER
from emergence_train.analysis.logs.tensorboard import TENSORBOARD
from emergence_train.analysis.logs.text import NANOGPT
from emergence_train.analysis.logs.trainer import HF
from emergence_train.analysis.logs.units import UnitError
from emergence_train.analysis.logs.wandb_offline import WANDB
from emergence_train.errors import InputError

__all__ = ["FORMATS", "HEAD", "QUANTITIES", "Curve", "LogOptions", "columns_of", "format_of", "options_of", "read"]

# In the order in which "auto" asks them
FORMATS = {
    entry.name: entry for entry in (TENSORBOARD, MLFLOW, HF, WANDB, JSONL, MEGATRON, NANOGPT, FIELDS, LIGHTNING, CSV)
}


LEAST = 3  # lines with a loss, which are no accident
SHOWN = 60  # letters of a line that a message shows
LONGEST = 20_000_000  # bytes looked through where the beginning says nothing


def options_of(
    format: str,
    run: str | None,
    params: int | None,
    tokens_per_step: int | None,
    columns: list[str],
    loss_unit: str | None = None,
) -> LogOptions:
    """LogOptions from the command line's words; `columns` as OURS=NAME. Raises InputError."""
    if format not in ("auto", "table", *FORMATS):
        raise InputError(f"--format {format}: unknown; choose auto, table, {', '.join(FORMATS)}")
    named = columns_of(columns, QUANTITIES, "loss=eval/loss")
    return LogOptions(format, run, params, tokens_per_step, named, loss_unit)


def columns_of(columns: list[str], known: Sequence[str], example: str) -> dict[str, str]:
    """The words of `--column`, as OURS=NAME with one of `known`: the file's name by ours. Raises InputError."""
    pairs = [text.partition("=") for text in columns]
    for ours, equals, name in pairs:
        if ours not in known or not equals or not name:
            raise InputError(
                f"--column {ours}{equals}{name}: write it as OURS=NAME with one of {', '.join(known)}, as {example}"
            )
    return {ours: name for ours, _, name in pairs}


def format_of(path: Path) -> str | None:
    """The name of the first format that takes the file or directory by its beginning, else by all its text; None: none does."""
    name = _format_by(path, _head(path, HEAD))
    # A log may begin with the source of what wrote it
    if name is None and path.is_file() and path.stat().st_size > HEAD:
        name = _format_by(path, _head(path, LONGEST))
    return name


def _format_by(path: Path, head: str) -> str | None:
    return next((name for name, entry in FORMATS.items() if entry.takes(path, head)), None)


def _head(path: Path, length: int) -> str:
    if path.is_file():
        with contextlib.suppress(OSError):  # a damaged archive: whoever reads it says so
            return text_of(path, length, errors="replace")
    return ""


def read(path: Path, options: LogOptions) -> list[Curve]:
    """The training curves of a log, a run each. Raises InputError for what no format takes."""
    name = format_of(path) if options.format == "auto" else options.format
    if name is None:
        losses = [line.strip() for line in _head(path, HEAD).splitlines() if NUMBER.search(line)]
        if len(losses) >= LEAST and suffix_of(path) not in TABLES:
            line = losses[0][:SHOWN]
            raise InputError(
                f"{path}: not a log that is known: its losses are in lines without a step, as {line!r}; write it before each, as "
                "'step 10 loss 6.1'"
            )
        raise InputError(f"{path}: not a log that is known; give --format {', '.join(FORMATS)}, or a table a header")
    if path.is_dir() and not FORMATS[name].takes(path, ""):
        raise InputError(f"{path}: a directory without a log of {name}; name a file of it, or give another --format")
    try:
        return curves_of(FORMATS[name].read(path), options)
    except UnitError as error:
        raise InputError(f"{path}: {error}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as {name} ({' '.join(str(error).split())}); give --format") from error
