"""A ladder as its runs: what the analyses and the report are given."""

import json
from pathlib import Path

from emergence_train import files
from emergence_train.errors import InputError
from emergence_train.input_files import read_text
from emergence_train.ladder.file import INDEX, Identity, Ladder, Row, former_names, read
from emergence_train.recorder.naming import is_run, runs_below


def write_index(ladder: Ladder) -> None:
    """The runs' names in the ladder's directory, and what each stands for, former runs' too: a larger ladder keeps them.

    Raises InputError where another start has given a run another name since the ladder was read, by which it would be trained
    twice, or its name to another run.
    """
    files.make_directory(ladder.out)
    former = former_names(ladder.out, ladder.file.name)
    names = {identity: name for name, identity in former.items()}
    if any(names.get(row.identity, row.run) != row.run or _is_another(former.get(row.run), row) for row in ladder.rows):
        raise InputError(f"{ladder.path}: another start has named its runs meanwhile; run the same command again")
    identities = former | {row.run: row.identity for row in ladder.rows}
    index = {"name": ladder.file.name, "runs": [row.run for row in ladder.rows], "identities": identities}
    files.write_json(ladder.out / INDEX, index)


def _is_another(former: Identity | None, row: Row) -> bool:
    """Whether a run's name stands for another run. One that is no decay is the same with another budget."""
    if former is None:
        return False
    size, tokens, schedule, seed = former
    return (size, tokens if row.parent else row.identity[1], schedule, seed) != row.identity


def expanded(paths: list[str]) -> list[str]:
    """The paths, with the runs that have a checkpoint in the place of a ladder's file or directory, or of any that holds runs.

    A page that `report` has written, which `runs/*` names beside the runs, is left out.
    """
    runs: list[str] = []
    for given in paths:
        path = Path(given)
        if path.suffix in (".yaml", ".yml") and path.is_file():
            path = read(path).out
            if not (path / INDEX).is_file():
                raise InputError(f"{given}: no run has begun; run `emergence-train ladder {given}` first")
        if is_run(path) or (path / "positions").is_dir():
            runs.append(given)
        elif (path / INDEX).is_file():
            runs += _with_checkpoint(path, _of_ladder(path), "of this ladder")
        elif below := runs_below(path):
            runs += _with_checkpoint(path, below, "in it")
        elif (path / "result.json").is_file() and (path / "report.html").is_file():
            raise InputError(
                f"{given}: holds a result and its page and no runs; open {path / 'report.html'}, or leave it out"
            )
        elif len(paths) == 1 or not _is_report(path):
            runs.append(given)
    return runs


def _of_ladder(out: Path) -> list[Path]:
    try:
        names = json.loads(read_text(out / INDEX))["runs"]
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"{out / INDEX}: cannot be read ({' '.join(str(error).split())}); run the ladder again"
        ) from None
    return [out / name for name in names]


def _with_checkpoint(place: Path, runs: list[Path], whose: str) -> list[str]:
    """A run that has just begun has no tables yet."""
    begun = [str(run) for run in runs if is_run(run) and any(run.glob("positions/step-*"))]
    if not begun:
        raise InputError(f"{place}: no run {whose} has a checkpoint yet; wait for one")
    return begun


def _is_report(path: Path) -> bool:
    """Whether a directory holds a page and the analyses beside it, and nothing else."""
    if not (path / "report.html").is_file():
        return False
    return all(entry.name == "report.html" or (entry / "result.json").is_file() for entry in path.iterdir())
