"""A ladder's file or directory in the place of its runs."""

import pytest

from emergence_train.errors import InputError
from emergence_train.ladder.collect import expanded, write_index
from emergence_train.ladder.file import read


def begin(ladder, run: str, *, checkpoint: bool = True) -> str:
    """A run directory as far as a start makes it."""
    directory = ladder.directory(run)
    (directory / "positions").mkdir(parents=True)
    (directory / "metrics.jsonl").touch()
    if checkpoint:
        (directory / "positions" / "step-0000000004.parquet").touch()
    return str(directory)


def test_runs_with_a_checkpoint_stand_for_the_ladder(ladder_file):
    path = ladder_file(seeds=[1, 2, 3])
    ladder = read(path)
    write_index(ladder)
    first = begin(ladder, "a-s1")
    begin(ladder, "a-s2", checkpoint=False)
    for given in (path, ladder.out):
        assert expanded(["x.csv", str(given), "runs/y"]) == ["x.csv", first, "runs/y"]


def test_other_paths_stay_as_they_are(tmp_path):
    paths = ["runs/a", "table.parquet", str(tmp_path), "missing.yaml"]
    assert expanded(paths) == paths


def test_a_ladder_that_has_not_begun_is_one_line(ladder_file):
    path = ladder_file()
    with pytest.raises(InputError, match="no run has begun; run `emergence-train ladder .*ladder.yaml` first"):
        expanded([str(path)])
    write_index(read(path))
    with pytest.raises(InputError, match="no run of this ladder has a checkpoint yet; wait for one"):
        expanded([str(path)])
