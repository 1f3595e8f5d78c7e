"""A ladder's file or directory in the place of its runs."""

import json

import pytest

from emergence_train.errors import InputError
from emergence_train.ladder.collect import expanded, write_index
from emergence_train.ladder.file import read

SCHEDULES = {
    "stable": {"set": {"training.schedule.kind": "constant"}},
    "decay": {"after": "stable", "share": 0.25, "set": {"training.schedule.kind": "wsd"}},
}


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


def test_a_directory_of_runs_stands_for_them(tmp_path):
    """At most two levels down, and `runs/*` may name a page that `report` wrote beside them."""
    places = [tmp_path / name for name in ("b", "a", "more/c")]
    for place in places:
        (place / "positions").mkdir(parents=True)
        (place / "metrics.jsonl").touch()
    with pytest.raises(InputError, match="no run in it has a checkpoint yet; wait for one"):
        expanded([str(tmp_path)])
    for place in places[1:]:
        (place / "positions" / "step-0000000004.parquet").touch()
    page = tmp_path / "page"
    (page / "temporal").mkdir(parents=True)
    for name in ("report.html", "temporal/result.json"):
        (page / name).touch()
    assert expanded([str(tmp_path), "x.csv"]) == [*map(str, places[1:]), "x.csv"]
    assert expanded([str(places[0]), str(page)]) == [str(places[0])]
    (page / "log.csv").touch()  # somebody's own log, and a page of it
    assert expanded([str(places[0]), str(page)]) == [str(places[0]), str(page)]


def test_a_sweep_is_shown_by_its_own_page(tmp_path):
    for name in ("result.json", "report.html", "curves.parquet"):
        (tmp_path / name).touch()
    page = tmp_path / "report.html"
    for paths in ([str(tmp_path)], ["x.csv", str(tmp_path)]):
        with pytest.raises(InputError, match=f"holds a result and its page and no runs; open {page}, or leave it out$"):
            expanded(paths)


def test_a_ladder_that_has_not_begun_is_one_line(ladder_file):
    path = ladder_file()
    with pytest.raises(InputError, match="no run has begun; run `emergence-train ladder .*ladder.yaml` first"):
        expanded([str(path)])
    write_index(read(path))
    with pytest.raises(InputError, match="no run of this ladder has a checkpoint yet; wait for one"):
        expanded([str(path)])


def begun(path) -> dict[tuple, str]:
    """The names of the runs of a ladder that has been started or submitted."""
    ladder = read(path)
    write_index(ladder)
    return {(row.schedule, row.tokens, row.seed): row.run for row in ladder.rows}


def test_a_run_keeps_its_name_in_a_larger_ladder(ladder_file):
    """One seed and budget, then two of each, then the new ones alone: what is trained, or waits in a queue without a directory,
    has the name that it began with."""

    def named(**keys) -> dict[tuple, str]:
        return begun(ladder_file(schedules=SCHEDULES, **keys))

    small = named(tokens=[4096], seeds=[1])
    assert small == {("stable", 4096, 1): "a-stable", ("decay", 4096, 1): "a-decay"}
    both = named(tokens=[4096, 6144], seeds=[1, 2])
    assert both == {
        ("stable", 6144, 1): "a-stable",
        ("decay", 4096, 1): "a-decay",
        ("decay", 6144, 1): "a-6.144k-decay-s1",
        ("stable", 6144, 2): "a-stable-s2",
        ("decay", 4096, 2): "a-4.096k-decay-s2",
        ("decay", 6144, 2): "a-6.144k-decay-s2",
    }
    assert named(tokens=[4096, 6144], seeds=[2]).items() <= both.items()
    assert named(tokens=[4096, 6144], seeds=[1, 2]) == both


def test_names_of_two_starts_at_once_are_those_of_the_first(ladder_file):
    """Each reads the file before it has the lock, one with more seeds: the run of both would be trained under two names."""
    small, large = (read(ladder_file(seeds=seeds)) for seeds in ([1], [1, 2]))
    write_index(small)
    with pytest.raises(InputError, match="another start has named its runs meanwhile; run the same command again"):
        write_index(large)
    again = read(ladder_file(seeds=[1, 2]))
    write_index(again)
    assert [row.run for row in again.rows] == ["a", "a-s2"]


@pytest.mark.parametrize(
    ("earlier", "other", "name"),
    [
        ({"seeds": [1]}, {"seeds": [2]}, "a-s2"),
        ({"tokens": [4096]}, {"tokens": [6144]}, "a-6.144k-decay"),  # of one stable run, which has every budget
    ],
)
def test_a_name_that_was_given_meanwhile_is_refused(ladder_file, earlier, other, name):
    """Two starts that would call a run of their own alike: the second would go on with the first one's."""
    keys = {} if "seeds" in earlier else {"schedules": SCHEDULES}
    first, second = (read(ladder_file(**keys, **given)) for given in (earlier, other))
    assert first.rows[-1].run == second.rows[-1].run
    write_index(first)
    with pytest.raises(InputError, match="another start has named its runs meanwhile; run the same command again"):
        write_index(second)
    again = read(ladder_file(**keys, **other))
    write_index(again)
    assert again.rows[-1].run == name


def test_a_name_that_is_taken_is_another_runs(ladder_file):
    """A raised budget is another decay, and the same run where none decays; another seed is another run."""
    assert begun(ladder_file(tokens=[4096])) == {("", 4096, 1): "a"}
    assert begun(ladder_file(tokens=[6144])) == {("", 6144, 1): "a"}
    assert begun(ladder_file(tokens=[6144], seeds=[2])) == {("", 6144, 2): "a-s2"}
    begun(ladder_file(name="other", tokens=[4096], schedules=SCHEDULES))
    raised = read(ladder_file(name="other", tokens=[6144], schedules=SCHEDULES))
    assert [(row.run, row.parent) for row in raised.rows] == [("a-stable", None), ("a-6.144k-decay", "a-stable")]


@pytest.mark.parametrize(
    "index",
    [
        {"name": "another", "identities": {"a": ["a", 1024, "", 1]}},
        {"name": "small", "identities": {"../x": ["a", 1024, "", 2]}},
        {"name": "small", "identities": {"a": 3}},
        {"name": "small", "identities": {"a": ["a", float("inf"), "", 1]}},
        {"name": "small", "runs": ["a"]},
        3,
    ],
)
def test_an_index_that_says_nothing_of_this_ladder_is_none(index, ladder_file):
    path = ladder_file(seeds=[1, 2])
    out = read(path).out
    out.mkdir()
    (out / "ladder.json").write_text(json.dumps(index))
    assert [row.run for row in read(path).rows] == ["a-s1", "a-s2"]
