"""The model of what a power cut may leave, against sets written down by hand."""

import random

import pytest

from faults.disk import Operation
from faults.power_cut import FileSystem


def op(name, path="", other="", fd=-1, number=0, data=b""):
    return Operation(
        name, 1, -1, fd, number, data, path and f"/r/{path}" if path != "." else "/r", other and f"/r/{other}"
    )


def left(*operations, limit=500):
    """Every tree that may be left after the operations, and those of the ordered subset."""
    system = FileSystem("/r")
    for operation in operations:
        system.apply(operation)
    states, whole = system.after_power_cut(random.Random(1), limit)
    assert whole
    trees = {frozenset(tree.items()) for tree, _ in states}
    return trees, {frozenset(tree.items()) for tree, ordered in states if ordered}


def trees(*given):
    return {frozenset(tree.items()) for tree in given}


OLD = [
    op("create", "a", fd=3),
    op("write", fd=3, data=b"old"),
    op("fsync", fd=3),
    op("open", ".", fd=4),
    op("fsync", fd=4),
]
NEW = [op("create", "b", fd=5), op("write", fd=5, data=b"newer")]
ROOT = [op("fsync", fd=4)]


def test_a_new_file_may_be_absent_empty_zero_or_whole():
    outcomes, ordered = left(*NEW)
    assert outcomes == ordered == trees({}, {"b": b""}, {"b": b"\0" * 5}, {"b": b"newer"})


def test_fsync_of_a_file_keeps_its_data_not_its_name():
    assert left(*NEW, op("fsync", fd=5))[0] == trees({}, {"b": b"newer"})
    assert left(*NEW, op("fsync", fd=5), op("open", ".", fd=4), *ROOT)[0] == trees({"b": b"newer"})


def test_a_rename_without_fsync_may_leave_an_empty_file():
    """The fault of many programs on ext4 without auto_da_alloc."""
    outcomes, _ = left(*OLD, *NEW, op("rename", "b", "a"))
    assert frozenset({"a": b""}.items()) in outcomes and frozenset({"a": b"\0" * 5}.items()) in outcomes


def test_a_rename_after_fsync_leaves_the_old_or_the_new():
    replaced = [*OLD, *NEW, op("fsync", fd=5), op("rename", "b", "a")]
    assert left(*replaced)[0] == trees({"a": b"old"}, {"a": b"old", "b": b"newer"}, {"a": b"newer"})
    assert left(*replaced, *ROOT)[0] == trees({"a": b"newer"})


def test_changes_of_different_names_come_in_any_order():
    produced = [op("create", "x", fd=6), op("create", "y", fd=7)]
    outcomes, ordered = left(*produced)
    assert outcomes == trees({}, {"x": b""}, {"y": b""}, {"x": b"", "y": b""})
    assert ordered == trees({}, {"x": b""}, {"x": b"", "y": b""})


def test_what_is_in_a_lost_directory_is_lost():
    inside = [op("mkdir", "d"), op("create", "d/f", fd=8), op("fsync", fd=8), op("open", "d", fd=9), op("fsync", fd=9)]
    assert left(*inside)[0] == trees({}, {"d": None, "d/f": b""})


def test_any_page_of_an_unsynced_append_may_be_missing():
    """A durable half sector, then 1,024 bytes more: three sectors, each old or new, and the end cut at any of them."""
    start = [op("create", "l", fd=3), op("write", fd=3, data=b"a" * 256), op("fsync", fd=3)]
    start += [op("open", ".", fd=4), op("fsync", fd=4)]
    outcomes, _ = left(*start, op("write", fd=3, number=256, data=b"b" * 1024))
    contents = {dict(tree)["l"] for tree in outcomes}
    assert b"a" * 256 in contents and b"a" * 256 + b"b" * 1024 in contents
    assert b"a" * 256 + b"\0" * 256 + b"b" * 512 + b"\0" * 256 in contents  # a hole before what came later
    assert b"a" * 256 + b"b" * 256 in contents and b"a" * 256 + b"\0" * 1024 in contents
    assert all(content.startswith(b"a" * 256) for content in contents)  # what was synced stays


def test_after_a_failed_fsync_the_next_promises_nothing():
    outcomes, _ = left(*OLD, op("write", fd=3, number=3, data=b"er"), op("unsynced", fd=3), op("fsync", fd=3))
    assert frozenset({"a": b"old"}.items()) in outcomes


@pytest.mark.parametrize("moved", [False, True])
def test_a_move_between_directories_waits_for_both(moved):
    start = [
        *OLD,
        op("mkdir", "d"),
        op("fsync", fd=4),
        op("rename", "a", "d/a"),
        op("open", "d", fd=9),
        op("fsync", fd=9),
    ]
    outcomes, _ = left(*start, *(ROOT if moved else []))
    assert outcomes == trees(*([] if moved else [{"a": b"old", "d": None}]), {"d": None, "d/a": b"old"})
