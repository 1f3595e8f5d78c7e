"""Lightning's CSVLogger: a directory of version_N/metrics.csv, whose rows of a step are apart for each quantity."""

from pathlib import Path

from emergence_train.analysis.logs.cells import read_log
from emergence_train.analysis.logs.log import Format, Log

FILE = "metrics.csv"


def read_lightning(path: Path) -> list[Log]:
    """A run each metrics.csv below a directory, named by its way from there; a file alone by its directory."""
    files = sorted(path.rglob(FILE)) if path.is_dir() else [path]
    return [read_log(file, _name(path, file)) for file in files]


def _name(path: Path, file: Path) -> str:
    below = file.parent.relative_to(path).as_posix() if path.is_dir() else "."
    return file.resolve().parent.name if below == "." else below


def _takes(path: Path, _: str) -> bool:
    return path.is_dir() and next(path.rglob(FILE), None) is not None


LIGHTNING = Format("lightning", "Lightning's CSVLogger: a directory of version_N/metrics.csv", _takes, read_lightning)
