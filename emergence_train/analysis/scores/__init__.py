"""Task results that other programs wrote, read as `evaluations`: recognised by their content, completed by what the user says."""

import re
from dataclasses import replace
from pathlib import Path

import pandas as pd

from emergence_train.analysis.logs.cells import SUFFIXES as TABLES
from emergence_train.analysis.logs.encoded import suffix_of
from emergence_train.analysis.logs.units import UnitError
from emergence_train.analysis.scores import json_tables
from emergence_train.analysis.scores.complete import completed
from emergence_train.analysis.scores.harness import ALL, LIGHTEVAL, LM_EVAL, METRICS, OLMES
from emergence_train.analysis.scores.helm_runs import HELM
from emergence_train.analysis.scores.options import QUANTITIES, ScoreOptions, Scores, options_of
from emergence_train.analysis.scores.score_tables import TABLE, is_ours
from emergence_train.errors import InputError
from emergence_train.input_files import is_pointer, regular
from emergence_train.recorder.naming import is_run, runs_below
from emergence_train.recorder.tables import Frame

__all__ = ["FORMATS", "QUANTITIES", "ScoreOptions", "holds_scores", "options_of", "read", "with_scores"]

# In the order in which "auto" asks them
FORMATS = {entry.name: entry for entry in (LM_EVAL, LIGHTEVAL, OLMES, HELM, TABLE)}
# Of results; .md and the like may hold a table that is made to be read
SUFFIXES = (".json", ".jsonl", ".ndjson", *TABLES, ".md", ".txt", ".tex", ".dat")
# What harnesses write beside their results, an object an item
ITEMS = re.compile(
    r"predictions|requests|recorded-inputs|^samples_|per_instance|scenario_state|instances", re.IGNORECASE
)


def with_scores(paths: list[str | Path], options: ScoreOptions) -> tuple[list[str | Path | Frame], list[str]]:
    """The paths with results of other programs read as evaluations, all of them in one table; and how they were read."""
    theirs = [Path(path) for path in paths if _is_foreign(Path(path), options)]
    unread = (_refusal(Path(path)) for path in paths if Path(path) not in theirs)
    if (reason := next(filter(None, unread), None)) is not None:
        raise InputError(reason)
    if not theirs:
        if replace(options, format="auto").given or options.format not in ("auto", "evaluations"):
            _refuse(Path(paths[0]), options)
        return list(paths), []
    scores = [part for path in theirs for file in files_of(path) for part in read(file, options)]
    frame, notes = completed(scores, options)
    own = [path for path in paths if Path(path) not in theirs]
    return [*own, Frame(theirs[0], frame)], notes


def holds_scores(path: Path) -> bool:
    """Whether a path that is no run holds task results: a table of evaluations, or results of other programs."""
    if suffix_of(path) in SUFFIXES and path.is_file() and {"task", "metric", "value"} <= set(TABLE.columns(path)):
        return True
    return _is_foreign(path, ScoreOptions())


def files_of(path: Path) -> list[Path]:
    """A file, or the results under a directory."""
    if path.is_file():
        return [path]
    files = [file for file in sorted(path.rglob("*")) if suffix_of(file) in SUFFIXES and file.is_file()]
    files = [file for file in files if not is_pointer(file)] or files  # of which none can be read
    # OLMES writes the same again a task, and as metrics.json
    whole = {file.parent for file in files if file.name == ALL}
    files = [file for file in files if file.name == ALL or not (file.parent in whole and METRICS.search(file.name))]
    return [file for file in files if not ITEMS.search(file.name) and _format_of(file) is not None]


def read(file: Path, options: ScoreOptions) -> list[Scores]:
    """The scores of a file, a part for each run and step that it names."""
    name = _format_of(file) if options.format == "auto" else options.format
    if name is None and options.columns and TABLE.columns(file):
        name = TABLE.name
    if name is None:
        known = f"{file}: not task results that are known; give --format {', '.join(FORMATS)}"
        raise InputError(json_tables.refusal(file) or known)
    if name != TABLE.name and not FORMATS[name].takes(file):
        other = f"{file}: holds no results of {name}; name a file of them, or give another --format"
        raise InputError(json_tables.damage(file) or other)
    try:
        return FORMATS[name].read(file, options)
    except UnitError as error:
        raise InputError(f"{file}: {error}") from error
    except InputError:
        raise
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:160]
        raise InputError(f"{file}: cannot be read as {name} ({reason}); name another file, or give --format") from error
    except (AttributeError, KeyError, TypeError) as error:  # lists where that program has objects, and the like
        raise InputError(f"{file}: its JSON is not as {name} writes it; name another file, or give --format") from error


def _refusal(path: Path) -> str | None:
    """Why the JSON of a path is no results, and what to do: of a directory without runs and tables, that of its first file."""
    if not path.is_dir():
        return json_tables.refusal(path)
    if is_run(path) or (path / "evaluations").is_dir() or runs_below(path):
        return None
    files = [file for file in sorted(path.rglob("*")) if file.is_file() and not ITEMS.search(file.name)]
    if any(suffix_of(file) in TABLES for file in files):
        return None
    return next((json_tables.refusal(file) for file in files if suffix_of(file) in json_tables.SUFFIXES), None)


def _refuse(path: Path, options: ScoreOptions) -> None:
    """Raise InputError for a path that is none of the results that the options are of."""
    if options.format == "evaluations" or is_run(path) or (path / "evaluations").is_dir():
        raise InputError(
            f"{path}: is a table of evaluations, which says all of that itself; leave --format, --run, --params, "
            f"--tokens-per-step, --column and --loss out, they are for results of other programs"
        )
    lacks = "holds no task results that are known" if path.exists() else "no such file or directory"
    raise InputError(f"{path}: {lacks}; name a file of results, or a directory that holds some")


def _format_of(file: Path) -> str | None:
    return next((name for name, entry in FORMATS.items() if entry.takes(file)), None)


def _is_foreign(path: Path, options: ScoreOptions) -> bool:
    """Whether a path holds results of other programs, and not one of our tables."""
    if options.format == "evaluations" or not path.exists() or is_run(path) or (path / "evaluations").is_dir():
        return False
    if path.is_dir():
        return any(_is_foreign(file, options) for file in files_of(path))
    if suffix_of(path) not in SUFFIXES:
        return False
    if options.given:
        return True
    return _format_of(path) is not None and not _is_ours(path)


def _is_ours(path: Path) -> bool:
    """Whether a file is a table of evaluations as we write them; a compressed one, or with semicolons, is read as others'."""
    if not is_ours(TABLE.columns(path)):
        return False
    if path.suffix == ".parquet":
        return True
    try:
        return path.suffix == ".csv" and is_ours(list(pd.read_csv(regular(path), nrows=0)))
    except (OSError, ValueError):
        return False
