"""A ladder as its runs: what the analyses and the report are given."""

import json
from pathlib import Path

from emergence_train import files
from emergence_train.errors import InputError
from emergence_train.ladder.file import INDEX, Ladder, read
from emergence_train.recorder.naming import is_run


def write_index(ladder: Ladder) -> None:
    """The runs' names, in the ladder's directory."""
    files.make_directory(ladder.out)
    files.write_json(ladder.out / INDEX, {"name": ladder.file.name, "runs": [row.run for row in ladder.rows]})


def expanded(paths: list[str]) -> list[str]:
    """The paths, with the runs that have begun in the place of a ladder's file or directory."""
    runs: list[str] = []
    for given in paths:
        path = Path(given)
        if path.suffix in (".yaml", ".yml") and path.is_file():
            path = read(path).out
            if not (path / INDEX).is_file():
                raise InputError(f"{given}: no run has begun; run `emergence-train ladder {given}` first")
        runs += _runs(path) if (path / INDEX).is_file() else [given]
    return runs


def _runs(out: Path) -> list[str]:
    """Those with a checkpoint: one that has just begun has no tables yet."""
    try:
        names = json.loads((out / INDEX).read_text())["runs"]
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"{out / INDEX}: cannot be read ({' '.join(str(error).split())}); run the ladder again"
        ) from None
    begun = [out / name for name in names if is_run(out / name) and any((out / name).glob("positions/step-*"))]
    if not begun:
        raise InputError(f"{out}: no run of this ladder has a checkpoint yet; wait for one")
    return [str(run) for run in begun]
