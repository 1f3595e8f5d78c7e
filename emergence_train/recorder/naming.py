"""The names that runs are shown by where several are looked at together: their own, and their directory's where two share one."""

import json
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from emergence_train.errors import InputError
from emergence_train.input_files import read_text, regular


def display_names(runs: Sequence[tuple[str, Path]]) -> list[str]:
    """A different name for each of the runs (name, where it lies), in their order.

    A run keeps its name if no other has it. Those that share one are called by the end of their path, as long as it takes to
    tell all apart: runs/a and runs/a_old, both of the name "a", become "a" and "a_old"; x/a and y/a keep "x/a" and "y/a".
    """
    places = [path.resolve() for _, path in runs]
    lengths = [0] * len(runs)  # parts of the path; 0: the run's own name
    while True:
        shown = [_label(name, place, length) for (name, _), place, length in zip(runs, places, lengths)]
        counts = Counter(shown)
        short = [k for k, label in enumerate(shown) if counts[label] > 1 and lengths[k] < len(places[k].parts)]
        if not short:
            break
        for k in short:
            lengths[k] += 1
    # several runs of one file have one path: their names tell them apart
    return [f"{name} ({label})" if counts[label] > 1 else label for (name, _), label in zip(runs, shown)]


def _label(name: str, place: Path, length: int) -> str:
    return "/".join(place.parts[-length:]) if length else name


def is_run(path: Path) -> bool:
    """Whether a path is a run directory that has begun."""
    return (path / "metrics.jsonl").is_file()


def may_be_run(path: Path) -> bool:
    """Whether a path is a run directory that has begun, or a directory that this user may not enter: whoever reads it says so."""
    return os.path.isdir(path) and not os.access(path, os.X_OK) or is_run(path)


def runs_below(place: Path, depth: int = 2) -> list[Path]:
    """The run directories in a directory, at most `depth` levels down, by name. Hidden ones are not looked into."""
    try:
        inside = sorted(entry.name for entry in os.scandir(place) if entry.is_dir() and not entry.name.startswith("."))
    except OSError:
        return []
    runs: list[Path] = []
    for path in (place / name for name in inside):
        if may_be_run(path):
            runs.append(path)
        elif depth > 1:
            runs += runs_below(path, depth - 1)
    return runs


def data_digest(directory: Path) -> str | None:
    """The digest of the data that a run directory was trained on; None where it is not known."""
    try:
        return json.loads(read_text(directory / "data.json"))["data"] or None
    except (InputError, OSError, ValueError, KeyError, TypeError):
        return None


def run_name(directory: Path) -> str:
    """What a run directory calls itself in its tables."""
    try:
        with open(regular(directory / "metrics.jsonl"), encoding="utf-8") as file:
            header = json.loads(file.readline())
        return str(header["run"])
    except (InputError, OSError, ValueError, KeyError, TypeError):  # none yet
        return directory.resolve().name


def names_of(paths: Iterable[str | Path]) -> dict[Path, str]:
    """The names that the run directories among `paths` are shown by; other paths are left out."""
    directories = list(dict.fromkeys(path for path in map(Path, paths) if may_be_run(path)))
    return dict(zip(directories, display_names([(run_name(path), path) for path in directories])))
